"""Labels for image files by the published weights, on ONNX Runtime. Imports no torch, so that it starts at once.

The weights are a set of three files that `export` writes: `<NAME>.onnx` (images uint8 (N, H, W, 3) -> logits
float32 (N, 8)), `<NAME>.safetensors` (the same numbers for PyTorch) and `<NAME>.json` (the record of the run that
made them, with the sha256 of both). Beside them lies `READER` (photographs uint8 (N, LOOK, LOOK, 3) -> what is read of
them, float32 (N, 7)), which `microscope` undoes if asked to.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bloodcell_lib import decode, microscope, paths
from bloodcell_lib.cells import NAMES
from bloodcell_lib.errors import BloodcellError

# Its binaries report their use to their maker unless told not to, before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

NAME, READER = "classifier", "reader.onnx"
BATCH = 8  # what a core's cache holds at 224 pixels; 32 images at once take 1.3 times as long for each


@dataclass(frozen=True)
class Prediction:
    """One file's class probabilities, float64 (8,) that sum to 1; or None, and in `bad` why it cannot be read."""

    name: str
    probabilities: np.ndarray | None
    bad: str = ""

    @property
    def label(self) -> int:
        """Id of the most probable class."""
        assert self.probabilities is not None
        return int(self.probabilities.argmax())


