"""Small and fast: whether contenders take turns, what is written, what is told; no speed is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bloodcell_lib import bench, bench_data, bench_loaders, bench_train, data, drawn_folder, paths
from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.bench_train import Switches
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.timings import Comparison, Lane, lanes, race

QUIET = lambda line: None  # noqa: E731


def sleeper(seconds: float, items: int):
    def work() -> int:
        time.sleep(seconds)
        return items

    return work


def failing(why: str):
    raise ValueError(why)


def dying():
    os._exit(3)


def holding(mebibytes: int):
    def work() -> int:
        torch.ones(mebibytes << 18).sum()
        time.sleep(0.2)
        return 1

    return work


# Turns


def test_contenders_take_turns_to_and_fro_and_the_first_turn_is_not_kept():
    said = []
    contenders = {name: [Lane("cpu", 1, sleeper, 0.001, 1)] for name in "ab"}
    with lanes(contenders):
        done = race(Comparison("race", "a"), contenders, 3, said.append)
    assert [line.split()[1][0] for line in said] == list("abbaabba")
    assert [len(done.rates[name]) for name in "ab"] == [3, 3] and min(done.memory.values()) > 0


def test_a_rate_is_items_a_second_and_a_ratio_is_of_the_same_turn():
    contenders = {"slow": [Lane("cpu", 1, sleeper, 0.2, 10)], "twice": [Lane("cpu", 1, sleeper, 0.2, 20)]}
    with lanes(contenders):
        done = race(Comparison("race", "slow"), contenders, 2, QUIET)
    assert all(25 < rate <= 50 for rate in done.rates["slow"])
    assert done.ratios("twice") == [b / a for a, b in zip(done.rates["slow"], done.rates["twice"])]
    assert done.to_json()["ratio"]["slow"] == {"median": 1, "low": 1, "high": 1}
    assert done.to_json()["ratio"]["twice"]["median"] == pytest.approx(2, rel=0.5)


def test_several_lanes_of_a_contender_run_side_by_side():
    contenders = {"both": [Lane("cpu", 1, sleeper, 0.5, 10) for _ in range(2)]}
    with lanes(contenders):
        done = race(Comparison("race", "both"), contenders, 1, QUIET)
    assert done.rates["both"][0] > 25  # 20 items in half a second, not in a whole one


def test_what_fails_or_dies_is_left_out_with_a_sentence_and_the_rest_goes_on():
    contenders = {
        "fine": [Lane("cpu", 1, sleeper, 0.001, 1)],
        "fails": [Lane("cpu", 1, failing, "no such thing\nat all")],
        "dies": [Lane("cpu", 1, dying)],
    }
    with lanes(contenders):
        done = race(Comparison("race", "fine"), contenders, 1, QUIET)
    assert list(done.rates) == ["fine"]
    assert done.notes == {
        "fails": "left out: no such thing",
        "dies": "left out: its process ended with code 3",
    }
    lines = bench.table(done.to_json())
    assert sum("left out" in line for line in lines) == 2 and len({line.count("|") for line in lines}) == 1


def test_memory_is_each_contenders_own():
    contenders = {"small": [Lane("cpu", 1, holding, 1)], "large": [Lane("cpu", 1, holding, 300)]}
    with lanes(contenders):
        done = race(Comparison("race", "small"), contenders, 1, QUIET)
    for memory in (done.memory, done.own_memory):
        assert memory["large"] - memory["small"] > 250 << 20


def test_lanes_end_with_their_comparison():
    lane = Lane("cpu", 1, sleeper, 0.001, 1)
    with lanes({"a": [lane]}):
        assert lane._process.is_alive()
    assert not lane._process.is_alive()


# What is measured


def test_a_bare_step_is_one_of_the_trainers_optimiser():
    step = bench_train.bare_step("efficientnet_lite", Switches(True, False, True), torch.device("cpu"))
    seen = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: seen.append(optimiser))
    try:
        step(torch.rand(4, 3, 32, 32), torch.arange(4))
    finally:
        hook.remove()
    assert len(seen) == 1
    group = seen[0].param_groups[0]
    assert isinstance(seen[0], torch.optim.AdamW) and group["fused"] is True
    assert all(p.grad is None for p in group["params"])  # as the trainer leaves them


@pytest.mark.parametrize("saves", [False, True])
def test_a_lap_of_training_is_one_epoch(saves):
    work = bench_train.loop_work("efficientnet_lite", 32, 2, "cpu", saves)
    assert work() == 64 and work() == 64


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    return drawn_folder.write(tmp_path_factory.mktemp("bench") / "cells", per_class=2, test=0)


def test_torchvisions_pipeline_gives_each_file_once_augmented(cells):
    batches = bench_loaders.torchvision_batches(cells / "train", 32, 5, 0, torch.device("cpu"), AugmentConfig())
    x, y = (torch.cat(part) for part in zip(*batches))
    assert x.shape == (16, 3, 32, 32) and sorted(y.tolist()) == sorted(list(range(8)) * 2)
    assert x.min() >= 0 and x.max() <= 1 and not torch.equal(x, torch.cat(next(zip(*batches))))


def test_timms_pipeline_gives_files_augmented(cells):
    pytest.importorskip("timm")
    batches = bench_loaders.timm_batches(cells / "train", 32, 8, 0, torch.device("cpu"), AugmentConfig())
    x, y = (torch.cat(part) for part in zip(*batches))
    assert x.shape == (16, 3, 32, 32) and len(y) == 16 and x.isfinite().all()


def test_without_timm_its_row_says_so(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(BloodcellError, match=r"timm is not installed: pip install -e '.\[bench\]'"):
        bench_train.pipeline_work("timm", cells / "train", 32, 0, Switches(), "cpu")


def test_a_large_folder_holds_as_many_different_files(tmp_path, cells):
    bench_data.large_folder(cells, tmp_path / "90", 90)
    loaded = data.load(tmp_path / "90", 32, cache=tmp_path / "cache", progress=False)
    few = data.load(cells, 32, cache=tmp_path / "cache", progress=False)
    assert len(loaded) == len(set(loaded.sha256)) == len(set(loaded.names)) == 90
    assert set(loaded.labels.bincount(minlength=8).tolist()) == {11, 12}
    assert len(loaded.images.flatten(1).unique(dim=0)) == len(few.images.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize("stage", bench_data.STAGES)
def test_every_stage_of_growth_takes_all_images(tmp_path, cells, stage):
    bench_data.large_folder(cells, tmp_path / "40", 40)
    work = bench_data.growth_work(stage, tmp_path / "40", 32, "cpu")
    assert work() == (20 if stage == "epoch" else 40)


# The command


def bloodcell(*arguments: str, runs: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"BLOODCELL_RUNS": str(runs)}
    command = [sys.executable, "-m", "bloodcell_lib.cli", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def finite(results: dict) -> None:
    for part in results["parts"].values():
        assert part["machine"]["torch"] == torch.__version__ and part["started"] <= part["ended"]
        for tables in part["groups"].values():
            for row in tables:
                assert row["base"] in row["rates"] and row["ratio"].keys() == row["rates"].keys()
                numbers = [r for rates in row["rates"].values() for r in rates]
                numbers += [value for ratio in row["ratio"].values() for value in ratio.values()]
                assert numbers and all(math.isfinite(number) and number > 0 for number in numbers)


def test_the_command_writes_its_part_and_keeps_the_others(tmp_path):
    done = bloodcell("growth", "--sizes", "40,80", "--device", "cpu", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("bench-cpu-*.json")
    assert str(path) in done.stdout and "80 images" in done.stdout
    results = json.loads(path.read_text())
    finite(results)
    first = results["parts"]["growth"]
    results["parts"]["load"] = results["parts"].pop("growth") | {"commit": "of another day"}
    path.write_text(json.dumps(results))
    assert bloodcell("growth", "--sizes", "40", "--device", "cpu", runs=tmp_path).returncode == 0
    both = json.loads(path.read_text())["parts"]
    assert list(both) == ["load", "growth"] and both["load"]["commit"] == "of another day"
    assert both["growth"] != first and len(both["growth"]["groups"]["Growth, 64 pixels"][0]["rates"]) == 1


def test_a_quick_bench_tries_everything_and_keeps_nothing(tmp_path):
    done = bloodcell("--quick", "--device", "cpu", "--repetitions", "1", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    for title in ("Training loop", "Input pipelines", "Switches", "Prediction", "Loading", "Growth, 32 pixels"):
        assert f"**{title}**" in done.stdout
    left_out = [line for line in done.stdout.splitlines() if "left out" in line]
    assert all("timm is not installed" in line for line in left_out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fast"], "Unknown part 'fast': choose one of train, switches, predict, load, growth."),
        (["--quick", "--publish"], "leave one of --quick and --publish out."),
        (["growth", "--sizes", "many"], "--sizes many is no list of numbers from 40 on: write 1000,4200."),
        (["growth", "--sizes", "3,1000"], "--sizes 3,1000 is no list"),
        (["--device", "toaster"], "Device toaster cannot be used here"),
    ],
)
def test_wrong_flags_are_one_sentence(tmp_path, arguments, said):
    done = bloodcell(*arguments, runs=tmp_path)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_of_results_is_refused_before_anything_is_measured(tmp_path):
    path = bench.file(tmp_path, "cpu")
    for damage in ("", "{}", "[]", '{"format": 1, "parts": {"load": {}}}', '{"format": 99}'):
        path.write_text(damage)
        with pytest.raises(BloodcellError, match=r"bench-cpu-\d+\.json (is no whole file|has format 99)"):
            bench.read(path)
        assert path.read_text() == damage


# The tables


def test_markdown_tells_of_every_contender_and_of_none():
    assert "No speed is recorded" in bench.markdown({})
    (published,) = paths.RESULTS.glob("bench-cpu-*.json")
    results = bench.read(published)
    results["parts"] = {"predict": results["parts"]["predict"]}
    text = bench.markdown(results)
    assert "**Prediction**" in text and text.count("| one at a time | ") == 2 and "| 1 |" in text
    told = bench.summary(results)
    assert "No speed is recorded" in bench.summary({})
    assert told.count("\n") == len(results["parts"]["predict"]["groups"]["Prediction"])
    assert "- **Prediction** (" in told and "  - deep_efficientnet, 96 pixels. Against *one at a time*. " in told
    assert bench.table(results["parts"]["predict"]["groups"]["Prediction"][0])[0].startswith("| deep_efficientnet, 96")


def test_what_paid_is_told_by_its_rule():
    rates = {"base": [10, 10], "fast": [20, 21], "same": [10, 10.4], "once": [20, 8], "slow": [5, 6]}
    told = bench.verdict(Comparison("ways", "base", rates=rates).to_json())
    assert told == "Against *base*. Paid: fast 2.05. No difference: same 1.02; once 1.40. Cost: slow 0.55."
    assert "Nothing else" in bench.verdict(Comparison("ways", "base", rates={"base": [1.0]}).to_json())
