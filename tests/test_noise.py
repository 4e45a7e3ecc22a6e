"""Labels that look wrong: wrong ones, put there by hand, are found; a training without them is a run of its own."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from bloodcell_lib import data, earlier, experiments, gallery, noise, views
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.records import load_record
from bloodcell_lib.tasks import Task


def judged(n: int = 800, wrong: int = 24, seed: int = 0):
    """True classes, labels of which the first `wrong` were moved one class up, and probabilities of a good network."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 8
    labels = true.copy()
    labels[:wrong] = (true[:wrong] + 1) % 8
    logits = rng.normal(0, 1, (n, 8)) + 6 * np.eye(8)[true]
    return true, labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_labels_made_wrong_are_suspected_and_few_others():
    _, labels, probabilities = judged()
    found = noise.suspects(labels, probabilities)
    assert len(set(found.tolist()) & set(range(24))) >= 18 and (found < 24).mean() > 0.8
    given = probabilities[found, labels[found]]
    assert (np.diff(given) >= 0).all()


def test_the_joint_tells_who_was_taken_for_whom():
    true, labels, probabilities = judged(wrong=80)
    shares = noise.joint(labels, probabilities)
    assert shares.shape == (8, 8) and np.isclose(shares.sum(), 1)
    counted = np.zeros((8, 8))
    np.add.at(counted, (labels, true), 1 / len(labels))
    assert np.allclose(shares, counted, atol=0.01)
    channel = noise.given_if_true(shares)
    assert np.allclose(channel.sum(0), 1) and np.allclose(channel[(np.arange(8) + 1) % 8, np.arange(8)], 0.1, atol=0.03)
    shares[:, 2] = 0
    assert (noise.given_if_true(shares)[:, 2] == 0).all()


def test_a_network_that_is_never_wrong_suspects_nothing():
    true, _, probabilities = judged()
    assert len(noise.suspects(true, probabilities)) == 0


def test_predictions_that_do_not_fit_are_refused():
    _, labels, probabilities = judged()
    with pytest.raises(BloodcellError, match="No image is labelled monocyte"):
        noise.suspects(labels[labels != 5], probabilities[labels != 5])
    for wrong in (probabilities[:-1], probabilities[:, :7], probabilities * np.nan):
        with pytest.raises(BloodcellError, match="eight numbers for each image"):
            noise.joint(labels, wrong)


@pytest.fixture(scope="module")
def cells():
    drawn = gallery.synthetic_cells(per_class=5, pixels=32)
    names = [f"{i:03d}_{name}" for i, name in enumerate(drawn.names)]
    return replace(drawn, names=tuple(names), sha256=tuple(map(str, range(len(names)))))


@pytest.fixture(autouse=True)
def profile(small):
    small(32)


def task(name: str, folder) -> Task:
    return Task(name, 0, "small", folder, (("epochs", 1), ("batch_size", 16)), device="cpu", progress=False)


def test_a_fold_is_trained_without_what_the_others_suspect(cells, tmp_path, monkeypatch):
    with pytest.raises(BloodcellError, match="--experiments cv_pair"):
        experiments.run(task("cv_clean1", tmp_path), cells)
    for pair in ("01", "12", "13", "14"):
        record = experiments.run(task(f"cv_pair{pair}", tmp_path), cells)
        assert (record.info["data"]["train"], record.info["data"]["validation"]) == (24, 16)

    seen = {}

    def suspects(labels, probabilities):
        seen["labels"], seen["probabilities"] = labels, probabilities
        return np.array([3, 0, 10])

    monkeypatch.setattr(noise, "suspects", suspects)
    record = experiments.run(task("cv_clean1", tmp_path), cells)
    folds = data.folds(cells)
    assert record.info["data"]["left_out"] == 3 and record.info["data"]["train"] == 29
    held_out = cells.subset(folds[1][1])
    assert record.validation().names == held_out.names  # untouched
    # Each image of the four other folds was judged, by the run that held its fold and this one out.
    order = np.concatenate([folds[j][1] for j in (0, 2, 3, 4)])
    assert seen["labels"].tolist() == cells.labels[torch.from_numpy(order)].tolist()
    first = load_record(task("cv_pair01", tmp_path).folder).validation()
    at = [first.names.index(cells.names[i]) for i in folds[0][1]]
    assert np.array_equal(seen["probabilities"][: len(at)], first.probabilities[at])
    left_out = earlier.suspected(task("cv_clean1", tmp_path), cells)
    assert left_out.tolist() == sorted(order[[3, 0, 10]].tolist())
    assert not set(left_out) & set(folds[1][1])


def test_teachers_saw_neither_the_image_nor_the_validation_set(cells, tmp_path):
    pairs = {j: experiments.run(task(f"cv_pair0{j}", tmp_path), cells).validation() for j in range(1, 5)}
    taught = earlier.teachers(task("short_distilled", tmp_path), cells)
    train, _ = views.divide(cells, "split")
    fold_of = {cells.names[i]: j for j, (_, at) in enumerate(data.folds(cells)) for i in at}
    for name, given in zip(train.names, taught.numpy(), strict=True):
        teacher = pairs[fold_of[name]]
        assert np.array_equal(given, teacher.probabilities[teacher.names.index(name)].astype(np.float32))
    record = experiments.run(task("short_distilled", tmp_path), cells)
    assert record.info["config"]["train"]["distil"] == 0.5 and record.info["data"]["train"] == 32
    assert record.info["data"]["taught_sha256"] == hashlib.sha256(taught.numpy().tobytes()).hexdigest()
    by_hand = replace(task("best_short", tmp_path), changes=(*task("", tmp_path).changes, ("distil", 0.5)))
    assert torch.equal(earlier.teachers(by_hand, cells), taught)  # nobody taught the teachers
    elsewhere = replace(task("cv_fold1", tmp_path), changes=(("distil", 0.5),))
    with pytest.raises(BloodcellError, match="distil on the split"):
        experiments.run(elsewhere, cells)


def test_suspects_of_other_images_are_refused(cells, tmp_path):
    for pair in ("01", "02", "03", "04"):
        experiments.run(task(f"cv_pair{pair}", tmp_path), cells)
    renamed = replace(cells, names=("x.jpg", *cells.names[1:]))
    with pytest.raises(OtherRun, match="other images"):
        earlier.suspected(task("cv_clean0", tmp_path), renamed)
    shutil.rmtree(task("cv_pair02", tmp_path).folder)
    with pytest.raises(BloodcellError, match="cv_pair02"):
        earlier.suspected(task("cv_clean0", tmp_path), cells)
    other = replace(task("cv_pair02", tmp_path), changes=(("epochs", 2), ("batch_size", 16)))
    shutil.move(experiments.run(other, cells).folder, task("cv_pair02", tmp_path).folder)
    with pytest.raises(OtherRun, match="another configuration"):
        earlier.suspected(task("cv_clean0", tmp_path), cells)
