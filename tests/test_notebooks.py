from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from fake_records import write_records
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from bloodcell_lib import notebooks, paths
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.plans import EXPERIMENTS, STUDY

NAMES = ("01_data_exploration", "02_training", "03_ablations", "04_evaluation", "05_figures")

# --- the notebooks as they lie in the repository --------------------------------------------------------------------


@pytest.fixture(params=NAMES)
def shipped(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    book = nbformat.read(paths.NOTEBOOKS / f"{request.param}.ipynb", as_version=4)
    nbformat.validate(book)
    return book


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_five():
    assert [path.stem for path in notebooks.available().values()] == list(NAMES)


def test_no_outputs_are_kept(shipped):
    assert all(not cell.outputs and cell.execution_count is None for cell in code(shipped))


def test_nothing_is_left_to_strip():
    strip = [str(Path(sys.executable).with_name("nbstripout")), "--keep-id", "--dry-run", "--verify"]
    done = subprocess.run([*strip, *map(str, notebooks.available().values())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_head_and_kernel(shipped):
    assert (shipped.nbformat, shipped.nbformat_minor) == (4, 5)
    assert shipped.metadata.kernelspec.name == "python3"
    first = shipped.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "**reads**" in first.source and "**writes**" in first.source


def test_parameters_are_independent_literals(shipped):
    tagged = [cell for cell in shipped.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code(shipped)[0]
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r'\w+ = ("[^"]*"|True|False|-?[\d.]+)  # .+', line), line
    namespace: dict[str, object] = {}
    exec(tagged[0].source, namespace)
    assert namespace["profile"] == "demo" and namespace["data"] == ""
    assert namespace.get("results", "published") == "published"


def test_cells_are_short_and_told(shipped):
    for cell in code(shipped):
        lines = cell.source.splitlines()
        assert len(lines) <= 15, f"{cell.id}: {len(lines)} lines"
        for i, line in enumerate(lines):
            if line.startswith("def "):
                body = [row for row in lines[i:] if row.startswith(("def ", " "))]
                assert len(body) <= 3, f"{cell.id}: a long function belongs in the library"
    words = sum(len(cell.source.split()) for cell in shipped.cells if cell.cell_type == "markdown")
    assert words > 200


def test_it_runs_from_anywhere(shipped):
    source = "\n".join(cell.source for cell in code(shipped))
    assert "sys.path" not in source and "os.chdir" not in source and "tqdm.auto" not in source
    assert not re.search(r"""["'](/\w|~|\.\./|[A-Z]:\\)""", source), "a path of one machine"


def test_promises_are_declared(shipped):
    promised = shipped.metadata.bloodcell.writes
    text = "\n".join(cell.source for cell in shipped.cells)
    assert promised
    for name in promised:
        assert not Path(name).is_absolute() and ".." not in Path(name).parts
        assert Path(name).stem in text


def test_cell_ids_are_readable(shipped):
    ids = [cell.id for cell in shipped.cells]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in ids), ids


# --- on published records, with the parameters as they are -----------------------------------------------------------

READERS = ("03_ablations", "04_evaluation", "05_figures")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fresh clone has, for the kernels that this test starts: no runs, no images, and results to be filled."""
    for name in ("RESULTS", "RUNS", "RAW", "CACHE"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
        monkeypatch.setenv(f"BLOODCELL_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("BLOODCELL_DATA", raising=False)
    return tmp_path


def opened(clone: Path, name: str) -> tuple[list[str], str]:
    """Runs a notebook as it lies there, no parameter given; what is wrong with it, and all that it shows as text."""
    home = clone / "runs" / "published"
    (home / "notebooks").mkdir(parents=True)
    outcome = notebooks.execute(paths.NOTEBOOKS / f"{name}.ipynb", home, {})
    shown = []
    for cell in code(nbformat.read(outcome.executed, 4)):
        for output in cell.outputs:
            shown += [output.get("text", ""), *(str(text) for text in output.get("data", {}).values())]
    return outcome.problems, "\n".join(shown)


def part(folder: Path) -> None:
    write_records(folder, ["main", "no_se"], seeds=(0, 1))
    write_records(folder, ["simple_cnn", "final"], seeds=(0,))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(READERS, ["whole", "part"]),
        *itertools.product(READERS[:2], ["one seed"]),  # the figures of one seed: test_end_to_end
    ],
)
def test_it_tells_a_published_study_without_images(clone, name, kind):
    folder = clone / "results" / "cpu"
    if kind == "part":
        part(folder)
    else:
        write_records(folder, list(EXPERIMENTS), seeds=(0,) if kind == "one seed" else (0, 1, 2))
    problems, shown = opened(clone, name)
    assert problems == [], "among them every file that it promises"
    assert str(folder) in shown and not re.search(r"\bnan\b", shown)
    assert {path.name for path in (clone / "runs").iterdir()} == {"published"}, "runs made here are left alone"
    assert not (clone / "cache").exists(), "no image is drawn or read"
    if name == "03_ablations":
        assert "Nothing is trained" in shown and all(row in shown for row in STUDY)
        told = {
            "whole": "All 48 runs of the study are recorded",
            "part": "The study is partial: 6 of its 48 runs are recorded",
            "one seed": "The study is partial: 16 of its 48 runs are recorded",
        }
        assert told[kind] in shown
        assert ("With one seed, an interval knows" in shown) == (kind != "whole")


@pytest.mark.parametrize("name", ["03_ablations", "05_figures"])
def test_it_says_what_a_study_without_its_main_run_cannot_show(clone, name):
    write_records(clone / "results" / "cpu", ["efficientnet_lite"], seeds=(0,))
    problems, shown = opened(clone, name)
    absent = clone / "runs" / "published" / "figures"
    assert problems == [f"promised and absent: {absent / 'ablations'}.{kind}" for kind in ("pdf", "png")]
    assert "No row can be compared with main yet" in shown and "EfficientNetLite" in shown
    assert "ot drawn" in shown and "Warning" not in shown


def test_it_says_what_to_do_where_nothing_is_published(clone):
    (problem,), _ = opened(clone, "03_ablations")
    assert re.search(r"BloodcellError: No study is published yet in .*results: set results to 'own'", problem)


def test_the_runner_reads_own_records_unless_it_is_told_otherwise(clone, tmp_path):
    path = book(
        tmp_path,
        "01_reads",
        "from bloodcell_lib import shelf\nplace = shelf.find(results, profile)",
        "place.home.joinpath('made.txt').write_text(str(place.runs))",
        parameters='results = "published"\nprofile = "demo"',
        writes=("made.txt",),
    )
    part(clone / "results" / "cpu")
    part(clone / "mine")
    mine = {"results": str(clone / "mine")}
    for settings, name, read in ((None, "demo", clone / "runs" / "demo"), (mine, "given", clone / "mine")):
        (outcome,) = notebooks.run([path], "demo", settings=settings)
        assert outcome.problems == []
        assert outcome.executed == clone / "runs" / name / "notebooks" / "01_reads.ipynb"
        assert (clone / "runs" / name / "made.txt").read_text() == str(read)


# --- the runner -----------------------------------------------------------------------------------------------------


def book(folder: Path, name: str, *cells: str, writes: tuple[str, ...] = (), parameters: str | None = "k = 1") -> Path:
    """A tiny notebook; `parameters` None leaves the tagged cell out."""
    head = [new_markdown_cell("# A notebook")]
    if parameters is not None:
        head.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    made = new_notebook(cells=[*head, *(new_code_cell(cell) for cell in cells)])
    made.metadata = {
        "bloodcell": {"writes": list(writes)},
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    }
    path = folder / f"{name}.ipynb"
    nbformat.write(made, path)
    return path


def execute(tmp_path: Path, *chosen: Path, **given) -> list[notebooks.Outcome]:
    return list(notebooks.run(list(chosen), "demo", home=tmp_path / "home", **given))


def test_a_good_one_passes_with_its_settings(tmp_path):
    path = book(
        tmp_path,
        "01_good",
        "doubled = 2 * k",
        "from pathlib import Path\nPath('../made.txt').write_text(f'{profile} {doubled}')",
        writes=("made.txt",),
        parameters='k = 1\nprofile = ""',
    )
    (outcome,) = execute(tmp_path, path, settings={"k": 21})
    assert outcome.problems == []
    assert (tmp_path / "home" / "made.txt").read_text() == "demo 42"
    assert outcome.executed == tmp_path / "home" / "notebooks" / "01_good.ipynb"
    assert all(cell.execution_count for cell in code(nbformat.read(outcome.executed, 4)))
    assert outcome.seconds > 0 and outcome.peak_bytes > 10_000_000
    assert all(cell.execution_count is None for cell in code(nbformat.read(path, 4))), "the original is left alone"


def test_failures_are_collected_and_the_rest_runs(tmp_path):
    bad = book(tmp_path, "01_bad", "1 / 0", "k")
    absent = book(tmp_path, "02_absent", "k", writes=("never.pdf",))
    good = book(tmp_path, "03_good", "k")
    first, second, third = execute(tmp_path, bad, absent, good)
    assert len(first.problems) == 1 and "ZeroDivisionError: division by zero" in first.problems[0]
    assert second.problems == [f"promised and absent: {tmp_path / 'home' / 'never.pdf'}"]
    assert third.problems == []


def test_leaving_quietly_is_a_failure(tmp_path):
    (outcome,) = execute(tmp_path, book(tmp_path, "01_exit", "import sys\nsys.exit(0)", "k"))
    assert outcome.problems, "papermill calls this done"
    assert any("did not run" in problem or "SystemExit" in problem for problem in outcome.problems)


@pytest.mark.parametrize("after", [("k",), ()], ids=["in the middle", "at the end"])
def test_a_killed_kernel_is_a_failure(tmp_path, after):
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    (outcome,) = execute(tmp_path, book(tmp_path, "01_killed", kill, *after))
    assert len(outcome.problems) >= 1
    assert "died" in outcome.problems[0].lower() or "did not run" in outcome.problems[0]


def test_a_time_limit_ends_it(tmp_path):
    path = book(tmp_path, "01_slow", "import time\ntime.sleep(300)", "k")
    (outcome,) = execute(tmp_path, path, limit=6)
    assert any("stopped after 6 s, its time limit" in problem for problem in outcome.problems)
    assert outcome.seconds < 60


def test_an_unknown_setting_is_refused_before_anything_runs(tmp_path):
    path = book(tmp_path, "01_good", "k")
    with pytest.raises(BloodcellError, match="No notebook here has a parameter 'epoch': choose from k"):
        execute(tmp_path, path, settings={"epoch": 3})
    assert not (tmp_path / "home").exists()


def test_a_setting_goes_where_it_is_known(tmp_path):
    has = book(tmp_path, "01_has", "assert k == 5")
    lacks = book(tmp_path, "02_lacks", "assert other == 1", parameters="other = 1")
    assert [outcome.problems for outcome in execute(tmp_path, has, lacks, settings={"k": 5})] == [[], []]


def test_a_notebook_without_parameters_is_refused(tmp_path):
    path = book(tmp_path, "01_bare", "1", parameters=None)
    with pytest.raises(BloodcellError, match=r"01_bare\.ipynb has no cell tagged 'parameters'"):
        execute(tmp_path, path)


def test_choosing(tmp_path):
    chosen = [book(tmp_path, name, "k") for name in ("01_a", "02_b", "04_d")]
    assert notebooks.choose(None, tmp_path) == chosen
    assert notebooks.choose(["04", " 1"], tmp_path) == [chosen[0], chosen[2]]
    with pytest.raises(BloodcellError, match="There is no notebook 03: choose from 01, 02, 04"):
        notebooks.choose(["03"], tmp_path)
    with pytest.raises(BloodcellError, match="No notebooks in"):
        notebooks.choose(None, tmp_path / "nowhere")


def test_settings_are_parsed():
    given = ["epochs=3", "name=main", 'quoted="3"', "on=true", "text=a=b"]
    parsed = notebooks.parse_settings(given)
    assert parsed == {"epochs": 3, "name": "main", "quoted": "3", "on": True, "text": "a=b"}
    for wrong in ("epochs", "=3", "two words=1"):
        with pytest.raises(BloodcellError, match="is no setting: write name=value"):
            notebooks.parse_settings([wrong])
