"""What corrupted pictures leave of networks that were really trained, if only for a moment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_runs

from bloodcell_lib import analysis, corrupt, plans, robustness
from bloodcell_lib.corrupt import CORRUPTIONS


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    runs = [("best_short", 0), ("best_short", 1), ("resnet18", 0), ("group_norm", 0), ("main", 0)]
    with small_runs.trained(tmp_path_factory.mktemp("robustness"), runs) as subject:
        yield replace(subject, experiment="best_short")


@pytest.fixture(scope="module")
def result(subject):
    path = analysis.record_analysis("robustness", subject, robustness.analyse)
    return analysis.load_analyses(path.parent.parent)["robustness_best_short"]["result"]


def test_an_analysis_says_what_was_done(subject, result):
    assert result["severities"] == [1, 3, 5] and result["baseline"] == "resnet18"  # the demo's bounds
    assert result["images"] == len(subject.held_out(subject.records[0]))
    assert list(result["corruptions"]) == list(CORRUPTIONS)
    assert result["corruptions"]["rotation"] == {"title": "Rotation", "unit": "degrees", "levels": [15, 45, 90]}
    assert list(result["experiments"]) == ["best_short", "resnet18", "group_norm"]
    assert [found["seeds"] for found in result["experiments"].values()] == [2, 1, 1]


def test_accuracies_lie_in_their_intervals_and_are_those_of_the_networks(subject, result):
    own = result["experiments"]["best_short"]
    assert own["clean"]["by_seed"] == pytest.approx(
        [record.info["final_validation_accuracy"] for record in subject.records]
    )
    for rows in own["corrupted"].values():
        assert len(rows) == 3
        for row in rows:
            assert row["low"] <= row["accuracy"] <= row["high"]
            assert row["accuracy"] == pytest.approx(np.mean(row["by_seed"]))
    held_out = subject.held_out(subject.records[1])
    by_hand = analysis.logits(subject.network(subject.records[1]), corrupt.corrupt(held_out.images, "stain", 3))
    share = (by_hand.argmax(1) == held_out.labels).float().mean().item()
    assert own["corrupted"]["stain"][1]["by_seed"][1] == pytest.approx(share)


def test_mean_error_and_differences_are_relative_to_the_baseline_and_the_first(result):
    found = result["experiments"]
    assert found["resnet18"]["mce"] == pytest.approx(1)
    errors = {
        name: np.array([[1 - row["accuracy"] for row in rows] for rows in found[name]["corrupted"].values()])
        for name in found
    }
    expected = (errors["best_short"].sum(1) / errors["resnet18"].sum(1)).mean()
    assert found["best_short"]["mce"] == pytest.approx(expected)
    assert found["best_short"]["difference"] == {"points": 0, "low": 0, "high": 0}
    for name in found:
        assert found[name]["mean"]["accuracy"] == pytest.approx(1 - errors[name].mean())
    points = 100 * (errors["best_short"].mean() - errors["group_norm"].mean())
    change = found["group_norm"]["difference"]
    assert change["points"] == pytest.approx(points) and change["low"] <= points <= change["high"]


def test_without_a_baseline_there_is_no_relative_error(subject, monkeypatch):
    monkeypatch.setattr(robustness, "BASELINES", ())
    few = robustness.analyse(replace(subject, experiment="group_norm"))
    assert few["baseline"] is None and list(few["experiments"]) == ["group_norm", "main"]
    assert few["experiments"]["group_norm"]["mce"] is None


def test_each_has_its_rivals():
    assert robustness.rivals("best_short")[:2] == ("group_norm", "stain_jitter")
    assert robustness.rivals("main") == ("best",) and robustness.rivals("hardy") == ("main", "best")
    assert robustness.rivals("best") == ("best_white_point", "best_remedies")


@pytest.mark.parametrize("changed", [{"part": "fold1"}, {"pixels": 48}, {"crop": None}])
def test_runs_that_held_out_or_saw_other_images_are_left_out(subject, monkeypatch, changed):
    monkeypatch.setattr(
        analysis.Subject,
        "of",
        lambda self, name, of=analysis.Subject.of: [
            replace(r, info=r.info | {"config": r.info["config"] | (changed if name == "group_norm" else {})})
            for r in of(self, name)
        ],
    )
    found = robustness.hits(subject, subject.held_out(subject.records[0]), (1,))
    assert list(found) == ["best_short", "resnet18"]


def test_a_study_takes_every_severity_a_demo_a_bounded_number_of_images(subject, monkeypatch):
    asked = []

    def hits(_, cells, severities):
        asked.append((len(cells), severities, np.bincount(cells.labels.numpy()).tolist()))
        clean = {
            key: np.ones((1, len(cells)), bool) for key in ["clean", *((n, s) for n in CORRUPTIONS for s in severities)]
        }
        return {"best_short": clean}

    monkeypatch.setattr(robustness, "hits", hits)
    monkeypatch.setattr(robustness, "DEMO_IMAGES", 8)
    found = robustness.analyse(subject)
    assert asked[-1][0] <= 8 and asked[-1][1] == (1, 3, 5) and len(found["severities"]) == 3
    assert len(asked[-1][2]) == 8
    monkeypatch.setitem(plans.PROFILES, "demo", replace(small_runs.TINY, name="cpu"))
    robustness.analyse(subject)
    assert asked[-1][0] == len(subject.held_out(subject.records[0])) and asked[-1][1] == (1, 2, 3, 4, 5)


def test_a_perfect_baseline_gives_no_quotient():
    keys = [(name, 1) for name in CORRUPTIONS]
    right, wrong = ({key: np.full((1, 4), value) for key in keys} for value in (True, False))
    assert robustness.corruption_error(wrong, right, (1,)) is None
    assert robustness.corruption_error(wrong, wrong, (1,)) == 1 and robustness.corruption_error(right, wrong, (1,)) == 0
