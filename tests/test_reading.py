"""What it gains to undo how a photograph was taken, with networks and a reader that were really trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_runs
import torch

from bloodcell_lib import analysis, answers, documents, limits, plans, reader, reading, style, views
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.microscope import READ
from bloodcell_lib.reader import Lesson
from bloodcell_lib.robustness import spread
from bloodcell_lib.travel import SITES, Site


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    runs = [(name, 0) for name in plans.FOLDS["best"]]
    with small_runs.trained(tmp_path_factory.mktemp("reading"), [*runs, ("best", 1)]) as subject:
        yield replace(subject, experiment="best")


@pytest.fixture(scope="module")
def result(subject):
    path = analysis.record_analysis("reading", subject, reading.analyse)
    return analysis.load_analyses(path.parent.parent)["reading_best"]["result"]


@pytest.fixture(scope="module")
def eye(subject, result):
    train = spread(subject.photographs(views.divide(subject.cells, "split")[0]), reading.DEMO_IMAGES)
    lesson = Lesson("demo", "split", train, runs=subject.runs)
    before = lesson.file.stat().st_mtime_ns
    eye = lesson.taught()
    assert lesson.file.stat().st_mtime_ns == before, "the analysis has taught it"
    return eye


def test_both_kinds_are_judged_at_every_site(result):
    assert list(result["experiments"]) == ["plain", "undone"]
    for row in result["experiments"].values():
        assert (row["seeds"], list(row["sites"])) == (2, list(SITES))
    assert result["experiments"]["plain"]["difference"] == {"points": 0, "low": 0, "high": 0}
    assert list(result["exact"]) == list(READ)
    assert all(0 < row["median"] <= row["most"] for row in result["exact"].values())
    assert result["learnt"] == {"images": reading.DEMO_IMAGES, "parameters": result["learnt"]["parameters"]}


def test_all_images_are_judged_by_networks_that_had_not_seen_them(subject, result):
    assert result["folds"]["images"] == len(subject.cells)
    for kind, row in result["folds"]["experiments"].items():
        assert (row["seeds"], list(row["sites"])) == (1, ["all"])
        split, held_out = result["experiments"][kind]["clean"], len(subject.held_out(subject.records[0]))
        others = row["clean"]["accuracy"] * len(subject.cells) - split["by_seed"][0] * held_out
        assert others == pytest.approx(round(others)) and 0 <= others <= len(subject.cells) - held_out
    told = answers.answer("reading", {"reading": {"result": result}})
    assert f"Of all {len(subject.cells)} images" in told
    alone = answers.answer("reading", {"reading": {"result": result | {"folds": None}}})
    assert "Of all" not in alone and alone.startswith(told[: told.index(" Of all")])


def test_unchanged_and_plain_is_what_the_run_saw(subject, eye):
    held_out = subject.held_out(subject.records[0])
    views = reading.seen(subject.photographs(held_out), Site("same"), eye, 32, 200)
    off = (views["plain"].float() - held_out.images.float()).abs().mean()
    assert off < 4, "the same photographs, resized in two steps more"
    again = reading.seen(subject.photographs(held_out), Site("same"), eye, 32, 200)
    assert torch.equal(views["undone"], again["undone"])


def test_the_reader_never_saw_what_is_judged(subject, eye):
    train, held_out = views.divide(subject.cells, "split")
    assert not set(train.sha256) & set(held_out.sha256)
    kept = Lesson("demo", "split", train, runs=subject.runs).file
    assert reader.about(kept)["images"] == spread(train, reading.DEMO_IMAGES).fingerprint


def test_it_is_told_and_drawn(result, tmp_path):
    assert "reads how a photograph was taken" in answers.answer("reader", {"reading": {"result": result}})
    told = answers.answer("reading", {"reading": {"result": result}})
    assert "of its accuracy on unchanged ones; the goal is 90. With nothing undone" in told
    assert "Unchanged pictures" in told and answers.sites(result, "undone", "each put through the reader too") in told
    assert documents.ASKED["reading"]
    figure = limits.reading_sites(result)
    words = " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
    assert all(title in words for title in result["sites"].values()) and "is undone" in words
    for path in style.save(figure, "reading_sites", tmp_path):
        assert path.stat().st_size > 5_000


def test_a_run_that_held_nothing_or_something_else_out_is_refused(subject, monkeypatch):
    record = subject.records[0]
    monkeypatch.setitem(record.info["config"], "part", "all")
    with pytest.raises(BloodcellError, match="held no images out"):
        reading.analyse(subject)
    monkeypatch.setitem(record.info["config"], "part", "fold1")
    with pytest.raises(BloodcellError, match="held other images out: move it away"):
        reading.analyse(subject)


def test_without_the_other_folds_only_the_split_is_judged(subject, monkeypatch):
    monkeypatch.setattr(type(subject), "folds", lambda self: [(self.records[0], None)])
    assert reading.everywhere(subject) is None
