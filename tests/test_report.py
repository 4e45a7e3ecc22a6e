from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_records import write_records

from bloodcell_lib import (
    beyond,
    compare,
    documents,
    figures,
    latex,
    numbers,
    paths,
    reached,
    report,
    sentences,
    tables,
    verdicts,
)
from bloodcell_lib.compare import COLUMNS, FURTHER
from bloodcell_lib.errors import BloodcellError, RunFailed
from bloodcell_lib.numbers import PUBLISHED, Study
from bloodcell_lib.plans import EXPERIMENTS, FOLDS, OURS, STUDY, TRIED
from bloodcell_lib.records import load_records
from bloodcell_lib.shelf import published_profile

needs_latex = pytest.mark.skipif(bool(report.missing_packages()), reason="LaTeX is not complete here")
SOURCE = (paths.REPORT / "report.tex").read_text(encoding="utf-8")
BODY = SOURCE.split(r"\begin{document}")[1]
STAMP = "Synthetic demo: not results"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of every experiment under `cpu`, and the figures drawn from them."""
    root = tmp_path_factory.mktemp("whole")
    write_records(root / "results" / "cpu", list(EXPERIMENTS))
    records = load_records(root / "results" / "cpu")
    figures.draw_all(records, records, {}, folder=root / "figures")
    return root


def part(folder: Path) -> Path:
    """Results of a part of the study: three experiments, not all with the same seeds."""
    write_records(folder / "cpu", ["main", "no_se"], seeds=(0, 1))
    write_records(folder / "cpu", ["simple_cnn"], seeds=(0,))
    return folder


def demo(folder: Path) -> Path:
    """Results of a demo run on synthetic cells."""
    write_records(folder / "demo" / "study", seeds=(0,), profile="demo/study")
    for path in folder.rglob("record.json"):
        info = json.loads(path.read_text())
        info["data"] |= {"course": False, "source": "synthetic cells"}
        path.write_text(json.dumps(info))
    return folder


def generated(folder: Path) -> dict[str, str]:
    """The macros that were written, by name."""
    text = (folder / "numbers.tex").read_text(encoding="utf-8")
    return dict(re.findall(r"^\\newcommand\{\\(\w+)\}\{(.*)\}$", text, re.M))


def every(results: Path) -> dict[str, str]:
    """All that a report of these results could name."""
    study = Study.read(results, published_profile(results))
    return numbers.macros(study, "") | sentences.sentences(study)


def mutated(folder: Path, old: str, new: str) -> Path:
    """A report folder whose report.tex differs from the project's in one place."""
    folder.mkdir()
    for name in ("bloodreport.sty", "references.bib"):
        shutil.copy(paths.REPORT / name, folder)
    assert SOURCE.count(old) == 1
    (folder / "report.tex").write_text(SOURCE.replace(old, new), encoding="utf-8")
    return folder


