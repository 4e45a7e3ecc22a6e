"""Shortcuts: networks that are known to look at the cell, or only beside it, must be told apart."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import small_runs
import torch
from torch import nn

from bloodcell_lib import analysis, cli, paths, segment, shelf, shortcuts


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Two seeds of `main`, trained for two epochs on 96 drawn cells of 48 pixels."""
    home = tmp_path_factory.mktemp("shortcuts")
    with small_runs.trained(home, [("main", 0), ("main", 1)], pixels=48) as subject:
        yield subject


class Looks(nn.Module):
    """Tells class k by the level of one colour, inside or outside a central disc: a shortcut made on purpose."""

    def __init__(self, at_cell: bool) -> None:
        super().__init__()
        self.at_cell, self.weight = at_cell, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        h, w = x.shape[-2:]
        far = torch.hypot((torch.arange(h) - (h - 1) / 2)[:, None], torch.arange(w) - (w - 1) / 2)
        where = far < 4 if self.at_cell else far > 0.62 * h
        level = x[:, 0][:, where].quantile(0.5, dim=1)
        return -(level[:, None] * 255 / 10 - torch.arange(8) - 5).abs()


def marked(subject, at_cell: bool):
    """The drawn cells, each with its class written into its corners or its centre as a level of red."""
    images = subject.cells.images.clone()
    h, w = images.shape[-2:]
    far = torch.hypot((torch.arange(h) - (h - 1) / 2)[:, None], torch.arange(w) - (w - 1) / 2)
    where = far < 4 if at_cell else far > 0.62 * h
    level = (10 * (subject.cells.labels + 5)).byte()
    images[:, 0] = torch.where(where, level[:, None, None], images[:, 0])
    return replace(subject.cells, images=images)


def accuracies(subject, at_cell: bool) -> dict[str, float]:
    shown = shortcuts.paint(marked(subject, at_cell))
    network = Looks(at_cell)
    labels = subject.cells.labels
    return {k: float((analysis.logits(network, x).argmax(1) == labels).float().mean()) for k, x in shown.images.items()}


def test_a_network_that_reads_the_cell_is_seen_to(subject):
    found = accuracies(subject, at_cell=True)
    assert found["untouched"] == 1
    assert min(found[k] for k in ("cell_alone", "cell_noise", "swapped_other", "background_moved")) > 0.9
    assert max(found[k] for k in ("background_alone", "background_disc", "outline")) < 0.3


def test_a_network_that_reads_the_background_is_caught(subject):
    found = accuracies(subject, at_cell=False)
    assert found["untouched"] == 1
    assert min(found[k] for k in ("background_alone", "background_disc", "swapped_same")) > 0.9
    assert max(found[k] for k in ("cell_alone", "swapped_other")) < 0.3


def test_each_condition_keeps_and_hides_what_it_says(subject):
    cells = subject.cells
    shown = shortcuts.paint(cells)
    assert list(shown.images) == list(shortcuts.CONDITIONS)
    assert all(x.shape == cells.images.shape and x.dtype == torch.uint8 for x in shown.images.values())
    cell = segment.segment(cells.images).cell
    deep = segment.erode(cell[:, None].float(), 2)[:, 0].bool()[:, None].expand(cells.images.shape)
    for name in ("cell_alone", "cell_noise", "swapped_same", "swapped_other", "background_moved"):
        assert torch.equal(shown.images[name][deep], cells.images[deep]), name
    for name in ("outline", "background_alone", "background_disc"):
        assert (shown.images[name][deep] == cells.images[deep]).float().mean() < 0.1, name
    assert (shown.donors != cells.labels.numpy()).all()
    assert 0 < shown.held < 0.4
    again = shortcuts.paint(cells)
    assert all(torch.equal(x, again.images[name]) for name, x in shown.images.items())


def test_donors_are_of_the_class_asked_for():
    labels = np.array([0, 0, 0, 1, 1, 2])
    rng = np.random.default_rng(0)
    same, other = shortcuts.donors(labels, rng, same=True), shortcuts.donors(labels, rng, same=False)
    assert (labels[same] == labels).all() and (same[:5] != np.arange(5)).all() and same[5] == 5
    assert (labels[other] != labels).all()


def test_following_the_background_is_counted_among_the_wrong():
    index = pd.MultiIndex.from_tuples([(0, "a"), (1, "b"), (2, "c"), (3, "d")], names=["label", "name"])
    predicted, donors = pd.DataFrame({0: [0, 5, 6, 7]}, index), pd.DataFrame({0: [1, 5, 3, 7]}, index)
    found = shortcuts.followed(predicted, donors)
    assert (found["wrong"], found["followed"]) == (3, 2) and found["low"] < 2 / 3 < found["high"]
    right = shortcuts.followed(pd.DataFrame({0: [0, 1, 2, 3]}, index), donors)
    assert right["wrong"] == 0 and right["share"] is None


def test_a_sample_takes_the_classes_in_turn():
    labels = np.repeat(np.arange(8), [1, 2, 30, 30, 30, 30, 30, 30])
    chosen = analysis.sample(labels, 40)
    counts = np.bincount(labels[chosen], minlength=8)
    assert len(set(chosen.tolist())) == 40 and counts[:2].tolist() == [1, 2] and counts[2:].min() >= 6
    assert len(analysis.sample(labels, None)) == len(analysis.sample(labels, 999)) == len(labels)


def test_the_command_records_and_publishes(subject, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(analysis, "Subject", partial(analysis.Subject, runs=subject.runs))
    assert cli.app(["trust", "--only", "shortcuts", "--device", "cpu"], standalone_mode=False) in (0, None)
    content = json.loads((subject.runs / "demo" / "analyses" / "shortcuts.json").read_text())
    result = content["result"]
    assert str(subject.runs) in capsys.readouterr().out
    assert result["runs"] == ["main/seed0", "main/seed1"] and result["images"] <= 96 == result["limit"]
    assert list(result["conditions"]) == list(shortcuts.CONDITIONS)
    for row in result["conditions"].values():
        assert row["low"] <= row["accuracy"] <= row["high"] and len(row["seeds"]) == 2 and len(row["recall"]) == 8
        assert row["accuracy"] == pytest.approx(np.mean(row["seeds"]))
    untouched = result["conditions"]["untouched"]
    recorded = [record.info["final_validation_accuracy"] for record in subject.records]
    assert untouched["seeds"] == pytest.approx(recorded, abs=0.06)  # a rounding may turn a close call
    assert untouched["difference"]["points"] == 0
    assert shelf.publish("demo") and (tmp_path / "demo" / "analyses" / "shortcuts.json").exists()
