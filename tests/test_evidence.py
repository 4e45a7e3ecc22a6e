"""Figures of analyses: no text is cut or covered, and what is drawn is what was found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from test_figures import check_layout

from bloodcell_lib import analysis, calibration, evidence, gallery, labels, mistakes, noise, style, trust
from bloodcell_lib.cells import CELL_TYPES, COLOURS, TITLES
from bloodcell_lib.errors import BloodcellError


def found_in(n: int, wrong: float, sharp: float, folds: int) -> dict[str, dict]:
    """The three analyses of `n` images that never were: a share `wrong` is mistaken, `sharp` sets the confidence."""
    rng = np.random.default_rng(0)
    true = np.arange(n) % 8
    names = [f"{rng.choice(list(CELL_TYPES[k].prefixes))}_{i}.jpg" for i, k in enumerate(true)]
    seen = np.where(rng.random(n) < wrong, (true + rng.integers(1, 3, n)) % 8, true)
    scores = rng.normal(0, 1, (n, 8)) + sharp * rng.random((n, 1)) * np.eye(8)[seen]
    given = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    parts = calibration.split_in_parts(true, 5)
    shares = noise.joint(true, given)
    suspects = noise.suspects(true, given)
    called = given.argmax(1)
    who = {"runs": [f"cv_fold{k}/seed0" for k in range(folds)] if folds > 1 else ["main/seed0"], "images": n}
    xy = rng.normal(0, 1, (n, 2)) + 8 * np.c_[np.cos(true), np.sin(true)]
    judged = trust.judged(true, given, parts)
    point = {"label": true, "called": called, "x": xy[:, 0], "y": xy[:, 1]}
    results = {
        "trust": {"plain": judged, "tta": judged},
        "labels": {"noise": noise.given_if_true(shares), "by_class": labels.by_class(true, suspects)},
        "mistakes": {
            "finer": mistakes.by_finer_type(names, true, called),
            "map": {"run": "main/seed0", "images": n, "perplexity": 30.0, **point},
        },
    }
    plain = analysis._plain({name: {"profile": "cpu", "result": who | result} for name, result in results.items()})
    return json.loads(json.dumps(plain))


@pytest.fixture(scope="module")
def full():
    return found_in(1600, 0.05, 12, folds=5)


@pytest.fixture(scope="module")
def poor():
    """A demo's: few images, and a network that knows little."""
    return found_in(96, 0.6, 3, folds=1)


@pytest.mark.parametrize("name", evidence.FIGURES)
def test_no_text_is_cut_or_covered(name, full, poor):
    which, draw = evidence.FIGURES[name]
    for found in (full, poor):
        check_layout(draw(found[which]))


def test_a_reliability_diagram_shows_each_bin_and_all_images(full):
    figure = evidence.reliability(full["trust"])
    before = full["trust"]["result"]["plain"]["before"]
    points = figure.axes[0].lines[1]
    assert np.allclose(points.get_xdata(), 100 * np.array(before["bins"]["confidence"]))
    assert np.allclose(points.get_ydata(), 100 * np.array(before["bins"]["accuracy"]))
    for ax in figure.axes[2:]:
        assert np.isclose(sum(bar.get_height() for bar in ax.patches), 100)
    assert sum(before["histogram"]) == 1600


def test_an_analysis_without_a_histogram_is_told(full):
    old = json.loads(json.dumps(full["trust"]))
    del old["result"]["plain"]["before"]["histogram"]
    with pytest.raises(BloodcellError, match="bloodcell trust --only trust"):
        evidence.reliability(old)


def test_abstaining_ends_at_the_accuracy_on_all(full):
    ax = evidence.abstaining(full["trust"]).axes[0]
    judged = full["trust"]["result"]["plain"]
    assert np.isclose(ax.lines[0].get_ydata()[-1], 100 * judged["after"]["accuracy"])
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    kept = judged["abstention"]["0.99"]
    assert words[0] == f"99 % asked for: {100 * kept['coverage']:.1f} % kept, {kept['wrong']} of {kept['kept']:,} wrong"


def test_where_no_rate_is_reached_it_is_said(poor):
    judged = poor["trust"]["result"]["plain"]
    judged["abstention"]["0.995"] |= {"kept": 0, "wrong": 0, "accuracy": None, "low": None, "high": None}
    figure = evidence.abstaining(poor["trust"])
    assert "99.5 % asked for: not reached" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    for column in judged["coverage"]:
        judged["coverage"][column] = judged["coverage"][column][:5]
    with pytest.raises(BloodcellError, match="Too few images"):
        evidence.abstaining(poor["trust"])


def test_every_set_is_beside_what_was_asked_for(full):
    left, right = evidence.prediction_sets(full["trust"]).axes
    sets = full["trust"]["result"]["plain"]["sets"]
    drawn = [line.get_ydata() for line in left.lines if len(line.get_ydata()) == 2]
    assert any(np.allclose(y, [100 * sets[level]["coverage"] for level in ("0.95", "0.99")]) for y in drawn)
    assert any(np.allclose(line.get_ydata(), [row["size"] for row in sets.values()]) for line in right.lines)


def test_every_mistake_is_ringed_in_the_colour_of_its_answer(full):
    ax = evidence.feature_map(full["mistakes"]).axes[0]
    found = full["mistakes"]["result"]["map"]
    wrong = [called for label, called in zip(found["label"], found["called"]) if label != called]
    points, _, rings, inner = ax.collections
    assert len(points.get_offsets()) == 1600 and len(rings.get_offsets()) == len(wrong) == len(inner.get_offsets()) > 0
    assert [to_hex(c).upper() for c in rings.get_edgecolors()] == [COLOURS[k].upper() for k in wrong]


def test_recall_of_each_finer_type_is_drawn(full):
    ax = evidence.finer_recall(full["mistakes"]).axes[0]
    rows = full["mistakes"]["result"]["finer"]
    drawn = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert drawn == list(range(len(rows)))
    assert "Band neutrophil" in [label.get_text() for label in ax.get_yticklabels()]


def test_the_noise_matrix_says_only_what_was_found(full):
    left, right = evidence.label_noise(full["labels"]).axes
    channel = 100 * np.array(full["labels"]["result"]["noise"])
    assert len(left.texts) == (channel >= 0.05).sum()
    counts = [text.get_text() for text in right.texts]
    assert counts == [str(row["suspected"]) for row in full["labels"]["result"]["by_class"]]


def test_a_gallery_shows_the_named_cells(tmp_path):
    cells = gallery.synthetic_cells(per_class=2, pixels=48)
    rows = [
        {"name": cells.names[i], "label": TITLES[cells.labels[i]], "called": TITLES[k], "confidence": 0.5 + i / 100}
        for i, k in ((0, 4), (6, 6), (9, 2), (12, 6), (15, 0), (3, 1), (5, 5))
    ]
    figure = evidence.gallery_of(cells, [*rows, {**rows[0], "name": "elsewhere.jpg"}])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "Basophil\nLymphocyte, 50%" and "right" in titles[5] and sum(map(bool, titles)) == 7
    shown = figure.axes[1].images[0].get_array()
    assert np.array_equal(np.asarray(shown), cells.images[6].permute(1, 2, 0).numpy())
    check_layout(figure)
    path = style.save(figure, "gallery", tmp_path)[1]
    assert Image.open(path).width == 1100
    with pytest.raises(BloodcellError, match="None of these images is at hand"):
        evidence.gallery_of(cells.subset([1]), rows)
