"""The command as a user has it: exit codes, one sentence for bad input, nothing half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fake_records import write_records

from bloodcell_lib import drawn_folder, paths
from bloodcell_lib.plans import CHOSEN

COMMAND = [sys.executable, "-m", "bloodcell_lib.cli"]
LIMIT = 120  # seconds: nothing here takes a tenth of it

# Commands run in processes forked from one that has imported what is slow: seconds for each would add up to minutes.
# A name that is not there, such as the second in an older typer, is passed over.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["typer", "typer._adapters", "torchvision", "sklearn.model_selection", "statsmodels.api", "papermill", "imagehash"]
)


def _main(arguments: list[str], environment: dict[str, str], folder: Path, out: Path, err: Path) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.argv = ["bloodcell", *arguments]
    for name in [name for name in sys.modules if name.partition(".")[0] == "bloodcell_lib"]:
        del sys.modules[name]  # its paths were those of the environment before
    torch.set_num_threads(1)
    from bloodcell_lib import cli

    cli.main()


@dataclass
class Started:
    """A command that runs."""

    process: multiprocessing.Process
    out: Path
    err: Path

    def end(self) -> Ended:
        self.process.join(LIMIT)
        if self.process.is_alive():
            self.process.kill()
            pytest.fail(f"still running after {LIMIT} s")
        return Ended(self.process.exitcode, self.out.read_text(), self.err.read_text())


@dataclass
class Ended:
    """A command that has run."""

    code: int
    out: str
    err: str

    def refused(self, match: str) -> None:
        """One sentence, exit code 2."""
        assert self.code == 2, (self.out, self.err)
        assert self.err.startswith("bloodcell: ") and self.err.count("\n") == 1, self.err
        assert re.search(match, self.err), self.err


@dataclass
class Shell:
    """Runs `bloodcell` with folders of its own."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        places = {f"BLOODCELL_{name}": str(self.home / name.lower()) for name in ("RUNS", "CACHE", "RAW")}
        return {**places, "BLOODCELL_DATA": ""}  # only the images that a test names

    def start(self, *arguments: object, **environment: object) -> Started:
        n = len(list(self.home.glob("*.out")))
        out, err = self.home / f"{n}.out", self.home / f"{n}.err"
        given = self.environment | {name: str(value) for name, value in environment.items()}
        process = server.Process(target=_main, args=([str(a) for a in arguments], given, self.home, out, err))
        process.start()
        out.touch()
        return Started(process, out, err)

    def __call__(self, *arguments: object, **environment: object) -> Ended:
        return self.start(*arguments, **environment).end()

    def written(self) -> set[str]:
        """What lies in the folders for runs, the cache and downloads."""
        roots = [self.home / name for name in ("runs", "cache", "raw")]
        return {str(path.relative_to(self.home)) for root in roots for path in root.rglob("*")}


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn cells of each class."""
    return drawn_folder.write(tmp_path_factory.mktemp("cli") / "cells", per_class=8, test=2, workers=1)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("BLOODCELL_DATA", "")  # for the server, too: it is started with the first command
    return Shell(tmp_path)


@pytest.fixture
def mine(cells: Path, tmp_path: Path) -> Path:
    """A copy to spoil, of links."""
    for path in cells.rglob("*"):
        target = tmp_path / "mine" / path.relative_to(cells)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return tmp_path / "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def wait_for(found: Callable[[], object], started: Started) -> None:
    until = time.monotonic() + LIMIT
    while not found():
        assert started.process.is_alive(), started.err.read_text()
        assert time.monotonic() < until
        time.sleep(0.02)


# Help, and the parser


def test_help_is_quick_and_imports_nothing_slow() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "pandas", "PIL", "matplotlib", "sklearn", "scipy", "papermill"}
    for command in ("run", "train", "study", "evaluate", "figures", "report", "publish", "predict", "data"):
        assert re.search(rf"^\W*{command}\b", done.stdout, re.MULTILINE), command


def test_no_command_shows_what_there_is(shell: Shell) -> None:
    for arguments, shown in (((), "study"), (("data",), "fetch")):
        done = shell(*arguments)
        assert shown in done.out and done.err == "" and done.code in (0, 2)
    assert shell("train", "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("nope", "No such command 'nope'"),
        ("data nope", "No such command 'nope'"),
        ("train --nope", "No such option: --nope"),
        ("train main more", "unexpected extra argument"),
        ("data fetch", "Missing argument"),
        ("train --epochs", "requires an argument"),
        ("train --epochs x", "'--epochs'.*valid integer"),
        ("train --epochs 1.5", "'--epochs'.*valid integer"),
        ("train --epochs 0", "epochs is 0: give 1 or more"),
        ("train --epochs -3", "epochs is -3: give 1 or more"),
        ("train --batch-size 0", "batch_size is 0: give 1 or more"),
        ("train --lr -1", "learning_rate is -1.0: give a positive number"),
        ("train --lr 0", "learning_rate is 0.0"),
        ("train --lr nan", "learning_rate is nan"),
        ("train --lr inf", "learning_rate is inf"),
        ("train --lr x", "'--lr'"),
        ("train --seed x", "'--seed'"),
        ("train --seed -1", "'--seed'"),
        ("train --seed 99999999999999999999999", "'--seed'"),
        ("train --precision float8", "Unknown precision 'float8': choose one of float32"),
        ("train --device tpu", "Device tpu cannot be used here"),
        ("train --device meta", "Device meta cannot be used here"),
        ("train --device cuda:99", "Device cuda:99 cannot be used here"),
        ("train nope", "Unknown experiment 'nope': choose one of main, "),
        ("train ../main", "Unknown experiment"),
        ("train --profile nope", "Unknown profile 'nope': choose one of demo, "),
        ("train --profile cpu", "Profile cpu needs real images"),
        ("study --profile nope", "Unknown profile 'nope'"),
        ("study --experiments main,nope", "Unknown experiment 'nope'"),
        ("study --seeds x", "--seeds x is no list of whole numbers"),
        ("study --seeds 0,-1", "--seeds 0,-1 is no list"),
        ("study --workers 0", "'--workers'"),
        ("evaluate --experiment nope", "Unknown experiment 'nope'"),
        ("trust --experiment nope", "Unknown experiment 'nope'"),
        ("predict ''", "An empty name is no file"),
        ("evaluate", "No record of main in .*: make one with `bloodcell train main --profile demo`"),
        (
            "evaluate --experiment main+epochs=1",
            r"No record of main\+epochs=1 .* `bloodcell train main --profile demo --epochs 1`",
        ),
        ("evaluate --published", "No record of main in .*results.*: give another --experiment or --profile"),
        ("evaluate --published --external nowhere", "Published records have no weights: leave out --published"),
        ("figures --data nowhere", "--data and --skip-bad are for this machine's runs: give them with --profile"),
        ("predict nowhere.png --out .", r"\. is a folder: give a file, such as prediction_labels\.json"),
        ("publish --profile demo", "The demo gives no results"),
        ("publish", "No records in"),
        ("publish --experiment best", "--experiment says whose weights: give it with --weights"),
        (
            "publish --weights",
            f"No run in .*.seed0: make it with `bloodcell train {CHOSEN}_final --profile cpu`",
        ),
        ("publish --weights --experiment finale", "Unknown experiment 'finale'"),
        ("publish --weights --profile demo", "The demo gives no results"),
        ("run --profile nope", "Unknown profile 'nope'"),
        ("run --only 09", "notebook"),
        ("run --only x", "notebook"),
        ("run --limit 0", "'--limit'"),
        ("run --set nope=1", "No notebook here has a parameter 'nope'"),
        ("run --only 05 --set profile=cpu", "'profile' is the runner's to set: give --profile"),
        ("run --only 05 --set results=nowhere", "No records in .*nowhere: set results to 'published', to 'own', or"),
        ("data fetch nope", "nope"),
        ("data fetch bloodmnist --size 30", "30"),
        ("data check nowhere", "No folder .*nowhere: give the folder"),
        ("data check 0.out", "No folder .*0.out: give the folder"),
        ("train --data nowhere", "No folder .*nowhere"),
        ("train --data 0.out", "No folder .*0.out"),
        ("train --data " + "a" * 3000, "[Tt]oo long"),
        ("study --data 0.out", "No folder .*0.out"),
    ],
)
def test_bad_words_are_one_sentence_and_write_nothing(shell: Shell, arguments: str, match: str) -> None:
    shell(*shlex.split(arguments)).refused(match)
    assert shell.written() == set()


def test_a_process_of_its_own_says_the_same(shell: Shell) -> None:
    done = subprocess.run(
        [*COMMAND, "train", "nope"],
        capture_output=True,
        text=True,
        env=os.environ | shell.environment,
        cwd=shell.home,
        timeout=LIMIT,
    )
    Ended(done.returncode, done.stdout, done.stderr).refused("Unknown experiment 'nope'")
    assert done.stdout == ""


# Folders of images


def bomb(path: Path, side: int = 11_000) -> None:
    """A PNG of a few bytes that declares so many pixels a side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    path.unlink(missing_ok=True)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))


