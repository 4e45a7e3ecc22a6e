"""The repository keeps its own rules: who imports whom, what is in git, what the documents say of both."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bloodcell_lib import paths
from bloodcell_lib.plans import PROFILES

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY = (paths.ROOT / "bloodcell_lib" / "README.md").read_text(encoding="utf-8")
MODULES = re.findall(r"^\| `(\w+)` \|", LIBRARY, re.MULTILINE)


def tracked() -> list[str]:
    done = subprocess.run(["git", "-C", str(paths.ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if (paths.ROOT / name).is_file()]


def imports(module: str) -> set[str]:
    tree = ast.parse((paths.ROOT / "bloodcell_lib" / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "bloodcell_lib":
            found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bloodcell_lib."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("bloodcell_lib.")}
    return found


def test_the_library_s_page_lists_every_module():
    there = {path.stem for path in (paths.ROOT / "bloodcell_lib").glob("*.py")} - {"__init__"}
    assert set(MODULES) == there


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module):
    above = set(MODULES[: MODULES.index(module)])
    assert imports(module) <= above, f"{module} reaches {imports(module) - above}"


def test_readme_profiles_are_the_codes():
    for name, crop, *numbers in re.findall(
        r"^\| `(demo|cpu|full)` \|[^|]*\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|", README, re.M
    ):
        profile = PROFILES[name]
        assert [profile.pixels, profile.epochs, len(profile.seeds)] == [int(number) for number in numbers]
        assert str(profile.crop or "all") == crop
    assert len(re.findall(r"^\| `(?:demo|cpu|full)` \|", README, re.MULTILINE)) == 3


def anchors(page: Path) -> set[str]:
    """What a link may name behind a #: the page's headings, as GitHub and GitLab write them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", [name for name in tracked() if name.endswith(".md")])
def test_links_lead_somewhere(name):
    page = paths.ROOT / name
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert len(links) >= (4 if name in ("README.md", "MODEL_CARD.md") else 0)
    for target in links:
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_git_holds_no_photograph_no_weights_and_no_clutter():
    wrong = re.compile(
        r"\.(jpe?g|tiff?|bmp|pt|pth|pkl|aux|log|pyc)$|(^|/)(runs|\.ipynb_checkpoints|__pycache__)/", re.I
    )
    assert [name for name in tracked() if wrong.search(name)] == []
    # Pictures are figures that code draws; nowhere else.
    assert [n for n in tracked() if n.endswith((".png", ".pdf")) and not n.startswith(("figures/", "report/"))] == []


def test_published_records_are_small():
    sizes = {name: (paths.ROOT / name).stat().st_size for name in tracked() if name.startswith("report/results/")}
    records = {name.rpartition("/")[0] for name in sizes if name.endswith("/record.json")}
    for folder in records:
        files = {name: size for name, size in sizes.items() if name.startswith(f"{folder}/")}
        assert {name.rpartition("/")[2] for name in files} <= {"record.json", "validation.npz"}
        assert sum(files.values()) < 100_000, folder
    assert sum(sizes.values()) < 15_000_000


def test_no_text_names_a_private_place():
    private = re.compile(r"/(work|home|Users|root)/\w|[A-Z]:\\\\Users")
    for name in tracked():
        if (
            name.endswith((".py", ".md", ".toml", ".yml", ".tex", ".ipynb", ".json", "Makefile"))
            and "test_house" not in name
        ):
            assert not private.search((paths.ROOT / name).read_text(encoding="utf-8")), name


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "")]
)
def test_threads_that_wait_leave_the_core_to_others_unless_told_otherwise(given, spins):
    told = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    script = "import bloodcell_lib, subprocess, sys; sys.exit(subprocess.call(['printenv', 'GOMP_SPINCOUNT']) > 1)"
    done = subprocess.run([sys.executable, "-c", script], env=told | given, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, spins)
