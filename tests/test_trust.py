"""Analyses of networks that were really trained, if only for a moment, through the command that users run."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import small_runs
import torch

from bloodcell_lib import analysis, answers, cli, paths, plans, records, shelf, trust, views
from bloodcell_lib.errors import BloodcellError


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Two seeds of `main` and the five folds, trained for two epochs on 96 drawn cells of 32 pixels."""
    with small_runs.trained(tmp_path_factory.mktemp("trust"), [("main", 0), ("main", 1), *small_runs.FOLDS]) as subject:
        yield subject


def test_the_symmetries_are_eight_and_a_group():
    image = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    views = trust.symmetries(image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    for view in views:
        again = {tuple(v.flatten().tolist()) for v in trust.symmetries(view)}
        assert again == {tuple(v.flatten().tolist()) for v in views}


def test_averaged_symmetries_do_not_depend_on_how_the_cell_lies(subject):
    record = subject.records[0]
    network, images = subject.network(record), subject.held_out(record).images
    one = trust.probabilities(network, images, tta=True)
    other = trust.probabilities(network, torch.rot90(images, 1, (2, 3)).flip(2), tta=True)
    assert np.allclose(one, other, atol=1e-5) and np.allclose(one.sum(1), 1)
    by_hand = np.mean([trust.probabilities(network, view) for view in trust.symmetries(images)], axis=0)
    assert np.allclose(one, by_hand)


def test_a_network_from_disk_predicts_what_its_run_recorded(subject):
    record = subject.records[1]
    found = trust.probabilities(subject.network(record), subject.held_out(record).images)
    assert np.allclose(found, record.validation().probabilities, atol=1e-3)


def test_each_image_is_judged_by_the_fold_that_left_it_out(subject):
    labels, given, parts = trust.out_of_sample(subject)
    assert len(labels) == len(subject.cells) and np.bincount(labels).tolist() == [12] * 8
    assert np.bincount(parts).min() > 15 and len(np.bincount(parts)) == 5
    folds = [record.validation() for record, _ in subject.folds()]
    assert np.allclose(given, np.concatenate([run.probabilities for run in folds]), atol=1e-3)


def test_an_analysis_is_recorded_and_published(subject, monkeypatch, tmp_path):
    path = analysis.record_analysis("trust", subject, trust.analyse)
    found = analysis.load_analyses(subject.runs / "demo")["trust"]
    result = found["result"]
    assert json.loads(path.read_text())["data"]["images"] == 96 and result["images"] == 96
    assert result["averaging"]["seeds"] == 2 and len(result["averaging"]["tta"]["single"]) == 2
    for kind in ("plain", "tta"):
        judged = result[kind]
        assert len(judged["temperatures"]) == 5 and 0 <= judged["after"]["ece_mass"] <= 1
        assert judged["after"]["nll"] <= judged["before"]["nll"] + 0.05
        assert judged["coverage"]["coverage"][-1] == 1 and set(judged["sets"]) == {"0.95", "0.99"}
        assert sum(judged["before"]["bins"]["n"]) == 96
    shares = [100 * result[kind]["before"]["accuracy"] for kind in ("plain", "tta")]
    assert result["averaging"]["images"] < 96  # the split alone, beside the folds
    ended = f"Of all 96, by networks that had not seen them: {shares[0]:.2f} % and {shares[1]:.2f} %."
    assert answers.averaging(result).endswith(ended)
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(paths, "RUNS", subject.runs)
    new = shelf.publish("demo")
    assert tmp_path / "demo" / "analyses" / "trust.json" in new and not shelf.publish("demo")


def test_what_is_missing_is_told_in_one_sentence(subject, tmp_path):
    with pytest.raises(BloodcellError, match="bloodcell train no_se"):
        _ = analysis.Subject("demo", subject.cells, "no_se", runs=subject.runs).records
    other = subject.cells.subset(range(50))
    with pytest.raises(BloodcellError, match="other images"):
        _ = analysis.Subject("demo", other, runs=subject.runs).records
    copy = tmp_path / "seed0"
    shutil.copytree(subject.records[0].folder, copy)
    record = records.load_record(copy)
    (copy / "weights.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(BloodcellError, match="damaged"):
        analysis.load_network(record)
    (copy / "weights.safetensors").unlink()
    with pytest.raises(BloodcellError, match="No weights"):
        analysis.load_network(record)
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "trust.json").write_text('{"format": 1')
    with pytest.raises(BloodcellError, match="not a whole analysis"):
        analysis.load_analyses(tmp_path)


def test_numbers_that_json_lacks_become_null(subject, tmp_path):
    odd = analysis.Subject("demo", subject.cells, runs=tmp_path)
    path = analysis.record_analysis("odd", odd, lambda s: {"a": np.float32("nan"), "b": np.arange(2), 3: (True, None)})
    assert json.loads(path.read_text())["result"] == {"a": None, "b": [0, 1], "3": [True, None]}


def test_an_unknown_analysis_is_told(subject, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", subject.runs)
    monkeypatch.setattr(views, "load_images", lambda *a, **k: subject.cells)
    monkeypatch.setattr(views, "image_folder", lambda *a, **k: paths.ROOT)
    with pytest.raises(BloodcellError, match="Unknown analysis 'x'"):
        cli.app(["trust", "--only", "x"], standalone_mode=False)


def test_networks_are_averaged_with_those_that_they_went_on_from(subject, monkeypatch):
    record, before = subject.records
    held_out = subject.held_out(record)
    labels = held_out.labels.numpy()
    given, earlier = (trust.probabilities(subject.network(run), held_out.images, tta=True) for run in (record, before))

    def right(*averaged: np.ndarray) -> float:
        return (np.mean(averaged, axis=0).argmax(1) == labels).mean()

    monkeypatch.setattr(analysis.Subject, "whole_folds", lambda self: [[record]])
    assert trust.with_earlier(subject, labels) is None, "a fresh network goes on from none"
    monkeypatch.setattr(analysis.Subject, "earlier", lambda self, run: [before])
    found = trust.with_earlier(subject, labels)
    assert found["networks"] == 2 and found["accuracy"] == right(given, earlier) and found["seeds"] is None
    monkeypatch.setattr(analysis.Subject, "whole_folds", lambda self: [[record], [before]])
    found = trust.with_earlier(subject, labels)
    assert found["networks"] == 2 and found["accuracy"] == right(given, earlier), "the first seed alone"
    both = found["seeds"]
    assert both["each"] == [right(given, earlier), right(earlier)]
    assert both["networks"] == 4 and both["accuracy"] == right(given, earlier, earlier, earlier)


def test_folds_are_told_by_seed(subject):
    whole = subject.whole_folds()
    assert whole[0] == subject.fold_runs() and len(whole[0]) == 5
    for runs in whole:
        assert len({run.seed for run in runs}) == 1
        assert [run.experiment for run in runs] == list(plans.FOLDS["main"])


def test_those_that_a_network_went_on_from_saw_the_same():
    fingerprint = records.load_record(paths.RESULTS / "cpu" / "patient" / "seed0").info["data"]["fingerprint"]
    published = analysis.Subject("cpu", SimpleNamespace(fingerprint=fingerprint), runs=paths.RESULTS)

    def names(experiment: str) -> list[str]:
        return [run.experiment for run in published.earlier(published.of(experiment)[0])]

    assert names("well_travelled_fold3") == ["patient_fold3", "patient_travelled_fold3"]
    assert names("travelled_fold1") == ["seasoned_fold1"], "the magnified network saw smaller pictures"
    assert names("patient") == names("seasoned") == []
