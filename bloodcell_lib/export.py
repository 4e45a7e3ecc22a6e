"""A run's weights as the small set of files that `predict` reads: half precision, for ONNX Runtime and PyTorch.

Batch norm is folded into the convolution before it (the same function, and twice as fast on a CPU), then every number
is rounded to half precision once. Both files hold these numbers; both are computed with in float32.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bloodcell_lib import analysis, models, paths, plans
from bloodcell_lib.analysis import load_network
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.microscope import LOOK
from bloodcell_lib.models import Classifier, ModelConfig
from bloodcell_lib.predict import NAME, READER, Network, load_set
from bloodcell_lib.records import Record, load_record, stamp_of

if TYPE_CHECKING:
    from onnx import ModelProto

M = TypeVar("M", bound=nn.Module)
OPSET = 18  # the exporter's own, in every version of torch
LARGEST = 2_000_000  # parameters of a network that is published: four megabytes a file, which git can keep
TOLERANCE = 1e-4  # most that logits of the two libraries may differ, in units of the largest; they do by some 1e-6


class FromBytes(nn.Module):
    """A network behind images as decoders give them: uint8 (N, H, W, 3) -> what it gives for floats (N, 3, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.permute(0, 3, 1, 2).float() / 255)


def fold(model: M) -> M:
    """Folds each batch norm into the convolution before it, in place; for evaluation alone."""
    model.eval()
    for layers in model.modules():
        if isinstance(layers, nn.Sequential) and len(layers) > 1 and isinstance(layers[1], nn.BatchNorm2d):
            layers[0] = fuse_conv_bn_eval(layers[0], layers[1])
            layers[1] = nn.Identity()
    return model


def export(run: Path, folder: Path | None = None) -> list[Path]:
    """Writes the set from the run recorded in `run`, in place of the set in `folder` (default: the library's).

    Returns the files. Raises BloodcellError for a demo, a large network, missing or broken weights, missing packages,
    a folder that holds anything else, and if ONNX Runtime and PyTorch do not agree on what was written.
    """
    folder = folder or paths.WEIGHTS
    check_packages()
    ours = {f"{NAME}.safetensors", f"{NAME}.onnx", f"{NAME}.json", READER}
    if folder.is_dir() and (other := sorted({path.name for path in folder.iterdir()} - ours)):
        raise BloodcellError(f"{folder} holds what is not of the set, such as {other[0]}: give a folder for it alone.")
    record = load_record(run)
    refuse(record)
    model = load_run(record)
    pixels = record.info["config"]["pixels"]
    with paths.write_folder_whole(folder, replace=True) as home:
        # As bytes, because a full disk is then the error that it is everywhere else.
        contents = {
            f"{NAME}.safetensors": safetensors.torch.save(halved(model)),
            f"{NAME}.onnx": to_onnx(model, pixels),
        }
        for name, content in contents.items():
            (home / name).write_bytes(content)
        weights = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        fitted = temperatures(run.parents[1], plans.measured(record.experiment))
        about = json.dumps({**record.info, "weights": weights, "temperatures": fitted}, indent=1, allow_nan=False)
        (home / f"{NAME}.json").write_text(about + "\n", encoding="utf-8")
        check_agreement(home)
        if (folder / READER).exists():  # of which the run knows nothing
            shutil.copyfile(folder / READER, home / READER)
    return [folder / name for name in (*contents, f"{NAME}.json")]


def temperatures(runs: Path, experiment: str) -> dict[str, float]:
    """At which temperature the probabilities of an experiment's networks are true, by what `trust` found outside of
    their training: "plain", and "tta" of those averaged over the symmetries. {} before it is asked."""
    found = analysis.of_experiment(analysis.load_analyses(runs), experiment).get("trust")
    return {kind: float(np.mean(found["result"][kind]["temperatures"])) for kind in ("plain", "tta")} if found else {}


def export_reader(eye: nn.Module, about: dict[str, str], folder: Path | None = None) -> Path:
    """Writes a reader beside the weights, with what is said about it; gives the file. Raises BloodcellError as
    `check_packages` does."""
    check_packages()
    file = (folder or paths.WEIGHTS) / READER
    model = onnx_model(fold(copy.deepcopy(eye)), LOOK, "photographs", "readings")
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    with paths.write_whole(file) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return file


