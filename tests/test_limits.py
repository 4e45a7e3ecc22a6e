"""The figures show what the analyses hold, and go to files."""

from __future__ import annotations

import numpy as np
import pytest

from bloodcell_lib import limits, style
from bloodcell_lib import robustness as robust
from bloodcell_lib.cells import NAMES, TITLES
from bloodcell_lib.corrupt import CORRUPTIONS


def step(accuracy: float) -> dict:
    return {"accuracy": accuracy, "low": accuracy - 0.05, "high": min(1, accuracy + 0.04), "by_seed": [accuracy]}


def robustness(severities=(1, 2, 3, 4, 5), **experiments) -> dict:
    found = {
        name: {
            "seeds": 2,
            "clean": step(best),
            "corrupted": {k: [step(best - 0.05 * s) for s in severities] for k in CORRUPTIONS},
        }
        for name, best in experiments.items()
    }
    named = {k: {"title": row.title, "unit": row.unit, "levels": row.levels} for k, row in CORRUPTIONS.items()}
    first = next(iter(experiments))
    return {
        "images": 64,
        "severities": list(severities),
        "corruptions": named,
        "experiment": first,
        "baseline": "resnet18",
        "experiments": found,
    }


def unknown(*left_out: str) -> dict:
    score = {"auroc": 0.8, "auroc_low": 0.7, "auroc_high": 0.9, "fpr95": 0.4, "fpr95_low": 0.3, "fpr95_high": 0.6}
    found = {"scores": dict.fromkeys(limits.SCORES, score)}
    missing = [name for name in NAMES if name not in left_out]
    odd = dict.fromkeys(limits.ODD_TITLES, found)
    return {"left_out": dict.fromkeys(left_out, found), "missing": missing, "main": odd}


def saved(figure, folder) -> None:
    for path in style.save(figure, "figure", folder):
        assert path.stat().st_size > 5_000
    assert figure.get_figwidth() == style.WIDTH


def words(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_a_sheet_has_a_picture_for_each_corruption_and_severity(tmp_path):
    figure = limits.corruption_sheet()
    pictures = [ax.images[0].get_array() for ax in figure.axes]
    assert len(pictures) == 30 and len({picture.tobytes() for picture in pictures}) == 30
    assert all(row.title in words(figure) for row in CORRUPTIONS.values())
    saved(figure, tmp_path)


@pytest.mark.parametrize("severities", [(1, 2, 3, 4, 5), (1, 3, 5)])
def test_curves_start_at_the_clean_accuracy_and_fall(tmp_path, severities):
    figure = limits.corruption_curves(robustness(severities, main=0.9, resnet18=0.8, best=0.85, stain_jitter=0.8))
    assert len(figure.axes) == 10
    for ax in figure.axes:
        assert len(ax.lines) == 3, "a row that is no change to the main recipe any more"
        x, y = ax.lines[0].get_data()
        assert list(x) == [0, *severities] and y[0] == pytest.approx(90) and y[-1] == pytest.approx(65)
    assert "ResNet-18" in words(figure) and "64 validation images, 2 seeds" in words(figure)
    saved(figure, tmp_path)


def test_curves_of_another_experiment_alone(tmp_path):
    figure = limits.corruption_curves(robustness(no_se=0.7))
    assert "no_se" in words(figure) and len(figure.axes[0].lines) == 1
    saved(figure, tmp_path)


def test_unknown_rows_are_those_that_are_there(tmp_path):
    figure = limits.unknown_scores(unknown("ig", "platelet"))
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["Immature granulocyte", "Platelet", *limits.ODD_TITLES.values()]
    assert "no network without 6 of the classes" in words(figure)
    for ax, value in zip(figure.axes, (0.8, 0.4)):
        marks = [line for line in ax.lines if line.get_marker() in "os^" and len(line.get_xdata()) == 6]
        assert len(marks) == 3 and all((np.array(line.get_xdata()) == value).all() for line in marks)
    saved(figure, tmp_path)
    everything = words(limits.unknown_scores(unknown(*NAMES)))
    assert "no network" not in everything and all(title in everything for title in TITLES)
    assert "no network without 8 of the classes" in words(limits.unknown_scores(unknown()))
    assert "no network without basophil, ig" in words(limits.unknown_scores(unknown(*set(NAMES) - {"basophil", "ig"})))


def test_a_site_is_set_beside_validation(tmp_path):
    fall = {"points": -30.0, "low": -41.2, "high": -20.0}
    one = {"images": 40, "accuracy": step(0.6), "validation": step(0.9), "fall": fall}
    lonely = one | {"validation": None, "fall": None}
    result = one | {"seeds": 1, "images": 80, "classes": {"ig": one, "platelet": lonely}}
    figure = limits.site_fall(result, "Sítio B")
    text = words(figure)
    assert "−30  [−41, −20]" in text and "Sítio B: 80 images, 1 seed;" in text
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Immature granulocyte", "Platelet", "All"]
    saved(figure, tmp_path)


@pytest.mark.parametrize("experiment", ["main", "best", "best_short"])
def test_whatever_stands_beside_an_experiment_has_a_look_of_its_own(experiment):
    beside = [*robust.BASELINES, *robust.rivals(experiment)]
    looks = [limits.LOOKS[name] for name in beside if name != "resnet18_full"]  # the two ResNets never share a figure
    assert len({look[0] for look in looks}) == len({look[2:] for look in looks}) == len(beside) - 1