def text_of(pdf: Path) -> list[str]:
    """The words of each page."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not here to read the PDF back")
    done = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True)
    return done.stdout.split("\f")[:-1]


# The source


def typed_digits(body: str) -> list[str]:
    """Lines of LaTeX prose with a digit outside mathematics, labels, references, citations, files and lengths."""
    body = re.sub(r"(?<!\\)%.*", "", body)
    body = re.sub(r"\\begin\{equation\}.*?\\end\{equation\}", "", body, flags=re.S)
    body = re.sub(r"(?<!\\)\$[^$]*\$", "", body)
    body = re.sub(r"\\(?:label|ref|cite[pt]?|input|bibliography|drawn)\{[^}]*\}", "", body)
    body = re.sub(r"\[[^\]]*\]|\{[\d.]+\\(?:linewidth|textwidth)\}", "", body)
    return [line for line in body.splitlines() if re.search(r"\d", line)]


def test_no_number_is_typed_in_the_prose():
    assert typed_digits(BODY) == []


@pytest.mark.parametrize(
    "line", ["It reaches 97 percent.", r"See \MainAccuracy{} in 3 runs.", r"\caption{All 640 images.}"]
)
def test_a_typed_number_would_be_found(line):
    assert typed_digits(BODY.replace(r"\end{abstract}", f"{line}\n\\end{{abstract}}")) == [line]


def used_macros() -> set[str]:
    return set(re.findall(r"\\([A-Z][A-Za-z]+)", BODY))


def test_every_macro_is_generated_whatever_is_recorded(whole, tmp_path):
    report.generate(whole / "results", tmp_path / "whole")
    report.generate(part(tmp_path / "results"), tmp_path / "part")
    report.generate(tmp_path / "nothing", tmp_path / "none")
    report.generate(demo(tmp_path / "synthetic"), tmp_path / "demo", STAMP, "demo/study")
    names = [set(generated(tmp_path / kind)) for kind in ("whole", "part", "none", "demo")]
    assert all(found == names[0] for found in names)
    assert len(used_macros()) > 80
    assert used_macros() <= names[0]


def test_the_whole_study_leaves_no_dash(whole, tmp_path):
    report.generate(whole / "results", tmp_path)
    macros = generated(tmp_path)
    missing = {name for name in used_macros() if macros[name] == latex.DASH}
    # The stand-in records lack some of the recipe's settings; a real one has them all.
    assert missing <= {"ScaleLow", "ScaleHigh", "Translation", "Brightness", "Hue"}


def test_citations_and_bibliography_agree():
    bibliography = (paths.REPORT / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),", bibliography, re.M)
    cited = {key for keys in re.findall(r"\\cite[pt]?\{([^}]*)\}", BODY) for key in keys.split(",")}
    assert len(entries) == len(set(entries)) > 20
    assert cited == set(entries)
    assert {row.cite for row in PUBLISHED} <= set(entries)


# Numbers and sentences


def test_numbers_are_those_of_the_records(whole, tmp_path):
    report.generate(whole / "results", tmp_path)
    macros = every(whole / "results")
    assert generated(tmp_path).items() <= macros.items()
    finals = [
        100 * record.info["final_validation_accuracy"]
        for record in load_records(whole / "results" / "cpu")
        if record.experiment == "main"
    ]
    spread = f"{np.std(finals, ddof=1):.2f}"
    assert macros["MainStd"] == spread
    assert rf"With 3 seeds, the main recipe reaches {np.mean(finals):.2f} $\pm$ {spread}\,\%" in macros["Headline"]
    assert macros["ClaimMainAccuracyStated"] == r"99.38\,\%"
    assert (macros["ReferenceCorrect"], macros["ReferenceLow"], macros["ReferenceHigh"]) == ("636", "98.4", "99.8")
    assert macros["DescribedParameters"] == "299,866"
    main = next(record.info for record in load_records(whole / "results" / "cpu") if record.experiment == "main")
    left = np.prod([(1 - 1e-4 * row["learning_rate"]) ** (main["data"]["train"] / 32) for row in main["history"]])
    assert macros["DecayShare"] == latex.plain(float(f"{1 - left:.0e}"))
    claims = (tmp_path / "claims.tex").read_text()
    assert claims.count("cannot be tested") == 5  # levels, which `cpu` does not test
    assert claims.count(";") == 2 * 8 - 1 and "Peak GPU memory (4.2 GB; 4.2 GB, with 6.3 M)" in claims  # not measured
    assert claims.count(r" \\") == 15


def test_full_is_told_beside_cpu_and_takes_its_place_where_there_is_none(tmp_path):
    write_records(tmp_path / "cpu", ["main", "resnet18", "no_se", "reg_none"], seeds=(0, 1))
    assert Study.read(tmp_path, "cpu").claims.loc["main_accuracy", "verdict"] == "cannot be tested"
    assert "its accuracies not at all" in every(tmp_path)["BudgetDeviation"]
    write_records(tmp_path / "full", ["main", "no_se"], profile="full")
    write_records(tmp_path / "full", ["reg_none"], profile="full", seeds=(0,))
    some, study = every(tmp_path), Study.read(tmp_path, "cpu")
    assert published_profile(tmp_path) == "cpu" and study.claims.loc["main_accuracy", "verdict"] != "cannot be tested"
    assert r"tested under \texttt{full}, which has the reference's (7 of 48 runs recorded)" in some["BudgetDeviation"]
    large = 100 * Study.read(tmp_path, "full").table.loc["main", "mean"]
    assert rf"and under \texttt{{full}} {large:.2f} $\pm$" in some["Headline"]
    assert dict(study.claims["profile"]) | {"se_gain": "full", "reg_gain": "cpu"} == dict(study.claims["profile"])
    assert r", \texttt{full} &" in tables.claims(study).latex()
    accuracies = [row[-1] for row in tables.ablations(study).rows if not isinstance(row, str)]
    assert accuracies[0] == f"{large:.2f}" and accuracies[-1] == latex.DASH
    rest = [name for name in STUDY if name not in ("main", "no_se", "reg_none")]
    write_records(tmp_path / "full", rest, profile="full")
    assert published_profile(tmp_path) == "cpu"
    shutil.rmtree(tmp_path / "cpu")
    assert published_profile(tmp_path) == "full"


def test_a_run_with_a_changed_recipe_is_left_out(tmp_path):
    write_records(tmp_path / "cpu", ["main"], seeds=(0,))
    shutil.copytree(tmp_path / "cpu" / "main", tmp_path / "cpu" / "main+batch_size=64")
    path = tmp_path / "cpu" / "main+batch_size=64" / "seed0" / "record.json"
    path.write_text(path.read_text().replace('"experiment": "main"', '"experiment": "main+batch_size=64"'))
    assert len(Study.read(tmp_path, "cpu").records) == 1


def test_what_is_recorded_is_said(tmp_path):
    study = Study.of(load_records(part(tmp_path) / "cpu"), "cpu")
    assert sentences.state(study) == (
        "The study is partial: 5 of its 48 runs are recorded (DeepEfficientNet and No squeeze-and-excitation with "
        "seeds 0 and 1; SimpleCNN with seed 0; 13 not at all); none beyond it."
    )
    assert sentences.state(Study.of([], "cpu")).startswith("No run of the study is recorded yet")


def test_the_demo_says_that_its_cells_are_drawn(tmp_path):
    study = Study.of(load_records(demo(tmp_path) / "demo" / "study"), "demo/study")
    assert "say nothing about blood" in sentences.source(study)
    assert "none can be tested" in verdicts.gains(study)


def with_rows(**rows: dict) -> Study:
    """A study whose table holds these rows; a value that is not given is nan."""
    study = Study.of([], "cpu")
    study.__dict__["table"] = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    return study


def difference(mean: float, low: float, high: float, seeds: int = 3) -> dict:
    return {"difference": mean, "low": low, "high": high, "common_seeds": seeds}


@pytest.mark.parametrize(
    ("row", "phrase"),
    [
        (difference(-1, -2, -0.5), r"raises accuracy by 1.00 points (95\,\% interval $+$0.50 to $+$2.00, 3 seeds)"),
        (difference(1, 0.5, 2), r"lowers accuracy by 1.00 points (95\,\% interval $-$2.00 to $-$0.50, 3 seeds)"),
        (
            difference(-0.4, -1, 0.1, 1),
            r"cannot be judged by 1 seed ($+$0.40 points, 95\,\% interval $-$0.10 to $+$1.00 over images)",
        ),
        (
            difference(-0.4, -1, 0.1),
            "makes no difference that 3 seeds can show ($+$0.40 points)",
        ),
        (difference(np.nan, np.nan, np.nan, 0), verdicts.UNMEASURED),
    ],
)
def test_a_difference_is_one_only_where_its_interval_leaves_out_zero(row, phrase):
    assert verdicts.effect(with_rows(no_se=row), "no_se") == phrase


def test_an_absent_experiment_is_not_measured():
    assert verdicts.effect(with_rows(), "no_se") == "has not been measured yet"


def test_the_changes_that_move_accuracy_are_named_the_largest_first():
    rows = {
        "no_se": difference(-1, -2, -0.5) | {"title": "No squeeze-and-excitation"},
        "lr_step": difference(0.5, -1, 2) | {"title": "Step decay"},
        "aug_flips": difference(5, 3, 7) | {"title": "Flips alone", "mean": 0.96},
        "aug_none": difference(9, 8, 10, 1) | {"title": "No augmentation"},
        "simple_cnn": difference(-20, -21, -19) | {"title": "SimpleCNN"},
    }
    assert verdicts.changes(with_rows(**rows)) == (
        "Of 3 variants of the main recipe, 2 differ from it in accuracy: "
        r"flips alone ($+$5.00 points, 95\,\% interval $+$3.00 to $+$7.00) and "
        r"no squeeze-and-excitation ($-$1.00 points, 95\,\% interval $-$2.00 to $-$0.50)."
    )
    assert "Flips alone reach 96.00" in verdicts.flips(with_rows(**rows))
    rows = {"aug_flips": difference(1, -1, 3) | {"title": "Flips alone", "mean": 0.96}}
    assert verdicts.changes(with_rows(**rows)) == "Of 1 variant of the main recipe, none differs from it in accuracy."
    assert verdicts.flips(with_rows(**rows)) == ""
    assert verdicts.changes(with_rows()) == "No variant of the main recipe is measured with two seeds yet."


def test_what_lies_beyond_the_reference_names_what_it_was_set_against():
    rows = {
        "growing_images": difference(-1, -2, 0.5) | {"title": "Images that grow", "group": "speed"},
        "with_turns": difference(0.5, 0.1, 1, 1) | {"title": "Flips and quarter turns", "group": "lever"},
        "cv_fold0": difference(5, 3, 7) | {"title": "Fold 1 of 5", "group": "cv"},
    }
    assert beyond.tried(with_rows(**rows)) == (
        "Of 1 change to the main recipe beyond the reference's own, none differs from it in accuracy. With one seed, "
        "which screens and proves nothing, 1 change to flips alone lies at $+$0.50 (flips and quarter turns) points."
    )
    names = [name for name, row in EXPERIMENTS.items() if row.group == "part"][:5]
    many = {
        name: difference(k, k - 0.5, k + 0.5) | {"title": f"L{k}", "group": "part"} for k, name in enumerate(names, 1)
    }
    told = beyond.tried(with_rows(**many))
    assert told == beyond.tried(with_rows(**rows, **many), TRIED)
    assert "l5" in told and "l5" not in beyond.tried(with_rows(**rows, **many), FURTHER)
    assert told.startswith("Of 5 changes to the best recipe cut short, 5 differ")
    assert told.count("points") == verdicts.NAMED
    assert "5 differ from it in accuracy, most of all: l5 ($+$5.00" in told
    for row in many.values():
        row["common_seeds"] = 1
    assert beyond.tried(with_rows(**many)).endswith("lie from $+$1.00 (l1) to $+$5.00 (l5) points.")
    assert beyond.tried(with_rows(), FURTHER) == (
        "No change to the main recipe, flips alone, the best recipe, the travelled recipe, the patient recipe beyond "
        "the reference's own is measured yet."
    )


def test_cross_validation_pools_its_folds(tmp_path):
    folds = [f"cv_fold{k}" for k in range(5)]
    write_records(tmp_path / "some", folds[:3], seeds=(0,))
    some = Study.of(load_records(tmp_path / "some"), "cpu")
    assert reached.cross_validation(some) == "Of the five folds of cross-validation, 3 are recorded."
    write_records(tmp_path / "all", folds, seeds=(0,))
    records = load_records(tmp_path / "all")
    told = reached.cross_validation(Study.of(records, "cpu"))
    scores = [100 * record.info["final_validation_accuracy"] for record in records]
    images = sum(record.info["data"]["validation"] for record in records)
    assert rf"{np.mean(scores):.2f}\,\% of {images:,} images" in told
    assert rf"between {min(scores):.2f} and {max(scores):.2f}" in told


def test_the_best_recipe_is_told_with_its_folds(tmp_path):
    assert beyond.best(Study.of([], "cpu")) == "The best recipe has not been measured yet."
    write_records(tmp_path, ["best"])
    alone = beyond.best(Study.of(load_records(tmp_path), "cpu"))
    assert alone.startswith("The best recipe trains a slim ResNet-18 of ")
    assert alone.endswith("else by the main recipe.")
    write_records(tmp_path, [*FOLDS["main"], *FOLDS["best"][1:]], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    told = beyond.best(study)
    right = {name: [r.validation() for fold in FOLDS[name] for r in study.runs(fold) if r.seed == 0] for name in FOLDS}
    hits = {name: [(run.predicted == run.labels).mean() for run in runs] for name, runs in right.items()}
    assert rf"on the others it names {100 * np.mean(hits['best'][1:]):.2f}\,\% of 2,560 rightly" in told
    assert rf"names {100 * np.mean(hits['best']):.2f}\,\% of all 3,200" in beyond.best_in_short(study)
    assert "with flips and quarter turns as its only augmentation" in told
    assert beyond.best_in_short(Study.of(load_records(tmp_path)[:2], "cpu")) == ""


def test_recipes_stand_side_by_side_in_words_and_in_a_table(tmp_path):
    write_records(tmp_path, [*FOLDS["best"], *FOLDS["magnified"], *FOLDS["hardy"][:4], "seasoned"], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    told = beyond.further(study)
    assert (
        told.startswith("The others of the table: magnified, the central ") and "; hardy, turned by any angle" in told
    )
    assert "travelled" not in told and beyond.further(Study.of([], "cpu")) == ""
    rows = {row[0]: row[1:] for row in tables.recipes(study).rows}
    assert list(rows) == ["Best", "Magnified", "Hardy", "Seasoned", "2 averaged"]
    hits = {
        name: [next(r.validation() for r in study.runs(fold)) for fold in FOLDS[name]] for name in ("best", "magnified")
    }
    shares = {name: [100 * (run.predicted == run.labels).mean() for run in runs] for name, runs in hits.items()}
    for name, own in shares.items():
        assert rows[name.capitalize()][3].startswith(f"{np.mean(own):.2f} [")
    ahead = np.mean(shares["magnified"][1:]) - np.mean(shares["best"][1:])
    assert rows["Magnified"][4].startswith(latex.signed(ahead)) and rows["Best"][4] == ""
    assert rows["Hardy"][3:5] == ("--", "--"), "a fold is missing"
    epochs = [study.runs(name)[0].info["config"]["train"]["epochs"] for name in ("magnified", "seasoned")]
    assert rows["Seasoned"][0] == f"{epochs[0]}+{epochs[1]}" and rows["Magnified"][0] == str(epochs[0])
    write_records(tmp_path, ["patient_travelled"], seeds=(0,))
    longer = Study.of(load_records(tmp_path), "cpu")
    assert "; patient travelled, fine-tuned from patient likewise" in beyond.further(longer)
    assert "Patient travelled" in [row[0] for row in tables.recipes(longer).rows]
    # The abstract tells the latest recipe that is cross-validated.
    told = beyond.best_in_short(study)
    assert rf"names {np.mean(shares['magnified']):.2f}\,\% of all 3,200" in told
    assert told.endswith("; a fifth of them had a say in its choice.") and "in turn" not in told
    assert "It was chosen on the split, the first fold" in reached.unseen(study, "best")
    latest = OURS[-1]
    write_records(tmp_path, ["patient", *FOLDS[latest]], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    runs = [study.runs(fold)[0].validation() for fold in FOLDS[latest]]
    share = np.mean([100 * (run.predicted == run.labels).mean() for run in runs])
    told = beyond.best_in_short(study)
    assert rf"names {share:.2f}\,\% of all 3,200" in told and told.endswith("; all had a say in its choice.")
    chain = ("patient", "patient_travelled", latest)
    stages = [study.runs(name)[0].info["config"]["train"]["epochs"] for name in chain]
    assert "and {}, {} and {} epochs in turn".format(*stages) in told
    assert "in view of what others reach on all folds, which flatters it" in reached.unseen(study, latest)


def test_the_table_of_recipes_tells_what_is_kept_elsewhere_and_what_they_reach_together(tmp_path):
    write_records(tmp_path, ["best", "hardy"], seeds=(0,))
    sites = {"less": 0.96, "more": 0.94, "all": 0.8}
    undone = {"sites": {key: {"accuracy": value, "share": value} for key, value in sites.items()}}
    reading = {"experiments": {"undone": undone}, "sites": dict.fromkeys(sites, ""), "goals": {"alone": 0.95}}
    found = {"reading_hardy": {"experiment": "hardy", "result": reading}}
    rows = {row[0]: row[1:] for row in tables.recipes(Study.of(load_records(tmp_path), "cpu", found)).rows}
    assert rows["Hardy"][5:] == ("1 of 2", "80.0") and rows["Best"][5:] == ("--", "--")
    assert not any("averaged" in words for words in rows), "no recipe has all folds"
    write_records(tmp_path, [*FOLDS["best"][1:], *FOLDS["hardy"][1:]], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu", found)
    right, low, high = compare.share(compare.averaged([study.folds(name) for name in ("best", "hardy")]))
    reached = f"{100 * right:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    assert tables.recipes(study).rows[-1][:5] == ("2 averaged", "", "", "", reached)
    assert beyond.last_rows(study) == "2 averaged: the probabilities of all but main."
    write_records(tmp_path, ["magnified"], seeds=(0,))
    more = Study.of(load_records(tmp_path), "cpu", found)
    assert beyond.last_rows(more) == "2 averaged: best and hardy."
    both = {"networks": 2, "accuracy": 0.9, "low": 0.85, "high": 0.95}
    found["trust_hardy"] = {"experiment": "hardy", "result": {"tta": {"with_earlier": both}}}
    turned = Study.of(load_records(tmp_path), "cpu", found)
    assert tables.recipes(turned).rows[-1][:5] == ("2 stages turned", "", "", "", "90.00 [85.00, 95.00]")
    told = "2 stages turned: hardy and what it started from, averaged over the eight symmetries."
    assert beyond.last_rows(turned).endswith(told)
    both["seeds"] = {"networks": 4, "each": [0.9, 0.91], "accuracy": 0.92, "low": 0.87, "high": 0.96}
    assert tables.recipes(turned).rows[-1][:5] == ("4 networks turned", "", "", "", "92.00 [87.00, 96.00]")
    assert beyond.last_rows(turned).endswith(
        rf"{told} 4 networks turned: these of 2 seeds (the other alone: 91.00\,\%)."
    )


def test_a_recipe_is_told_without_each_of_its_levers(tmp_path):
    write_records(tmp_path, ["patient", "patient_not_scaled", "patient_not_rotated"], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    rows = sorted((study.row(f"patient_not_{name}")["difference"], f"(not {name})") for name in ("scaled", "rotated"))
    told = " and ".join(f"{latex.signed(points)} {words}" for points, words in rows)
    assert beyond.levers(study) == f"With one lever less, the patient recipe changes by {told} points (1 seed)."
    assert beyond.levers(Study.of(load_records(tmp_path)[:1], "cpu")) == ""


def test_the_foremost_recipe_is_set_against_the_main_one_on_all_folds(tmp_path):
    write_records(tmp_path, FOLDS["hardy"], seeds=(0,))
    assert reached.over_main(Study.of([], "cpu")) == reached.over_main(Study.of(load_records(tmp_path), "cpu")) == ""
    write_records(tmp_path, FOLDS["main"], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    ours, theirs = (compare.out_of_fold(study.folds(name)) for name in ("hardy", "main"))
    ahead, told = compare.difference(ours, theirs), reached.over_main(study)
    assert f"the hardy recipe against the main one: {latex.signed(ahead.mean)} points" in told
    assert latex.signed(ahead.low) in told and f"{latex.signed(ahead.high)}, exact McNemar $p$ " in told
    assert told.endswith("1 seed).")


def test_of_how_many_seeds_the_folds_are(tmp_path):
    write_records(tmp_path, [*FOLDS["best"], *FOLDS["hardy"]], seeds=(0,))
    write_records(tmp_path, FOLDS["hardy"], seeds=(1,))
    study = Study.of(load_records(tmp_path), "cpu")
    counts = beyond.seeds_out_of_fold(study)
    assert counts == {"best": 1, "hardy": 2} and beyond.by_seeds(counts) == "of 2 seeds for hardy, else of one"
    shared = beyond.seeds_out_of_fold(study, "best")
    assert shared == {"hardy": 1} and beyond.by_seeds(shared) == "of one seed"
    assert beyond.by_seeds({"best": 2, "patient_travelled": 2}) == "of 2 seeds for best and patient travelled"
    runs = [[r.accuracy() for fold in FOLDS["hardy"] for r in study.runs(fold) if r.seed == seed] for seed in (0, 1)]
    told = beyond.best_in_short(study)
    assert rf"names {100 * np.mean(runs):.2f}\,\% of all 3,200" in told and r"(mean of 2 seeds, 95\,\% int" in told
    row = next(row for row in tables.recipes(study).rows if row[0] == "Hardy")
    assert row[4].startswith(f"{100 * np.mean(runs):.2f} [")


def test_the_last_recipe_is_told_beside_what_is_left_of_it_without_a_stage(tmp_path):
    write_records(tmp_path, ["magnified", "seasoned", "travelled"], seeds=(0,))
    alone = Study.of(load_records(tmp_path), "cpu")
    assert [row[0] for row in tables.changes(alone, "travelled").rows] == ["Travelled recipe"]
    assert documents.changes(alone, "travelled") == ""
    write_records(tmp_path, ["travelled_at_home", "travelled_at_once"], seeds=(0,))
    undone = {"sites": {key: {"accuracy": 0.8, "share": 0.96} for key in ("less", "all")}}
    reading = {"experiments": {"undone": undone}, "sites": {"less": "", "all": ""}, "goals": {"alone": 0.95}}
    found = {"reading_travelled_at_home": {"experiment": "travelled_at_home", "result": reading}}
    study = Study.of(load_records(tmp_path), "cpu", found)
    whole, home, once = tables.changes(study, "travelled").rows
    assert documents.changes(study, "travelled").count("\n| Travelled recipe") == 3
    epochs = [study.runs(name)[0].info["config"]["train"]["epochs"] for name in ("magnified", "seasoned")]
    assert whole[1].startswith("+".join(map(str, epochs)) + "+") and whole[1].endswith(r"$\times$3") and whole[3] == ""
    assert home[1].startswith("+".join(map(str, epochs)) + "+") and "times" not in home[1] and "+" not in once[1]
    gain = 100 * (study.row("travelled_at_home")["mean"] - study.row("travelled")["mean"])
    assert home[3].startswith(latex.signed(gain)) and home[4:] == ("1", "1 of 1", "80.0") and once[5:] == ("--", "--")


def test_the_patient_recipe_is_told_beside_what_is_left_of_it_without_a_lever(tmp_path):
    write_records(tmp_path, ["patient", "patient_not_rotated", "patient_not_longer"], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    told = documents.changes(study, "patient")
    assert told.startswith("### Changes to the patient recipe") and told.count("\n| Patient recipe") == 3
    table = tables.changes(study, "patient")
    assert table.head == ("Recipe", "Epochs", "Split", "Difference", "Seeds") and table.rows[0][3] == ""
    gain = 100 * (study.row("patient_not_rotated")["mean"] - study.row("patient")["mean"])
    assert next(row for row in table.rows if row[0].endswith("not rotated"))[3].startswith(latex.signed(gain))


def test_it_is_told_what_turning_before_shrinking_does(tmp_path):
    write_records(tmp_path, ["best_short", "short_free_rotation"], seeds=(0,))
    assert beyond.sharpness(Study.of(load_records(tmp_path), "cpu")) == ""
    both = write_records(tmp_path / "alone", ["short_free_rotation", "short_halved_rotation"], seeds=(0,))
    assert len(both) == 2 and beyond.sharpness(Study.of(load_records(tmp_path / "alone"), "cpu")) == ""
    shutil.rmtree(tmp_path / "alone")
    write_records(tmp_path, ["short_halved_rotation"], seeds=(0,))
    study = Study.of(load_records(tmp_path), "cpu")
    told = beyond.sharpness(study)
    for name in ("short_free_rotation", "short_halved_rotation"):
        assert f"by {latex.signed(study.row(name)['difference'])} " in told
    assert told.startswith("Any rotation changes the best recipe cut to ")


def test_what_undoing_gains_is_told_of_the_last_recipe_of_ours():
    def analysed(clean: float, less: float, everything: float) -> dict:
        rows = {"less": less, "more": 0.99 * clean, "all": everything}
        sites = {key: {"accuracy": value, "share": value / clean} for key, value in rows.items()}
        return {"clean": {"accuracy": clean}, "sites": sites, "difference": {"points": -0.5}, "seeds": 1}

    def result(*undone: float) -> dict:
        experiments = {"plain": analysed(0.98, 0.5, 0.25), "undone": analysed(*undone)}
        names = dict.fromkeys(("less", "more", "all"), "A site")
        return {"result": {"experiments": experiments, "sites": names, "goals": {"alone": 0.95, "together": 0.9}}}

    assert beyond.undone(Study([], "cpu")) == ""
    found = {"reading_best": result(0.975, 0.8, 0.6), "reading_hardy": result(0.97, 0.96, 0.88)}
    told = beyond.undone(Study([], "cpu", found))
    assert r"where the hardy recipe keeps 95\,\% of its accuracy from 1 to 2 of 2" in told
    assert r"and its accuracy where all is changed from 25.0 to 88.0\,\%; unchanged pictures" in told


def test_doubts_about_labels_are_counted_for_both_recipes():
    def study(main: str, best: str) -> Study:
        found = {"labels": main, "labels_best": best}
        results = {k: {"suspected": len(v), "suspects": [{"name": name} for name in v]} for k, v in found.items()}
        return Study([], "cpu", {name: {"result": result} for name, result in results.items()})

    assert beyond.doubts(study("abcde", "ax")) == (
        "The best recipe's networks suspect 2 labels, the main recipe's 5, with 1 in common: most of what looks like a "
        "wrong label is a network's own mistake."
    )
    assert beyond.doubts(study("abc", "abc")).endswith("3 in common.")
    assert beyond.doubts(Study([], "cpu")) == ""


@pytest.mark.parametrize(
    ("full", "words"),
    [(-4, "the gap is at least halved for SimpleCNN"), (-6, "the gap is halved for none of them")],
)
def test_a_gap_is_one_of_budget_where_the_recipe_halves_it(full, words):
    rows = {"simple_cnn": difference(-10, -11, -9), "simple_cnn_full": difference(full, full - 1, full + 1)}
    assert words in verdicts.budget(with_rows(**rows))
    rows["simple_cnn_full"] = difference(full, full - 1, full + 1, 1)
    assert "halved" not in verdicts.budget(with_rows(**rows)), "one seed judges nothing"


def test_rivals_are_named_once_all_baselines_have_run():
    rows = {f"{name}_full": difference(-1, -3, 1) for name in verdicts.BASELINES}
    first = "Of the baselines by the same recipe, "
    assert verdicts.rivals(with_rows(**rows)) == f"{first}none differs from it in accuracy."
    rows["resnet18_full"] = difference(4, 2, 6)
    ahead = "ResNet-18 (4.00 points, 2.00 to 6.00, 3 seeds)"
    assert verdicts.rivals(with_rows(**rows)) == f"{first}{ahead} is ahead of it."
    rows["simple_cnn_full"] = difference(-3, -4, -2)
    behind = "SimpleCNN (3.00 points, 2.00 to 4.00, 3 seeds)"
    assert verdicts.rivals(with_rows(**rows)) == f"{first}{ahead} is ahead of it, and {behind} is behind it."
    rows["simple_cnn_full"] = difference(-3, -4, -2, 1)
    screened = "with one seed, which judges nothing, SimpleCNN $-$3.00 points"
    assert verdicts.rivals(with_rows(**rows)) == f"{first}{ahead} is ahead of it; {screened}."
    alone = {name: difference(-3, -4, -2, 1) for name in rows}
    assert verdicts.rivals(with_rows(**alone)).startswith(f"{first}with one seed, which judges nothing, ")
    del rows["simple_cnn_full"]
    assert verdicts.rivals(with_rows(**rows)) == ""


def test_a_baseline_that_overtakes_is_said_to():
    rows = {"resnet18": difference(-7, -9, -5), "resnet18_full": difference(4, 2, 6)}
    told = verdicts.budget(with_rows(**rows))
    assert "from $+$7.00 (3 seeds) to $-$4.00 (3 seeds) for ResNet-18" in told
    assert "By the rule above, ResNet-18 then is ahead of it." in told and "halved for ResNet-18" in told
    rows = {"resnet18": difference(-7, -9, -5), "resnet18_full": difference(1, -1, 3)}
    assert "then" not in verdicts.budget(with_rows(**rows))


def test_a_baseline_that_was_never_behind_has_no_gap_to_explain():
    rows = {"resnet18": difference(1, 0, 2), "resnet18_full": difference(2, 1, 3)}
    assert "halved" not in verdicts.budget(with_rows(**rows))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "--"), (np.nan, "--"), (1234.5, "1,234.50"), (-0.5, "$-$0.50"), (0, "0.00")],
)
def test_number(value, text):
    assert latex.number(value, 2) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "$10^{-3}$"),
        (1.5e-3, r"$1.5 \cdot 10^{-3}$"),
        (3e-4, r"$3 \cdot 10^{-4}$"),
        (0.2, "0.2"),
        (32, "32"),
        (0.0, "0"),
    ],
)
def test_setting(value, text):
    assert latex.plain(value) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("96.82 ± 0.94 % (n = 3)", r"96.82 $\pm$ 0.94\,\% (n = 3)"),
        ("+2.57, 96.81 to 99.38", "$+$2.57, 96.81 to 99.38"),
        ("ResNet-18 & a_b", r"ResNet-18 \& a\_b"),
    ],
)
def test_escape(text, escaped):
    assert latex.escape(text) == escaped


# The PDF


@needs_latex
def test_the_whole_study_builds_and_the_same_records_give_the_same_bytes(whole, tmp_path):
    first = report.build(whole / "results", tmp_path / "a", figures=whole / "figures")
    assert first == tmp_path / "a" / "report.pdf"
    assert {path.name for path in first.parent.iterdir()} == {"report.pdf", "generated"}
    second = report.build(whole / "results", tmp_path / "b", tmp_path / "other.pdf", figures=whole / "figures")
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()
    pages = text_of(first)
    last = next(k for k, page in enumerate(pages, 1) if re.search(r"R\s?EFERENCES", page))
    assert last <= report.PAGES + 1
    assert "nder review" not in "".join(pages)
    assert "not drawn" not in "".join(pages)


@needs_latex
def test_a_part_of_the_study_builds(tmp_path):
    pdf = report.build(part(tmp_path / "results"), tmp_path / "report", figures=tmp_path)
    pages = " ".join(" ".join(text_of(pdf)).split())
    assert "The study is partial" in pages
    assert "This figure is not drawn" in pages


@needs_latex
def test_the_demo_stamps_every_page(tmp_path):
    pdf = report.build(demo(tmp_path / "runs"), tmp_path / "report", None, tmp_path, STAMP, "demo/study")
    assert all(STAMP in page.splitlines()[0] for page in text_of(pdf))


@needs_latex
def test_nothing_recorded_builds_too(tmp_path):
    assert report.build(tmp_path / "none", tmp_path / "report", figures=tmp_path).is_file()


@needs_latex
def test_wide_lines_and_undefined_names_are_named(tmp_path):
    new = r"\citet{nobody1900} and Section~\ref{sec:nowhere} \mbox{" + 90 * "wide" + r"} \section{Related work}"
    folder = mutated(tmp_path / "report", r"\section{Related work}", new)
    with pytest.raises(RunFailed) as failure:
        report.build(tmp_path / "none", folder, figures=tmp_path)
    message = str(failure.value)
    line = next(k for k, text in enumerate((folder / "report.tex").read_text().splitlines(), 1) if "nobody" in text)
    assert f"report.tex, line {line}: undefined citation 'nobody1900'" in message
    assert f"report.tex, line {line}: undefined reference 'sec:nowhere'" in message
    assert re.search(r"A box is [\d.]+ pt too large in paragraph", message)
    assert not (folder / "report.pdf").exists()


@needs_latex
def test_an_error_is_named_with_its_line(tmp_path):
    folder = mutated(tmp_path / "report", r"\section{Related work}", r"\NoSuchMacro \section{Related work}")
    line = next(k for k, text in enumerate((folder / "report.tex").read_text().splitlines(), 1) if "NoSuch" in text)
    with pytest.raises(RunFailed, match=rf"report.tex, line {line}: Undefined control sequence"):
        report.build(tmp_path / "none", folder, figures=tmp_path)


@needs_latex
def test_a_text_beyond_the_limit_is_refused(tmp_path):
    folder = mutated(tmp_path / "report", r"\section{Conclusion}", r"\newpage~\newpage~\newpage\section{Conclusion}")
    with pytest.raises(RunFailed, match=r"too long: '.*' stands on page \d"):
        report.build(tmp_path / "none", folder, figures=tmp_path)


@needs_latex
def test_the_official_style_is_used_where_the_user_puts_it_and_its_head_is_not(tmp_path):
    folder = mutated(tmp_path / "report", r"\section{Conclusion}", r"\section{Conclusion}")
    style = (folder / "bloodreport.sty").read_text().replace("{bloodreport}", "{iclr2024_conference}")
    style = style.replace(r"\endinput", "").replace(
        r"\thispagestyle{fancy}", r"\lhead{Under review as a conference paper}\typeout{official}"
    )
    (folder / "iclr2024_conference.sty").write_text(style + "\\newcommand{\\iclrfinalcopy}{}\n\\endinput\n")
    bst = subprocess.run(["kpsewhich", "plainnat.bst"], capture_output=True, text=True, check=True).stdout.strip()
    shutil.copy(bst, folder / "iclr2024_conference.bst")
    (folder / "bloodreport.sty").write_text(r"\errmessage{the stand-in was loaded}")
    pdf = report.build(tmp_path / "none", folder, figures=tmp_path)
    assert "nder review" not in "".join(text_of(pdf))


def test_faults_reads_a_log():
    log = (
        "Overfull \\hbox (4.9pt too wide) in paragraph at lines 1--2\n[]\n"
        "Overfull \\vbox (30.0pt too high) has occurred while \\output is active []\n"
        "LaTeX Warning: Label `fig:a' multiply defined.\n"
        "Missing character: There is no é in font ptmr7t!\n"
    )
    aux = "\\newlabel{fig:a}{{1}{6}{A caption}{figure.1}{}}\n\\newlabel{end}{{8}{7}{}{}{}}\n"
    found = report.faults(log, aux)
    assert len(found) == 4
    assert found[0].startswith("A box is 30.0 pt too large")
    assert "'fig:a' is defined twice" in found[1]
    assert "no é in font" in found[2]
    assert "'end' stands on page 7" in found[3]
    assert report.faults("", aux.splitlines()[0]) == []


def test_missing_latex_is_one_sentence_that_names_the_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.missing_packages() == sorted(set(report.NEEDED.values()))
    with pytest.raises(BloodcellError, match="install the Debian packages latexmk texlive-fonts-recommended"):
        report.build(tmp_path / "none", tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


@needs_latex
def test_one_missing_program_is_one_package(tmp_path, monkeypatch):
    for name in ("pdflatex", "kpsewhich"):
        os.symlink(shutil.which(name), tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.missing_packages() == ["latexmk"]


def test_planned_experiments_have_words_for_their_groups():
    groups = {row.group for row in STUDY.values()} - {"main", "baseline"}
    assert groups == set(tables.GROUPS)