def replaced(path: Path, content: bytes) -> None:
    path.unlink()  # a link: the original stays
    path.write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no class": (
        lambda f: [p.unlink() for p in (f / "train" / "ig").iterdir()] and (f / "train" / "ig").rmdir(),
        "No folder .*ig: each of the eight classes needs one",
    ),
    "misspelt": (
        lambda f: (f / "train" / "neutrophil").rename(f / "train" / "neutrophils"),
        "neutrophils .*did you mean 'neutrophil'",
    ),
    "extra": (lambda f: (f / "train" / "cells").mkdir(), "cells is not one of the eight classes"),
    "empty class": (lambda f: [p.unlink() for p in (f / "train" / "ig").iterdir()], "No images in .*ig"),
    "class map": (lambda f: replaced(f / "class_map.json", b'{"basophil": 7}'), "differs from the course's at"),
    "same id": (lambda f: replaced(f / "class_map.json", b'{"a": 1, "b": 1}'), "gives id 1 to more than one class"),
    "zero bytes": (lambda f: (f / "train" / "ig" / "IG_0.jpg").touch(), r"1 of 65 files .*IG_0.jpg \(an empty file\)"),
    "text": (lambda f: (f / "train" / "ig" / "IG_0.jpg").write_text("x"), r"1 of 65 .*IG_0.jpg \(not an image\)"),
    "truncated": (
        lambda f: (f / "train" / "ig" / "IG_0.jpg").write_bytes((f / "test" / "img_0.jpg").read_bytes()[:5000]),
        "1 of 65 files .*IG_0.jpg .*truncated.*--skip-bad",
    ),
    "bomb": (lambda f: bomb(f / "train" / "ig" / "IG_0.jpg"), r"1 of 65 files .*IG_0.jpg \(11000 x 11000 pixels"),
    "odd name": (
        lambda f: (f / "train" / "ig" / "two\nlines \x1b[31m.jpg").touch(),
        r"1 of 65 files .*two\\nlines \\x1b\[31m.jpg",
    ),
    "broken link": (
        lambda f: (f / "train" / "ig" / "IG_0.jpg").symlink_to("gone"),
        r"1 of 65 files .* IG_0.jpg \(no file, or a link to none\)",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_folder_is_one_sentence_and_makes_no_record(shell: Shell, mine: Path, how: str) -> None:
    spoil, match = SPOILT[how]
    spoil(mine)
    shell("train", "--epochs", 1, "--data", mine).refused(match)
    assert not [name for name in shell.written() if "." in name.replace("cache/", "") and not name.startswith("cache")]


def test_a_bad_file_is_left_out_on_request(shell: Shell, mine: Path) -> None:
    (mine / "train" / "ig" / "IG_0.jpg").touch()
    done = shell("train", "--epochs", 1, "--data", mine, "--skip-bad")
    assert done.code == 0, done.err
    assert "Left out: 1 of 65 files" in done.out and "64 synthetic cells" in done.out


def test_an_audit_prints_all_whatever_the_files_are_called(shell: Shell, mine: Path) -> None:
    (mine / "train" / "ig" / "b\udcff.jpg").touch()
    done = shell("data", "check", mine, PYTHONIOENCODING="")
    assert done.code == 0, done.err
    assert "unreadable: 1" in done.out and "b\\udcff.jpg" in done.out and "one picture in two classes" in done.out
    assert shell("data", "check", BLOODCELL_DATA=mine).out == done.out


# Training


def test_a_run_that_held_no_image_out_is_not_evaluated(shell: Shell) -> None:
    write_records(shell.home / "runs" / "cpu", ["final"], seeds=(0,))
    shell("evaluate", "--profile", "cpu", "--experiment", "final").refused(
        "final held no image out: evaluate its recipe"
    )


def test_a_run_is_recorded_once_and_read_again(shell: Shell, cells: Path, mine: Path) -> None:
    done = shell("train", "main", "--profile", "cpu", "--epochs", 1, "--data", cells)
    assert done.code == 0, done.err
    assert re.search(r"^recorded: validation accuracy \d+\.\d\d % ", done.out.replace("%", " %"), re.MULTILINE)
    (record,) = (shell.home / "runs" / "cpu").glob("*/seed0/record.json")
    assert json.loads(record.read_text())["config"]["train"]["epochs"] == 1
    before = record.read_bytes()
    assert "recorded before: " in shell("train", "main", "--profile", "cpu", "--epochs", 1, "--data", cells).out
    shown = shell("evaluate", "--profile", "cpu", "--experiment", "main+epochs=1")
    assert shown.code == 0 and "accuracy" in shown.out and "neutrophil" in shown.out.lower(), shown.err
    next((mine / "train" / "ig").iterdir()).unlink()
    shell("train", "main", "--profile", "cpu", "--epochs", 1, "--data", mine).refused(
        "recorded on other images: move it away"
    )
    assert record.read_bytes() == before
    assert not list(shell.home.glob("runs/**/.*.pt"))
    record.write_text("{")
    shell("train", "main", "--profile", "cpu", "--epochs", 1, "--data", cells).refused("not a whole record")


def test_one_run_at_a_time_and_ctrl_c_and_another_configuration(shell: Shell, cells: Path, mine: Path) -> None:
    command = ("train", "main", "--profile", "cpu", "--epochs", 500, "--data", cells)
    running = shell.start(*command)
    folder = shell.home / "runs" / "cpu"
    wait_for(lambda: list(folder.glob(".checkpoints/main*.pt")), running)
    shell(*command).refused("Another process is making .*: wait for it, or stop it")
    os.kill(running.process.pid, signal.SIGINT)
    ended = running.end()
    assert ended.code == 130
    assert ended.err.lstrip() == "bloodcell: Stopped. A training goes on from its last whole epoch if started again.\n"
    assert not list(folder.glob("**/record.json"))
    left = {path.suffix for path in (folder / ".checkpoints").iterdir()}
    assert left == {".pt", ".lock"} and len(list((folder / ".checkpoints").iterdir())) == 2
    (checkpoint,) = folder.glob(".checkpoints/main*.pt")
    before = checkpoint.read_bytes()
    next((mine / "train" / "ig").iterdir()).unlink()
    shell(*command[:-1], mine).refused("belongs to another configuration .*images.*--no-resume")
    assert checkpoint.read_bytes() == before
    checkpoint.write_bytes(before[:1000])
    shell(*command).refused("is not a whole checkpoint: remove it")


def stopped(shell: Shell, arguments: list[object], begun: Callable[[], object], sent: int) -> tuple[int, str]:
    """Starts a command in a process of its own, sends a signal once it has `begun`; its exit code and what it said."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | shell.environment | {"OMP_NUM_THREADS": "1"},
    ) as process:
        until = time.monotonic() + LIMIT
        while not begun():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(sent)
        _, err = process.communicate(timeout=LIMIT)
    return process.returncode, err.lstrip()


def test_a_real_ctrl_c_in_a_process_of_its_own(shell: Shell, cells: Path) -> None:
    def begun() -> list[Path]:
        return list(shell.home.glob("runs/demo/.checkpoints/main*.pt"))

    code, told = stopped(shell, ["train", "--epochs", "500", "--data", cells], begun, signal.SIGINT)
    assert code == 130
    assert told == "bloodcell: Stopped. A training goes on from its last whole epoch if started again.\n"


@pytest.mark.parametrize(
    ("sent", "code", "told"), [(signal.SIGINT, 130, "bloodcell: Stopped.\n"), (signal.SIGTERM, 143, "")]
)
def test_a_prediction_that_is_stopped_leaves_nothing(
    shell: Shell, cells: Path, tmp_path: Path, sent: int, code: int, told: str
) -> None:
    (tmp_path / "out").mkdir()
    images, out = sorted((cells / "train").iterdir()), tmp_path / "out" / "labels.json"
    arguments = ["predict", *images, "--tta", "--normalise", "--out", out]
    assert stopped(shell, arguments, lambda: list(out.parent.iterdir()), sent) == (code, told)
    assert list(out.parent.iterdir()) == []


def test_nothing_is_printed_from_no_records(shell: Shell) -> None:
    for command in ("report", "figures"):
        shell(command, BLOODCELL_RESULTS=shell.home / "typo").refused(
            "No records in .*typo.*: `bloodcell publish` brings"
        )


def test_a_full_disk_is_one_sentence_and_leaves_nothing(shell: Shell, cells: Path, small_disk: Path) -> None:
    (small_disk / "filled").write_bytes(bytes(1_500_000))
    shell("train", "--epochs", 1, "--data", cells, BLOODCELL_CACHE=small_disk).refused("Cannot write .*No space left")
    assert [path.name for path in small_disk.iterdir()] == ["filled"]
    (small_disk / "filled").unlink()
    shell("train", "--epochs", 2, "--data", cells, BLOODCELL_RUNS=small_disk).refused("Cannot write .*disk may be full")
    assert {path.suffix for path in small_disk.rglob("*") if path.is_file()} <= {".lock"}


def test_a_study_names_a_run_once_and_skips_what_is_recorded(shell: Shell, mine: Path) -> None:
    for path in (mine / "train").glob("*/*"):
        if int(path.stem[-1]) > 5:
            path.unlink()
    command = ("study", "--experiments", "aug_none,efficientnet_lite,aug_none", "--seeds", "0,0", "--data", mine)
    done = shell(*command)
    assert done.code == 0, done.err
    assert "2 of 2 runs are recorded in" in done.out
    assert len(list(shell.home.glob("runs/demo/study/*/seed0/record.json"))) == 2
    again = shell(*command)
    assert again.code == 0 and again.out.count("recorded") >= 3


def test_groups_name_their_rows() -> None:
    from bloodcell_lib import cli, plans
    from bloodcell_lib.plans import EXPERIMENTS

    assert cli._names("robustness,main") == [*plans.variants("best_short", "robustness"), "main"]
    assert cli._names("unknown")[0] == "without_basophil" and len(cli._names("unknown")) == 8
    assert cli._names("cv, extra")[:1] == ["cv_fold0"] and cli._names("all") == list(EXPERIMENTS)
    assert cli._names("best") == ["best"] and "best_fold1" in cli._names("best_cv")


def test_figures_are_of_the_images_that_the_runs_saw(shell: Shell, cells: Path) -> None:
    made = shell.home / "runs" / "cpu"
    shutil.copytree(paths.RESULTS / "cpu" / "main", made / "main")
    shell("figures", "--profile", "cpu", "--data", cells).refused(f"{cells} holds other images than the runs in ")
    assert [path.name for path in made.iterdir()] == ["main"]
    done = shell("figures", "--profile", "cpu")
    assert done.code == 0 and "sample_sheet" in done.out, done.err
    assert (made / "figures" / "training_curves.png").is_file()