def missing_packages() -> list[str]:
    """The packages that the export alone needs and that are not installed."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def check_packages() -> None:
    """Raises BloodcellError where `missing_packages` are."""
    if missing := missing_packages():
        raise BloodcellError(f"The export needs {' and '.join(missing)}: pip install {' '.join(missing)}.")


def refuse(record: Record) -> None:
    """Raises BloodcellError for a run whose weights nobody should predict with."""
    if stamp_of(record.info["data"]["source"], record.profile):
        raise BloodcellError(f"{record.folder} is a demo: publish the weights of a run under cpu or full.")
    if (parameters := record.info["model"]["parameters"]) > LARGEST:
        raise BloodcellError(
            f"{record.folder} is a network of {parameters:,} parameters: publish one of {LARGEST:,} at most."
        )


def load_run(record: Record) -> Classifier:
    """The network that the run trained, folded, with its numbers rounded to half precision."""
    model = fold(load_network(record))
    model.load_state_dict(halved(model))
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise BloodcellError(
            f"{record.folder} holds weights that half precision cannot: train with a lower learning rate."
        )
    return model


def halved(model: Classifier) -> dict[str, Tensor]:
    """Parameters and buffers in half precision, by name."""
    return {name: value.half().contiguous() for name, value in model.state_dict().items()}


def published(folder: Path | None = None) -> Classifier:
    """The published network in PyTorch, float32, for evaluation. Raises BloodcellError as `predict.load_set` does."""
    folder = folder or paths.WEIGHTS
    record, _ = load_set(folder)
    model = fold(models.build(ModelConfig(**record["config"]["model"])))
    model.load_state_dict(safetensors.torch.load_file(folder / f"{NAME}.safetensors"))
    return model


def to_onnx(model: Classifier, pixels: int) -> bytes:
    """The ONNX file of a folded classifier whose numbers half precision holds, for any number of images at once."""
    return onnx_model(model, pixels, "images", "logits").SerializeToString()


def onnx_model(model: nn.Module, pixels: int, given: str, gives: str) -> ModelProto:
    """A folded model behind bytes, with the names of what it is given and of what it gives."""
    images = torch.zeros(2, pixels, pixels, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of what torch's own code does
        program = torch.onnx.export(
            FromBytes(model).eval(),
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[given],
            output_names=[gives],
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    return compact(program.model_proto)


def compact(model: ModelProto) -> ModelProto:
    """Changes an ONNX model, which it returns, to one that is smaller and faster and computes the same.

    Numbers that half precision holds are stored so, behind a Cast that ONNX Runtime folds away when it loads; and
    the squeeze becomes an operator that ONNX Runtime has for its blocked layout, which a general mean leaves.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        value = numpy_helper.to_array(tensor)
        half = value.astype(np.float16)
        if np.array_equal(half, value):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    for node in nodes:
        keeps = [attribute.i for attribute in node.attribute if attribute.name == "keepdims"]
        axes = constants.get(node.input[1], ()) if node.op_type == "ReduceMean" and len(node.input) > 1 else ()
        if {int(axis) % 4 for axis in axes} == {2, 3} and keeps != [0]:
            node.CopyFrom(helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name))
        del node.metadata_props[:]  # the exporter's notes and shapes are not needed, and not small
    del model.graph.node[:], model.graph.value_info[:], model.metadata_props[:]
    model.graph.node.extend([*casts, *nodes])
    return model


def check_agreement(folder: Path, images: int = 16) -> None:
    """Raises BloodcellError unless both files give the same labels and close logits on random images."""
    model, network = published(folder), Network(folder)
    pixels = network.pixels
    batch = np.random.default_rng(0).integers(0, 256, (images, pixels, pixels, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = FromBytes(model)(torch.from_numpy(batch)).numpy()
    found = network.logits(batch)
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not (apart < TOLERANCE and np.array_equal(found.argmax(1), expected.argmax(1))):
        raise BloodcellError(
            f"ONNX Runtime and PyTorch differ by {apart:.2g} on the exported weights: use other versions."
        )
