from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_records import write_records

from bloodcell_lib import documents, paths, predict, report, sentences, tables
from bloodcell_lib.documents import DOCUMENTS, NOTHING, filled, markdown, update
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import EXPERIMENTS, RECIPES, STUDY, measured
from bloodcell_lib.records import load_records
from bloodcell_lib.reference import CLAIMS

BLOCKS = ("results", "claims", "asked", "tried", "trust", "network", "evaluation")
MAKERS = {name: getattr(documents, name) for name in BLOCKS}


def published() -> str:
    """The experiment that tells how the published network does."""
    return measured(predict.load_set(documents.WEIGHTS)[0]["experiment"])


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Study]:
    """A whole study, parts of one with and without its main model, one run, and none."""
    root = tmp_path_factory.mktemp("studies")
    write_records(root / "whole", list(EXPERIMENTS))
    write_records(root / "part", ["main", "no_se"], seeds=(0, 1))
    write_records(root / "part", ["simple_cnn", "final"], seeds=(0,))
    write_records(root / "headless", ["efficientnet_lite"], seeds=(0,))
    write_records(root / "one", ["main"], seeds=(0,))
    write_records(root / "full", ["main"], seeds=(0,), profile="full")
    kinds = ("whole", "part", "headless", "one", "full", "none")
    return {kind: Study.of(load_records(root / kind), "full" if kind == "full" else "cpu") for kind in kinds}


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A folder with the documents as they are in the repository."""
    (tmp_path / "report").mkdir()
    for name in DOCUMENTS:
        (tmp_path / name).write_text((paths.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


# What is committed


def test_the_committed_documents_say_what_the_committed_records_give(copies):
    before = {name: (copies / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    assert update(paths.REPORT / "results", copies) == [], "run `make report` and commit what it changes"
    assert {name: (copies / name).read_text(encoding="utf-8") for name in DOCUMENTS} == before


def test_the_committed_numbers_of_the_report_are_those_of_the_committed_records(tmp_path):
    written = report.generate(folder=tmp_path)
    for path in written:
        committed = paths.REPORT / "generated" / path.name
        assert text(path) == text(committed), f"{committed}: run `make report` and commit what it changes"
    assert {path.name for path in written} == {path.name for path in (paths.REPORT / "generated").glob("*.tex")}


# Filling


def test_documents_are_filled_once_and_then_left_alone(copies, tmp_path):
    write_records(tmp_path / "results" / "cpu", ["main", "no_se"], seeds=(0, 1))
    outside = {name: re.split(r"<!-- begin .*?<!-- end \w+ -->", text(copies / name), flags=re.S) for name in DOCUMENTS}
    assert update(tmp_path / "results", copies) == [copies / name for name in DOCUMENTS]
    made = {name: text(copies / name) for name in DOCUMENTS}
    for name, said in made.items():
        assert NOTHING not in said
        assert re.search("Under the profile `cpu`|No speed is recorded yet|### The reference's study", said)
        assert re.split(r"<!-- begin .*?<!-- end \w+ -->", said, flags=re.S) == outside[name], "the prose is the user's"
    times = {name: (copies / name).stat().st_mtime_ns for name in DOCUMENTS}
    assert update(tmp_path / "results", copies) == []
    assert {name: (copies / name).stat().st_mtime_ns for name in DOCUMENTS} == times
    assert {name for wanted in DOCUMENTS.values() for name in wanted} == {*MAKERS, "performance", "speed"}
    of_runs = [name for name, wanted in DOCUMENTS.items() if set(wanted) & {*MAKERS}]
    assert update(tmp_path / "nothing", copies) == [copies / name for name in of_runs]
    assert all(NOTHING in text(copies / name) for name in of_runs)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


BEGIN, END = "<!-- begin results -->", "<!-- end results -->"


def test_what_stands_between_the_markers_is_replaced():
    assert filled(f"a\n{BEGIN}old\n\nolder{END}\nz", {"results": "new"}, "x") == f"a\n{BEGIN}\n\nnew\n\n{END}\nz"


@pytest.mark.parametrize(
    "wrong",
    [
        *("no marker", BEGIN, END, END + BEGIN, BEGIN + BEGIN + END + END, (BEGIN + END) * 2),
        *(f"{BEGIN}{END}<!-- begin other --><!-- end other -->", f"{BEGIN}<!-- end other -->"),
    ],
)
def test_markers_out_of_order_are_told(wrong):
    with pytest.raises(BloodcellError, match=r"The markers in README\.md are not in order"):
        filled(wrong, {"results": "new"}, "README.md")


def test_nothing_is_written_unless_all_documents_can_be(copies, tmp_path):
    write_records(tmp_path / "results" / "cpu", ["main"], seeds=(0,))
    readme = text(copies / "README.md")
    (copies / "MODEL_CARD.md").write_text("no marker")
    with pytest.raises(BloodcellError, match=r"MODEL_CARD\.md are not in order"):
        update(tmp_path / "results", copies)
    (copies / "MODEL_CARD.md").unlink()
    with pytest.raises(BloodcellError, match=r"There is no .*MODEL_CARD\.md"):
        update(tmp_path / "results", copies)
    assert text(copies / "README.md") == readme
    assert not [path for path in copies.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(bool(report.missing_packages()), reason="LaTeX is not complete here")
def test_a_clone_prints_its_records_with_two_commands_each_within_a_minute(tmp_path):
    clone = tmp_path / "clone"
    for name in ("bloodcell_lib", "report"):
        shutil.copytree(paths.ROOT / name, clone / name, ignore=shutil.ignore_patterns("results", "generated", "*.pyc"))
    for name in ("data/manifest.csv", *DOCUMENTS):
        (clone / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths.ROOT / name, clone / name)
    once = [name for name, row in EXPERIMENTS.items() if row.seeds == 1]
    several = [name for name in EXPERIMENTS if name not in once]
    for names, seeds in ((several, (0, 1, 2)), (once, (0,))):
        write_records(clone / "report" / "results" / "cpu", names, seeds, epochs=50)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BLOODCELL_")}
    for command in ("figures", "report", "report"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [sys.executable, "-m", "bloodcell_lib.cli", command],
            cwd=clone,
            env={**environment, "PYTHONPATH": str(clone)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 60, "seconds, without images"
    assert done.stdout.split() == [str(clone / "report" / "report.pdf")], "the second time no document changes"
    assert "All 48 runs of the study are recorded" in flat(text(clone / "README.md"))
    assert "| Basophil |" in text(clone / "MODEL_CARD.md")
    sizes = [path.stat().st_size for path in (clone / "report" / "results").rglob("*.npz")]
    assert len(list((clone / "figures").glob("*.pdf"))) == 10 and sum(sizes) < 20_000_000
    assert not (clone / "runs").exists() and not (clone / "data" / "cache").exists()


# What the blocks say


@pytest.mark.parametrize("kind", ["whole", "part", "headless", "one", "full", "none"])
@pytest.mark.parametrize("block", MAKERS)
def test_each_block_is_markdown_whatever_is_recorded(studies, kind, block):
    made = MAKERS[block](studies[kind])
    assert not re.search(r"[\\$]|\bnan\b|None|<!--", made)
    lines = made.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    for part in made.split("\n\n"):
        cells = {line.count("|") for line in part.splitlines() if line.startswith("|")}
        assert len(cells) <= 1, "a table's lines have as many cells as its head"
    assert all(len(line) <= 120 for line in lines if line not in rows)
    if kind == "none" and block != "network":
        assert made == NOTHING


def test_every_sentence_of_the_report_can_be_said_in_markdown(studies):
    for kind, study in studies.items():
        for name, said in sentences.sentences(study).items():
            assert not re.search(r"[\\${}]", markdown(said)), (kind, name, said)
    assert markdown(r"$-$0.42 [$-$1.77, $+$0.94] $\pm$ 3\,\% \texttt{a\_b} $<$0.001") == (
        "−0.42 [−1.77, +0.94] ± 3 % `a_b` <0.001"
    )
    assert markdown("--") == "–" and markdown("`trust --only labels`") == "`trust --only labels`"


def flat(made: str) -> str:
    return " ".join(made.split())


def test_results_are_those_of_the_records(studies):
    study = studies["whole"]
    made = flat(documents.results(study))
    finals = [100 * record.info["final_validation_accuracy"] for record in study.runs("main")]
    row = study.row("main")
    assert f"reaches {np.mean(finals):.2f} ± {np.std(finals, ddof=1):.2f} % of 640 validation images" in made
    assert f"(95 % interval {100 * row['mean_low']:.2f} to {100 * row['mean_high']:.2f} %)" in made
    assert (
        "Under the profile `cpu`, with 112 × 112 pixels and 5 epochs, on a processor (2 threads): With 3 seeds, the"
        in made
    )
    assert "not those of `full` (224 × 224 pixels, 50 epochs)" in made
    assert "All 48 runs of the study are recorded" in made and "at commit abc123" in made
    grid = documents.tried(study)
    assert all(f"\n| {row.title} | " in grid for name, row in STUDY.items() if name != "final")
    for name in ("simple_cnn", "resnet18", "efficientnet_lite"):
        for key in (name, f"{name}_full"):
            assert f"{100 * study.row(key)['mean']:.2f} ± {100 * study.row(key)['std']:.2f}" in made


def test_a_part_is_told_as_a_part(studies):
    part, one, headless = (flat(documents.results(studies[kind])) for kind in ("part", "one", "headless"))
    assert "With 2 seeds, the main recipe reaches" in part and "The study is partial: 6 of its 48 runs" in part
    assert re.search(r"With 1 seed, the main recipe reaches \d\d\.\d\d % of", one)
    assert "The main recipe has not been measured yet." in headless
    own = flat(documents.results(studies["full"]))
    for words in ("Under the profile `full`", "Both tables are of `full`"):
        own = own.replace(words, "")
    assert "`full`" not in own


def test_runs_on_drawn_cells_are_told_as_such(tmp_path):
    write_records(tmp_path, ["main"], seeds=(0,))
    for path in tmp_path.rglob("record.json"):
        info = json.loads(path.read_text())
        info["data"] |= {"course": False, "source": "synthetic cells"}
        path.write_text(json.dumps(info))
    study = Study.of(load_records(tmp_path), "cpu")
    assert "say nothing about blood" in flat(documents.results(study))
    assert "say nothing about blood" in flat(documents.evaluation(study))


def test_the_reference_s_own_size_comes_first_and_its_gains_stand_by_best_epochs_too(tmp_path):
    for profile, seeds in (("cpu", (0, 1, 2)), ("full", (0, 1))):
        write_records(tmp_path / profile, ["main", "no_se"], seeds, profile=profile)
    cpu, full = (load_records(tmp_path / profile) for profile in ("cpu", "full"))
    study = Study.of(cpu, "cpu", full=full)
    first, second, *_ = documents.results(study).split("\n\n")
    assert first.startswith("Under the profile `full`") and "With 2 seeds, the main" in flat(first)
    assert second.startswith("Under the profile `cpu`") and "With 3 seeds, the main" in flat(second)
    best = {name: [r.accuracy("best") for r in cpu if r.experiment == name] for name in ("main", "no_se")}
    gain = 100 * (np.mean(best["main"]) - np.mean(best["no_se"]))
    told = flat(documents.claims(study))
    assert f"our runs have squeeze-and-excitation {gain:+.2f} points".replace("-0", "−0") in told.replace("-0", "−0")
    assert "2 of 48 runs" not in told and "4 of 48 runs recorded" in told


def test_every_claim_stands_beside_its_measurement(studies):
    study = studies["whole"]
    made = documents.claims(study)
    rows = [line.split(" | ") for line in made.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(CLAIMS)
    for cells, claim, (_, row) in zip(rows, CLAIMS, study.claims.iterrows()):
        assert cells[0] == f"| {claim.claim}" and cells[1] == claim.stated
        assert cells[-1] == f"{row['verdict']} |"
        assert (row["measured"].replace("-", "−") or "–") == cells[3]
        assert (cells[4] == "–") == (not row["low"] < row["high"])


def test_the_model_card_has_each_class_and_the_calibration(studies):
    made = documents.evaluation(studies["whole"])
    for title in tables.evaluate.TITLES:
        assert f"| {title} |" in made
    runs = [record.validation() for record in studies["whole"].runs(published())]
    claimed = np.mean([run.probabilities.max(1).mean() for run in runs])
    assert f"claim {100 * claimed:.1f} % on average" in flat(made)
    assert "probabilities are not measured yet" in flat(documents.evaluation(studies["headless"]))


def test_the_model_card_tells_of_the_network_that_is_published(studies):
    record, _ = predict.load_set(paths.ROOT / "bloodcell_lib" / "weights")
    told = flat(documents.network(studies["none"]))
    assert f"The run `{record['experiment']}` of the profile `{record['profile']}`" in told
    assert f"{record['model']['parameters']:,} parameters" in told
    pixels = record["config"]["pixels"]
    assert f"{record['model']['macs'] / 1e6:,.0f} million multiply-accumulates for the central" in told
    assert f"{record['config']['crop']} pixels of a photograph, seen as {pixels} × {pixels}, then halved." in told


def test_the_model_card_tells_how_the_published_recipe_does(tmp_path):
    name = published()
    write_records(tmp_path, ["main", name])
    made = flat(documents.evaluation(Study.of(load_records(tmp_path), "cpu")))
    assert f"{RECIPES[name]} reaches" in made and "the main recipe reaches" not in made
