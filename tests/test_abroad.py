"""Training images as they come back from abroad, and a run that learns from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bloodcell_lib import abroad, camera, drawn_folder, experiments, reader, study, views
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.reader import Reader
from bloodcell_lib.tasks import Task

PROFILE = "demo/study"
ONCE = (("epochs", 1), ("after", ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return drawn_folder.write(tmp_path_factory.mktemp("abroad") / "cells", per_class=5, test=0)


@pytest.fixture(scope="module")
def pair(folder):
    """Images as a network sees them, and whole."""
    sizes = ((64, 200), (360, None))
    return [views.load_images(PROFILE, folder, progress=False, view=view) for view in sizes]


def test_copies_of_what_is_left_alone_are_the_images_again(pair, monkeypatch):
    monkeypatch.setattr(camera, "CHANGED", 0.0)
    cells, whole = pair
    blind = Reader().eval()
    blind.steady.fill_(1e9)  # reads everything as ours
    shown = abroad.with_copies(cells, whole, blind, 200, 2)
    assert shown.images.shape == (3 * len(cells), *cells.images.shape[1:]) and shown.images.dtype == torch.uint8
    assert torch.equal(shown.images[: len(cells)], cells.images)
    for copies in shown.images[len(cells) :].split(len(cells)):
        assert (copies.float() - cells.images.float()).abs().mean() < 4, "the same, resized in a step more"
    assert torch.equal(shown.labels, cells.labels.repeat(3))
    assert shown.names == 3 * cells.names and shown.sha256 == 3 * cells.sha256


def test_each_copy_is_another_and_a_seed_gives_them_again(pair):
    cells, whole = (one.subset(range(6)) for one in pair)
    eye = Reader().eval()
    shown, again, other = (abroad.with_copies(cells, whole, eye, 200, 2, seed).images for seed in (0, 0, 1))
    assert torch.equal(shown, again) and not torch.equal(shown, other)
    first, second = shown[6:12].float(), shown[12:].float()
    assert ((first - second).abs().mean((1, 2, 3)) > 1).all()


def test_a_run_learns_from_them_and_asks_for_what_it_needs(pair, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "DEMO_EPOCHS", 1)
    task = Task("travelled", 0, PROFILE, tmp_path, ONCE, progress=False)
    cells = views.load_images(PROFILE, folder, progress=False, view=task.view)
    with pytest.raises(BloodcellError, match="copies whole photographs: give those of its images"):
        experiments.run(task, cells)
    with pytest.raises(BloodcellError, match=r"needs .*: make it with `bloodcell study --experiments seasoned "):
        experiments.run(replace(task, changes=ONCE[:1]), cells, lambda: pair[1])
    with pytest.raises(BloodcellError, match="give distil or copies, not both"):
        replace(task, changes=(*ONCE, ("distil", 0.5))).plan()
    assert not (tmp_path / PROFILE / "readers").exists(), "what is wrong is told before anything is learnt"
    assert task.views == [task.view, (360, None)] and replace(task, experiment="main").views == [(64, 200)]
    assert experiments.whole(replace(task, experiment="main"), folder) is None
    assert experiments.whole(task, folder).names == pair[1].names
    accuracy, _ = study.execute(task, folder)
    record = experiments.run(task, cells)  # which is there
    assert record.info["final_validation_accuracy"] == accuracy
    assert record.info["config"]["train"]["copies"] == 2
    assert record.info["data"]["train"] == 32 and len(record.validation().names) == 8
    assert (tmp_path / PROFILE / "readers" / "split.safetensors").exists()
