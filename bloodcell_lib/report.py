"""The report: records to LaTeX numbers and tables, and from these the PDF, checked line by line.

`report.tex` holds the prose and no number: each is a macro of `generated/numbers.tex`, each table a file beside it.
"""

from __future__ import annotations

import calendar
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bloodcell_lib import numbers, paths, sentences, tables
from bloodcell_lib.errors import BloodcellError, RunFailed
from bloodcell_lib.numbers import Study
from bloodcell_lib.records import Record, load_records
from bloodcell_lib.shelf import published_profile

PAGES = 6  # of text, figures and tables; references are not counted
OVERFULL = 5.0  # points that a line may stick out into the margin
SECONDS = 180  # that a LaTeX run may take; it takes a few

# What is looked for, and the Debian package that brings it.
NEEDED = {
    "latexmk": "latexmk",
    "pdflatex": "texlive-latex-base",
    "kpsewhich": "texlive-latex-base",
    "natbib.sty": "texlive-latex-base",
    "booktabs.sty": "texlive-latex-recommended",
    "microtype.sty": "texlive-latex-recommended",
    "ptmr8t.tfm": "texlive-fonts-recommended",
}


def missing_packages() -> list[str]:
    """The Debian packages that would have to be installed before `build` can work; empty where all are there."""
    absent = {package for name, package in NEEDED.items() if "." not in name and shutil.which(name) is None}
    if shutil.which("kpsewhich"):
        for name, package in NEEDED.items():
            if "." in name and not subprocess.run(["kpsewhich", name], capture_output=True, text=True).stdout.strip():
                absent.add(package)
    else:  # nothing of TeX is there
        absent.update(NEEDED.values())
    return sorted(absent)


def generate(
    results: Path = paths.RESULTS,
    folder: Path = paths.REPORT / "generated",
    stamp: str | None = None,
    profile: str | None = None,
) -> list[Path]:
    """Writes `numbers.tex` and the tables into `folder` from the records in `results/<profile>`; gives their paths.

    Of all that `numbers` and `sentences` can say, `numbers.tex` holds what the prose names: `report.tex` beside
    `folder`, or the project's.
    profile: None takes `published_profile(results)`. stamp: words for the head of every page. Whatever no record
    gives is printed as a dash, so that a part of a study makes a report too, and so does none of it.
    """
    profile = profile or published_profile(results)
    return write(Study.read(results, profile), folder, stamp)


def write(study: Study, folder: Path, stamp: str | None = None) -> list[Path]:
    """Writes the files of `generate` into `folder` from a study that is loaded; gives their paths."""
    macros = numbers.macros(study, stamp or "") | sentences.sentences(study)
    prose = next(file for home in (Path(folder).parent, paths.REPORT) if (file := home / "report.tex").is_file())
    named = set(re.findall(r"\\([A-Za-z]+)", prose.read_text(encoding="utf-8")))
    lines = [rf"\newcommand{{\{name}}}{{{text}}}" for name, text in macros.items() if name in named]
    head = "% Written by bloodcell_lib.report from the recorded runs: do not edit.\n"
    written = []
    for name, text in {"numbers.tex": "\n".join(lines) + "\n", **tables.tables(study)}.items():
        with paths.write_whole(Path(folder) / name) as temporary:
            temporary.write_text(head + text, encoding="utf-8")
        written.append(Path(folder) / name)
    return written


