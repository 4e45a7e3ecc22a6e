"""From a run to the published files: the same numbers in both, the same answers, and nobody's demo."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load, save
from trained import network_of

from bloodcell_lib import analysis, calibration, decode, export, models, predict, reader
from bloodcell_lib.cells import CLASS_MAP
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.predict import NAME, READER, Network
from bloodcell_lib.reader import Reader

FILES = [f"{NAME}.json", f"{NAME}.onnx", f"{NAME}.safetensors"]


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture(scope="module")
def images(drawn: Path) -> tuple[np.ndarray, list[int]]:
    """The 64 training images, uint8 (64, 96, 96, 3), and their labels."""
    files = sorted(drawn.glob("train/*/*.jpg"))
    return np.stack([decode.to_pixels(path, 96, 240) for path in files]), [
        CLASS_MAP[path.parent.name] for path in files
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).numpy()


def test_the_set_is_small_and_tells_of_its_run(weights: Path, run_folder: Path) -> None:
    assert sorted(path.name for path in weights.iterdir()) == FILES
    assert all(path.stat().st_size < 4_000_000 for path in weights.iterdir())
    about = json.loads((weights / f"{NAME}.json").read_text())
    recorded = json.loads((run_folder / "record.json").read_text())
    sums = about.pop("weights")
    assert about.pop("temperatures") == {}, "no analysis has found them"
    assert about == recorded and about["config"]["pixels"] == 96 and about["config"]["crop"] == 240
    assert sums == {name: sha256((weights / name).read_bytes()).hexdigest() for name in FILES[1:]}


def test_the_probabilities_are_at_the_temperature_that_the_recipe_was_found_to_have(
    run_folder: Path, weights: Path, images: tuple[np.ndarray, list[int]], tmp_path: Path
) -> None:
    """`main` tells how `final` does, whose run held no image out."""
    run = shutil.copytree(run_folder, tmp_path / "cpu" / "final" / "seed0")
    about = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(about | {"experiment": "final"}))
    fitted = {"plain": {"temperatures": [0.4, 0.6]}, "tta": {"temperatures": [0.7, 0.9]}}
    found = {"format": analysis.FORMAT, "experiment": "main", "result": fitted}
    (tmp_path / "cpu" / analysis.ANALYSES).mkdir()
    (tmp_path / "cpu" / analysis.ANALYSES / "trust.json").write_text(json.dumps(found))
    export.export(run, tmp_path / "weights")
    sharp, plain = Network(tmp_path / "weights"), Network(weights)
    assert sharp.temperatures == pytest.approx({"plain": 0.5, "tta": 0.8})
    for tta, t in ((False, 0.5), (True, 0.8)):
        given, expected = (network.probabilities(images[0][:24], tta) for network in (sharp, plain))
        np.testing.assert_allclose(given, calibration.scaled(expected, t), atol=1e-6)
        assert (given.argmax(1) == expected.argmax(1)).all() and given.max(1).mean() > expected.max(1).mean()


def test_both_files_hold_the_same_numbers_in_half_precision(weights: Path) -> None:
    tensors = load_file(weights / f"{NAME}.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    graph = onnx.load(weights / f"{NAME}.onnx").graph
    stored = {
        i.name.removeprefix("network.").removesuffix(".half"): numpy_helper.to_array(i) for i in graph.initializer
    }
    for name, tensor in tensors.items():
        if not name.startswith("standardise."):  # which the exporter gives a shape of its own
            assert np.array_equal(stored[name], tensor) and stored[name].dtype == np.float16, name
    constants = [value.ravel().tolist() for value in stored.values() if value.size == 3]
    assert {name for name in tensors if name.startswith("standardise.")} == {"standardise.mean", "standardise.std"}
    assert all(tensors[f"standardise.{part}"].tolist() in constants for part in ("mean", "std"))
    # What makes it fast: batch norm folded, the squeeze pooled by an operator of the blocked layout.
    operators = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in operators and operators.count("GlobalAveragePool") == 20


@pytest.mark.parametrize("n", [1, 3, 64])
def test_onnx_runtime_and_pytorch_agree(weights: Path, images: tuple[np.ndarray, list[int]], n: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
    for batch in (images[0][-n:], noise):
        found, expected = Network(weights).logits(batch), logits(export.published(weights), batch)
        assert found.shape == (n, 8) and found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_half_precision_changes_no_label(weights: Path, run_folder: Path, images: tuple[np.ndarray, list[int]]) -> None:
    found, trained = Network(weights).logits(images[0]), logits(network_of(run_folder), images[0])
    assert found.argmax(1).tolist() == trained.argmax(1).tolist() == images[1]
    apart = np.abs(predict.softmax(found) - predict.softmax(trained)).max()
    assert 0 < apart < 0.05


@pytest.mark.parametrize("name", models.NETWORKS)
def test_folding_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(ModelConfig(name))
    images = torch.rand(4, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.3)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        for _ in range(30):
            model(images)
        expected = model.eval()(images)
        folded = export.fold(model)(images)
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not norms or name in ("simple_cnn", "resnet18")  # only these have norms that are not beside convolutions


def test_a_mean_over_channels_is_no_pool() -> None:
    torch.manual_seed(0)
    model = models.build(ModelConfig("slim_resnet", grey_world=True)).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(export.to_onnx(model, 32))
    found, expected = session.run(None, {"images": images})[0], logits(model, images)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_failed_export_leaves_the_old_set(
    weights: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "package" / "weights"
    shutil.copytree(weights, home)
    other = (weights / f"{NAME}.onnx").read_bytes()
    values = load((run / "weights.safetensors").read_bytes())
    values["net.head.bias"] += torch.arange(8)
    (run / "weights.safetensors").write_bytes(save(values))
    monkeypatch.setattr(export, "to_onnx", lambda *_: other)  # as if the exporter computed something else
    with pytest.raises(BloodcellError, match="ONNX Runtime and PyTorch differ by"):
        export.export(run, home)
    assert contents(home) == contents(weights) and os.listdir(home.parent) == ["weights"]


def changed(*keys: str, to: object) -> Callable[[Path], None]:
    """A change to the record."""

    def change(run: Path) -> None:
        info = json.loads((run / "record.json").read_text())
        place = info
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        (run / "record.json").write_text(json.dumps(info))

    return change


def scaled(run: Path) -> None:
    values = load((run / "weights.safetensors").read_bytes())
    values["net.head.weight"] *= 1e7
    (run / "weights.safetensors").write_bytes(save(values))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a demo": (changed("profile", to="demo"), "is a demo: publish the weights of a run under cpu or full"),
    "a demo's study": (changed("profile", to="demo/study"), "is a demo"),
    "drawn cells": (changed("data", "source", to="synthetic cells"), "is a demo"),
    "a large network": (
        changed("model", "parameters", to=26_084_104),
        "of 26,084,104 parameters: publish one of 2,000",
    ),
    "no record": (lambda run: (run / "record.json").unlink(), "is not a whole record"),
    "no weights": (lambda run: (run / "weights.safetensors").unlink(), "No weights in"),
    "half the weights": (
        lambda run: os.truncate(run / "weights.safetensors", 1_000_000),
        "weights.safetensors is damaged",
    ),
    "of other code": (changed("config", "model", "newer", to=1), "was made by another version of the code"),
    "no squeeze": (changed("config", "model", "squeeze_excite", to=False), "weights.safetensors is damaged"),
    "beyond half precision": (scaled, "holds weights that half precision cannot"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_cannot_be_published_is_refused(run: Path, tmp_path: Path, how: str) -> None:
    spoil, match = SPOILT[how]
    spoil(run)
    with pytest.raises(BloodcellError, match=match):
        export.export(run, tmp_path / "weights")
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_that_holds_anything_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (home := tmp_path / "mine").mkdir()
    (home / "notes.txt").write_text("a thesis")
    with pytest.raises(BloodcellError, match=r"holds what is not of the set, such as notes.txt"):
        export.export(run, home)
    assert os.listdir(home) == ["notes.txt"]


def test_a_missing_package_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(BloodcellError, match="The export needs onnxscript: pip install onnxscript"):
        export.export(run, tmp_path / "weights")
    assert os.listdir(tmp_path) == ["run"]


def test_the_command_publishes_what_predict_reads(published: Path, weights: Path, drawn: Path, tmp_path: Path) -> None:
    home = tmp_path / "package" / "weights"
    home.mkdir(parents=True)
    for name in FILES:  # a set before, which makes way
        (home / name).write_text("older")

    def bloodcell(*arguments: str) -> subprocess.CompletedProcess[str]:
        places = {"BLOODCELL_RUNS": str(published / "runs"), "BLOODCELL_WEIGHTS": str(home)}
        command = [sys.executable, "-m", "bloodcell_lib.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | places, timeout=300)

    done = bloodcell("publish", "--profile", "cpu", "--weights", "--experiment", "final")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [str(home / name) for name in FILES]
    assert "as trained: `bloodcell trust --only trust --experiment main --profile cpu` finds their" in done.stderr
    assert contents(home) == contents(weights) and os.listdir(home.parent) == ["weights"]
    done = bloodcell("predict", str(drawn / "test"), "--format", "json")
    assert json.loads(done.stdout) == {
        row.name: row.label for row in predict.predict(predict.find([drawn / "test"]), Network(weights))
    }


def test_a_reader_is_the_same_in_both_and_outlives_new_weights(run: Path, weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "weights")
    torch.manual_seed(0)
    eye = Reader().eval()
    with torch.no_grad():
        eye.head.weight.normal_()
    file = export.export_reader(eye, {"part": "all", "images": "none"}, folder)
    assert file == folder / READER and file.stat().st_size < 2_000_000
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert said == {"part": "all", "images": "none"}
    looks = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    found = predict.Eye(folder).read([Image.fromarray(one) for one in looks])
    expected = reader.read(eye, looks)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    export.export(run, folder)
    assert sorted(contents(folder)) == sorted([*FILES, READER])
