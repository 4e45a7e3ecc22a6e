"""The analysis of labels, on networks that were trained for it and through the command that users run."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from small_runs import FOLDS, trained

from bloodcell_lib import analysis, labels, noise, paths, plans
from bloodcell_lib.cells import NAMES, TITLES
from bloodcell_lib.records import load_records

REAL = paths.data_folder()  # now: a fixture below names drawn images in its place
PAIRS = [(f"cv_pair{j}{k}", 0) for j, k in itertools.combinations(range(5), 2)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with trained(tmp_path_factory.mktemp("labels"), [("main", 0), *FOLDS]) as subject:
        yield subject


def test_what_is_recorded_names_files_and_shows_no_picture(subject):
    path = analysis.record_analysis("labels", subject, labels.analyse)
    result = json.loads(path.read_text())["result"]
    assert result["images"] == 96 and len(result["runs"]) == 5
    assert len(result["suspects"]) == min(100, result["suspected"])
    assert sum(row["suspected"] for row in result["by_class"]) == result["suspected"]
    assert [row["class"] for row in result["by_class"]] == list(TITLES)
    assert all(0 <= row["low"] < row["high"] <= 1 for row in result["by_class"])
    assert np.shape(result["noise"]) == (8, 8)
    wrong = result["wrong"]
    assert 0 <= wrong["low"] <= wrong["high"] <= 1
    own = [row["self_confidence"] for row in result["suspects"]]
    assert own == sorted(own) and {row["name"] for row in result["suspects"]} <= set(subject.cells.names)
    assert all(row["given"] != row["suggested"] for row in result["suspects"])
    assert result["cleaned"] is None  # such runs were not made


def test_a_suspect_is_named_with_its_finer_type_and_what_it_may_be():
    names, given = ["MMY_1.jpg", "IG_2.jpg", "LY_3.jpg"], np.array([3, 3, 4])
    probabilities = np.full((3, 8), 0.01)
    probabilities[[0, 1, 2], [6, 5, 4]] = 0.93
    table = labels.suspect_table(names, given, probabilities, np.array([1, 0]))
    assert table["name"].tolist() == ["IG_2.jpg", "MMY_1.jpg"] and table["finer"].tolist() == ["", "metamyelocyte"]
    assert table["given"].tolist() == ["Immature granulocyte"] * 2
    assert table["suggested"].tolist() == ["Monocyte", "Neutrophil"]
    assert table["self_confidence"].tolist() == [0.01] * 2 and table["confidence"].tolist() == [0.93] * 2


def test_the_interval_of_wrong_labels_holds_what_was_put_there():
    rng = np.random.default_rng(0)
    true = np.arange(800) % 8
    given = np.where(np.arange(800) < 80, (true + 3) % 8, true)
    p = np.exp(rng.normal(0, 1, (800, 8)) + 6 * np.eye(8)[true])
    low, high = labels.wrong_interval(given, p / p.sum(1, keepdims=True), 40)
    assert 0.05 < low < 0.1 < high < 0.13


def test_training_without_suspects_is_compared_on_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "suspects", lambda labels, probabilities: np.arange(4))
    folds = [(name, 0) for name in plans.FOLDS["best_short"]]
    runs = [*folds, *PAIRS, *((f"cv_clean{k}", 0) for k in range(5))]
    with trained(tmp_path, runs, per_class=5) as subject:
        assert labels.cleaned(subject) is None  # of main, whose recipe none of these has
        subject = replace(subject, experiment="best_short")
        found = labels.cleaned(subject)
        assert found["seeds"] == [0] and found["images"] == 40 and found["left_out"] == [4] * 5
        by_name = {record.experiment: record for record in load_records(subject.runs / "demo")}
        for key, names in (("with", plans.FOLDS["best_short"]), ("without", [f"cv_clean{k}" for k in range(5)])):
            right = sum((run.predicted == run.labels).sum() for run in (by_name[name].validation() for name in names))
            assert np.isclose(found[key]["accuracy"], right / 40)
            assert found[key]["low"] <= found[key]["accuracy"] <= found[key]["high"]
        change = 100 * (found["without"]["accuracy"] - found["with"]["accuracy"])
        assert np.isclose(found["difference"]["mean"], change) and found["difference"]["seeds"] == 1
        assert labels.cleaned(replace(subject, runs=tmp_path / "nowhere")) is None


@pytest.mark.skipif(REAL is None, reason="needs the real images")
def test_names_of_real_images_tell_finer_types():
    names = [path.name for path in (REAL / "train" / NAMES[3]).iterdir()]
    kinds = {name: labels.finer_type(name, 3) for name in names}
    assert {"myelocyte", "metamyelocyte", "promyelocyte"} & set(kinds.values())
    # "IG" alone says no more than the class does.
    assert all(bool(kind) != name.startswith("IG") for name, kind in kinds.items())