class Network:
    """The published network in a session of its own. Raises BloodcellError if there are no weights in `folder`
    (default: the library's), or not a whole set."""

    def __init__(self, folder: Path | None = None) -> None:
        self.record, onnx = load_set(folder or paths.WEIGHTS)
        self.pixels: int = self.record["config"]["pixels"]
        self.crop: int | None = self.record["config"]["crop"]
        self.temperatures: dict[str, float] = self.record.get("temperatures", {})
        self.session = session(onnx)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, pixels, pixels, 3), RGB -> float32 (N, 8)."""
        return self.session.run(["logits"], {"images": np.ascontiguousarray(images)})[0]

    def probabilities(self, images: np.ndarray, tta: bool = False) -> np.ndarray:
        """uint8 (N, pixels, pixels, 3), RGB -> float64 (N, 8); `tta` averages over the square's eight symmetries.

        At the temperature of each (Guo et al. 2017) where the set has it, which leaves the label as it is.
        """
        if not tta:
            return softmax(self.logits(images), self.temperatures.get("plain", 1.0))
        mean = np.mean([softmax(self.logits(turned)) for turned in symmetries(images)], axis=0)
        return softmax(np.log(mean.clip(np.finfo(float).tiny)), self.temperatures.get("tta", 1.0))


class Eye:
    """The published reader, which tells how photographs were taken. Raises BloodcellError if `folder` has none."""

    def __init__(self, folder: Path | None = None) -> None:
        file = (folder or paths.WEIGHTS) / READER
        try:
            self.session = session(file.read_bytes())
            self.read([Image.new("RGB", (8, 8))])  # some other network would not
        except FileNotFoundError as error:
            raise BloodcellError(
                f"No reader {file}: make it with `bloodcell reader --profile cpu --publish`, or do without --normalise."
            ) from error
        except OSError:
            raise
        except Exception as error:  # the runtime's own kinds, for what is no network
            raise BloodcellError(
                f"{file} is damaged: make it again with `bloodcell reader --profile cpu --publish`."
            ) from error

    def read(self, images: Sequence[Image.Image]) -> np.ndarray:
        """What is read of whole photographs in RGB, float32 (n, 7), in the order of `microscope.READ`."""
        return self.session.run(["readings"], {"photographs": np.stack([microscope.look(one) for one in images])})[0]

    def undone(self, images: Sequence[Image.Image], pixels: int, crop: float | None) -> np.ndarray:
        """Whole photographs as ours: uint8 (n, pixels, pixels, 3); crop as in `microscope.undone`."""
        return microscope.undone(images, self.read(images), pixels, crop)


def session(onnx: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX file ready to run on the CPU, with every rewriting of the graph that the runtime knows.

    threads: how many compute one batch together. More than one wait for one another in busy loops, which makes them far
    slower on a busy machine; `predict` has images side by side instead.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors alone: what it warns of is the machine
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def load_set(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The record and the ONNX file's bytes. Raises BloodcellError if they are missing or do not belong together."""
    about = folder / f"{NAME}.json"
    if not about.exists():
        raise BloodcellError(
            f"No weights in {folder}: bring the published ones back with `git checkout bloodcell_lib/weights`, or make "
            "some as README says under Predict."
        )
    try:
        record = json.loads(about.read_text(encoding="utf-8"))
        found = {name: (folder / name).read_bytes() for name in (f"{NAME}.onnx", f"{NAME}.safetensors")}
        whole = record["weights"] == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
        record["config"]["pixels"], record["config"]["crop"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise BloodcellError(f"The weights in {folder} are not a whole set: publish or install them again.")
    return record, found[f"{NAME}.onnx"]


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Logits (N, 8) -> probabilities float64 (N, 8)."""
    powers = np.exp((logits.astype(np.float64) - logits.max(1, keepdims=True)) / temperature)
    return powers / powers.sum(1, keepdims=True)


def symmetries(images: np.ndarray) -> Iterator[np.ndarray]:
    """The four quarter turns of images (N, H, H, C), each as it is and mirrored."""
    for turns in range(4):
        turned = np.rot90(images, turns, (1, 2))
        yield turned
        yield turned[:, :, ::-1]


def find(given: Iterable[Path]) -> dict[str, Path]:
    """The images straight inside folders, and files as they are given: by name, in natural order, each file once.

    A name is the file's own; if two would be the same, all are given from the innermost folder that holds all.
    Raises BloodcellError for what does not exist and for a folder without images.
    """
    files: list[str] = []
    for path in given:
        if path.is_dir():
            inside = decode.images_in(path)
            if not inside:
                raise BloodcellError(f"No images straight inside {path}: give the folder that holds them.")
            files += map(os.path.abspath, inside)
        elif os.path.lexists(path):
            files.append(os.path.abspath(path))
        else:
            raise BloodcellError(f"No file or folder {path}: check its name.")
    files = list(dict.fromkeys(files))
    names = [os.path.basename(file) for file in files]
    if len(set(names)) < len(names):
        root = os.path.commonpath([os.path.dirname(file) for file in files])
        names = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    found = {name: Path(file) for name, file in zip(names, files)}
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that puts img_2 before img_10."""
    parts: list[str | int] = [*re.split(r"(\d+)", name)]
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def predict(
    files: dict[str, Path], network: Network, tta: bool = False, workers: int | None = None, eye: Eye | None = None
) -> Iterator[Prediction]:
    """A prediction for each of `files`, in their order; `workers` threads (default: a core each) decode and compute.

    eye: reads of each photograph how it was taken, which is then undone.
    """

    def one(path: Path) -> np.ndarray | str:
        try:
            if eye:
                return eye.undone([decode.read(path)], network.pixels, network.crop)[0]
            return decode.to_pixels(path, network.pixels, network.crop)
        except OSError as error:
            return (error.strerror or str(error)).rstrip(".")

    def several(names: Sequence[str]) -> list[Prediction]:
        seen = [one(files[name]) for name in names]
        images = [image for image in seen if not isinstance(image, str)]
        rows = iter(network.probabilities(np.stack(images), tta) if images else ())
        return [
            Prediction(name, None, bad=image) if isinstance(image, str) else Prediction(name, next(rows))
            for name, image in zip(names, seen)
        ]

    workers, names = workers or decode.usable_cores(), list(files)
    batches = (names[start : start + BATCH] for start in range(0, len(names), BATCH))
    with contextlib.closing(decode.in_threads(several, batches, workers, ahead=2 * workers)) as predicted:
        yield from itertools.chain.from_iterable(predicted)


# Output. All take readable predictions alone.


def as_json(rows: Sequence[Prediction], probabilities: bool = False) -> str:
    """The course's format, {"img_0.jpg": 7, ...}: file name to class id.

    With `probabilities`, name to {"label": id, "class": name, "probabilities": {class: p, ...}}.
    """
    if not probabilities:
        return json.dumps({row.name: row.label for row in rows}, indent=1) + "\n"
    table = {
        row.name: {"label": row.label, "class": NAMES[row.label], "probabilities": dict(zip(NAMES, rounded(row)))}
        for row in rows
    }
    return json.dumps(table, indent=1) + "\n"


def as_csv(rows: Sequence[Prediction], probabilities: bool = False) -> str:
    """Columns name, label, class and, with `probabilities`, one for each class under its name."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "label", "class", *(NAMES if probabilities else ())])
    for row in rows:
        writer.writerow([row.name, row.label, NAMES[row.label], *(rounded(row) if probabilities else ())])
    return out.getvalue()


def as_lines(rows: Sequence[Prediction], probabilities: bool = False) -> str:
    """For reading: name, class and its probability, and with `probabilities` all eight below a heading."""
    names = [row.name if row.name.isprintable() else ascii(row.name)[1:-1] for row in rows]
    wide, kind = max(map(len, names)), max(map(len, NAMES))
    lines = []
    if probabilities:
        lines.append(" " * (wide + kind + 10) + "".join(f"  {name:>{kind}}" for name in NAMES))
    for name, row in zip(names, rows):
        all_eight = "".join(f"  {p:{kind}.4f}" for p in row.probabilities) if probabilities else ""
        lines.append(f"{name:<{wide}}  {NAMES[row.label]:<{kind}}  {row.probabilities.max():6.1%}{all_eight}")
    return "\n".join(lines) + "\n"


def counted(rows: Sequence[Prediction]) -> str:
    """How many of each class, the most frequent first: "3 platelet, 1 monocyte"."""
    return ", ".join(f"{n} {NAMES[label]}" for label, n in Counter(row.label for row in rows).most_common())


def rounded(row: Prediction) -> list[float]:
    """The eight probabilities to six places."""
    return [round(float(p), 6) for p in row.probabilities]
