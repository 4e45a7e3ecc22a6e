"""Every analysis of two really trained networks, and what figures, sentences, README and report make of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from small_runs import trained
from test_figures import check_layout

from bloodcell_lib import analyses, analysis, answers, cli, documents, figures, records, shelf, tables
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.numbers import Study

RUNS = [("main", 0), ("main", 1), ("without_platelet", 0)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Two runs of `main` and a run of `without_platelet`, on this machine."""
    with trained(tmp_path_factory.mktemp("analyses"), RUNS, per_class=30) as made:
        yield made


@pytest.fixture(scope="module")
def home(subject):
    folder = subject.runs / "demo"
    return shelf.Shelf(folder, folder, "demo", folder, own=True)


@pytest.fixture(scope="module")
def found(home):
    # The subject's runs lie where those of this machine do, so that nothing has to be said of them.
    return analyses.complete(home, "main", "cpu")


def test_what_is_absent_is_made_once(home, found):
    assert set(found) == set(analyses.NAMES)
    times = {path: path.stat().st_mtime_ns for path in (home.runs / "analyses").iterdir()}
    (home.runs / "analyses" / "unknown.json").unlink()
    assert set(analyses.complete(home, "main", "cpu")) == set(analyses.NAMES)
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"unknown.json"}


def test_nothing_is_made_of_records_from_elsewhere_or_without_weights(home, found, monkeypatch):
    monkeypatch.setattr(analyses, "make", lambda *_: pytest.fail("nothing is to be made"))
    assert analyses.complete(replace(home, own=False), "main", "cpu").keys() == found.keys()
    # What is found of one experiment's runs tells nothing of another's.
    assert analyses.complete(replace(home, own=False), "without_platelet", "cpu") == {}
    weights = home.runs / "without_platelet" / "seed0" / "weights.safetensors"
    weights.rename(weights.with_suffix(".away"))
    try:
        assert analyses.complete(home, "without_platelet", "cpu") == {}
    finally:
        weights.with_suffix(".away").rename(weights)


def test_another_experiments_analyses_have_files_of_their_own(subject, home, found):
    path = next(analyses.make(replace(subject, experiment="without_platelet"), ["trust"]))
    try:
        together = analysis.load_analyses(home.runs)
        assert path.name == "trust_without_platelet.json" and set(together) == {*found, "trust_without_platelet"}
        assert set(analysis.of_experiment(together, "main")) == set(found)
        own = analysis.of_experiment(together, "without_platelet")
        assert list(own) == ["trust"] and own["trust"]["result"]["runs"] == ["without_platelet/seed0"]
    finally:
        path.unlink()


def test_an_analysis_fits_the_runs_that_it_was_made_of(home, found):
    runs = home.of("main")
    assert all(analyses.fits(content, runs) for content in found.values())
    later = [replace(runs[0], info=runs[0].info | {"ended": "2999-01-01T00:00:00+00:00"})]
    other = [replace(runs[0], info=runs[0].info | {"data": runs[0].info["data"] | {"fingerprint": "another"}})]
    for changed in (later, other, [replace(runs[0], experiment="no_se")]):
        assert not any(analyses.fits(content, changed) for content in found.values())


def test_unknown_names_are_told_before_anything_is_made():
    with pytest.raises(BloodcellError, match="Unknown analysis 'tarot': choose from trust, labels"):
        list(analyses.make(None, ["trust", "tarot"]))
    assert all(name in str(cli.trust.__annotations__["only"]) for name in analyses.NAMES)


@pytest.mark.parametrize(("name", "pixels"), [("main", 32), ("short_large", 48), ("main+epochs=1", 32)])
def test_the_command_shows_networks_what_they_were_trained_on(subject, monkeypatch, name, pixels):
    asked = []
    monkeypatch.setattr(analyses, "make", lambda subject, names: asked.append((subject, names)) or [])
    cli.trust("demo", subject.folder, name, "labels, travel", "cpu")
    ((given, names),) = asked
    assert given.experiment == name and given.cells.images.shape[-1] == pixels and names == ["labels", "travel"]