def build(
    results: Path = paths.RESULTS,
    report: Path = paths.REPORT,
    out: Path | None = None,
    figures: Path = paths.FIGURES,
    stamp: str | None = None,
    profile: str | None = None,
) -> Path:
    """Generates numbers and tables into `report/generated` and makes the PDF, `out` (None: `report/report.pdf`).

    `report.tex`, the style and the bibliography are those in `report`, or the project's where it has none. LaTeX runs
    in a temporary folder; the same records and figures give the same bytes. Raises BloodcellError if LaTeX is
    incomplete, RunFailed with the lines at fault on an error, an undefined reference or citation, a line more than
    5 pt too wide, or text beyond page 6.
    """
    absent = missing_packages()
    if absent:
        raise BloodcellError(f"The report needs LaTeX: install the Debian packages {' '.join(absent)}, then try again.")
    report = Path(report)
    out = Path(out) if out else report / "report.pdf"
    profile = profile or published_profile(results)
    generated = generate(results, report / "generated", stamp, profile)
    source = report if (report / "report.tex").is_file() else paths.REPORT
    with tempfile.TemporaryDirectory() as temporary:
        # The same two folders side by side as in the repository, so that report.tex finds the figures in both.
        work = Path(temporary) / "report"
        (work / "generated").mkdir(parents=True)
        (Path(temporary) / "figures").mkdir()
        for path in source.iterdir():
            if path.suffix in (".tex", ".sty", ".bib", ".bst"):
                shutil.copy(path, work)
        for path in generated:
            shutil.copy(path, work / "generated")
        for path in Path(figures).glob("*.pdf"):
            shutil.copy(path, Path(temporary) / "figures")
        _latex(work, _latest(load_records(Path(results) / profile)))
        with paths.write_whole(out) as whole:
            shutil.copyfile(work / "report.pdf", whole)
    return out


def _latest(records: list[Record]) -> int:
    """When the last of these runs ended, in seconds since 1970: the PDF's date, so that it depends on them alone."""
    ended = [time.strptime(record.info["ended"][:19], "%Y-%m-%dT%H:%M:%S") for record in records]
    return max(map(calendar.timegm, ended), default=0)


def _latex(work: Path, epoch: int) -> None:
    """Runs latexmk in `work` and raises RunFailed on anything that `faults` finds."""
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(epoch),
        "FORCE_SOURCE_DATE": "1",
        "max_print_line": "10000",  # a broken log line would hide what `faults` looks for
    }
    command = ["latexmk", "-norc", "-pdf", "-interaction=nonstopmode", "-file-line-error", "-no-shell-escape"]
    try:
        done = subprocess.run(
            [*command, "report.tex"], cwd=work, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"LaTeX did not finish report.tex within {SECONDS} s.") from error
    log = _read(work / "report.log")
    found = faults(log, _read(work / "report.aux"))
    if not found and (done.returncode or not (work / "report.pdf").is_file()):
        tail = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()[-8:]
        found = ["latexmk stopped: " + " / ".join(line.strip() for line in tail if line.strip())]
    if found:
        raise RunFailed("The report does not build cleanly: " + " ".join(found))


def faults(log: str, aux: str) -> list[str]:
    """What is wrong with a finished LaTeX run, one sentence each, from its log (unwrapped lines) and its .aux file."""
    found, errors = [], []
    lines = log.splitlines()
    for i, line in enumerate(lines):
        if match := re.match(r"(?:\./)?([\w./-]+\.\w+):(\d+): (.*)", line):
            near = next((text for text in lines[i + 1 : i + 3] if text.startswith("l.")), "")
            errors.append(f"{match[1]}, line {match[2]}: {match[3]} {near}".strip())
        elif match := re.search(
            r"(Reference|Citation) [`']([^']*)' on page (\d+) undefined(?: on input line (\d+))?", line
        ):
            where = f"line {match[4]}" if match[4] else f"page {match[3]}"
            found.append(f"report.tex, {where}: undefined {match[1].lower()} '{match[2]}'.")
        elif match := re.search(r"Label `([^']*)' multiply defined", line):
            found.append(f"Label '{match[1]}' is defined twice.")
        elif match := re.match(r"Missing character: (.*)", line):
            found.append(f"A character is not in the font and would vanish: {match[1]}")
        elif (match := re.match(r"Overfull \\[hv]box \(([\d.]+)pt too (?:wide|high)\) ?(.*)", line)) and (
            float(match[1]) > OVERFULL
        ):
            near = lines[i + 1][:80] if i + 1 < len(lines) else ""
            found.append(f"A box is {match[1]} pt too large {match[2]}: {near}".strip())
    for label, page in re.findall(r"\\newlabel\{([^}]*)\}\{\{.*?\}\{(\d+)\}", aux):
        if int(page) > PAGES:
            found.append(f"The text is too long: '{label}' stands on page {page}, and {PAGES} pages are allowed.")
    # What follows from an error says no more than the error.
    return list(dict.fromkeys(errors[:3] or found))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