def test_every_question_is_answered_with_numbers(found):
    for question, (name, _) in answers.QUESTIONS.items():
        told = answers.answer(question, found)
        assert re.search(r"\d", told) and told.endswith(".") and "nan" not in told and "None" not in told
        assert not re.search(r"(?<![\w.])-\d", told), "a minus is no hyphen"
        assert answers.answer(question, {}) == f"Not recorded yet: run `bloodcell trust --only {name}`."


def test_answers_say_what_the_files_hold(found):
    result = found["trust"]["result"]
    assert f"{100 * result['plain']['before']['ece_mass']:.1f} points as trained" in answers.answer(
        "calibration", found
    )
    assert f"on {result['averaging']['images']} validation images" in answers.answer("averaging", found).lower()
    suspected = found["labels"]["result"]["suspected"]
    assert answers.answer("labels", found).startswith(f"{suspected} of ")
    alone = 100 * found["shortcuts"]["result"]["conditions"]["cell_alone"]["accuracy"]
    assert f"cell alone {alone:.1f} %" in answers.answer("painting", found)
    assert "lymphocyte" in answers.answer("unknown", found)  # no network was kept from it


@pytest.mark.parametrize("name", figures.ANALYSED)
def test_every_figure_of_an_analysis_is_drawn_and_needs_it(name, found):
    check_layout(figures.analysed(name, found))
    with pytest.raises(BloodcellError, match=f"{name} needs an analysis .* `bloodcell trust --only"):
        figures.analysed(name, {})


def test_readme_and_report_print_them_or_say_that_there_is_none(home, found):
    study = Study.read(home.runs.parent, "demo")
    assert study.analyses.keys() == found.keys()
    told = documents.trust(study)
    assert told.count("\n- **") == len(documents.ASKED) and all(len(line) <= 120 for line in told.splitlines())
    assert set(documents.ASKED) == set(answers.QUESTIONS)
    best = Study.of(study.records, "demo", {**found, "trust_best": found["trust"] | {"experiment": "best"}})
    more = documents.trust(best).removeprefix(told)
    assert "### The best recipe\n\n- **" in more and more.count("\n- **") == 4 and "calibration error" in more
    table = tables.trust(study)
    assert len(table.rows) > 10 and all(len(row) == 3 and all(row[1:]) for row in table.rows)
    both = documents.asked(best)
    assert "Main (%) | Best (%) |" in both and len(both.splitlines()) == len(table.rows) + 2
    for make in (documents.trust, documents.asked):
        assert "No analysis is published yet" in make(Study.of(study.records, "demo"))
    assert tables.trust(Study.of(study.records, "demo")).rows == [("--",) * 3]


def test_published_analyses_are_shown_whatever_their_runs(home, found, tmp_path):
    """A reader sees what is published, without images and weights."""
    for path in (home.runs / "analyses").iterdir():
        target = tmp_path / "analyses" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(json.loads(path.read_text()) | {"started": "2000-01-01T00:00:00+00:00"}))
    for record in records.load_records(home.runs):
        target = tmp_path / record.experiment / f"seed{record.seed}"
        target.mkdir(parents=True)
        (target / "record.json").write_bytes((record.folder / "record.json").read_bytes())
    place = replace(home, runs=tmp_path, study=tmp_path, own=False)
    assert analyses.complete(place, "main", "cpu").keys() == found.keys()
    assert analysis.load_analyses(tmp_path).keys() == found.keys()


def test_what_too_few_images_do_not_allow_is_said_and_the_rest_is_made(tmp_path):
    with trained(tmp_path, [("main", 0)], per_class=12) as subject:
        folder = subject.runs / "demo"
        with pytest.warns(UserWarning, match="The analysis trust was left out. A class has 2 held-out images: give"):
            found = analyses.complete(shelf.Shelf(folder, folder, "demo", folder, own=True), "main", "cpu")
    assert {"shortcuts", "explain", "robustness", "unknown"} <= set(found) and "trust" not in found
