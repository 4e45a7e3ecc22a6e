"""How fast images are read and predicted, and what that costs as their number grows."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bloodcell_lib import data, decode, drawn_folder, export, models, predict
from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.bench_train import MAIN, Say, random_cells
from bloodcell_lib.cells import NAMES
from bloodcell_lib.data import CellImages, ImageFile
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.recipe import PRECISIONS, TrainConfig
from bloodcell_lib.timings import Comparison, Lane, Work, lanes, race
from bloodcell_lib.trainer import Trainer

DRAWN = 50  # pictures a class that are really drawn for a large folder
SMALL = "efficientnet_lite"  # what reads them should take more time than the network
STAGES = {
    "first load": "find, hash, decode, write the cache",
    "second load": "find, hash, map the cache",
    "split": "find identical pictures, stratify; pictures of 8 pixels",
    "epoch": f"{SMALL} with augmentation, over a copy of half of the images",
    "predict": f"decode without a cache, then {SMALL}",
}

# Loading


def first_load(folder: Path, pixels: int) -> Work:
    """Finds, hashes, decodes, writes the cache."""

    def work() -> int:
        with tempfile.TemporaryDirectory(prefix="bloodcell-bench-") as cache:
            return len(data.load(folder, pixels, cache=Path(cache), progress=False))

    return work


def second_load(folder: Path, pixels: int) -> Work:
    """Finds, hashes, maps the cache, and reads every byte of it."""
    cache = tempfile.TemporaryDirectory(prefix="bloodcell-bench-")

    def work() -> int:
        cells = data.load(folder, pixels, cache=Path(cache.name), progress=False)
        cells.images.sum()
        return len(cells)

    work()
    return work


def pillow_loop(folder: Path, pixels: int, crop: int | None = None, last: bool = False) -> Work:
    """What a notebook does: open, convert, resize, stack; nothing is checked and nothing kept.

    crop: cut out the middle of so many pixels; `last` does it after resizing the whole, to the same scale.
    """
    files = sorted(folder.glob("train/*/*.jpg"))

    def middle(image: Image.Image, side: int) -> Image.Image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))

    def picture(path: Path) -> Image.Image:
        image = Image.open(path).convert("RGB")
        if crop is None:
            return image.resize((pixels, pixels))
        if not last:
            return middle(image, crop).resize((pixels, pixels))
        whole = tuple(round(side * pixels / crop) for side in image.size)
        return middle(image.resize(whole), pixels)

    def work() -> int:
        return len(torch.from_numpy(np.stack([np.asarray(picture(path)) for path in files])))

    return work


def loading(folder: Path, pixels: int, repetitions: int, say: Say) -> Comparison:
    """The first and the second load of `folder`/train against a plain loop over its files."""
    threads = torch.get_num_threads()
    makers = {"plain Pillow loop": pillow_loop, "first load": first_load, "second load": second_load}
    notes = {
        "first load": f"finds, hashes, decodes with {decode.usable_cores()} threads, writes the cache",
        "second load": "finds, hashes, maps the cache, reads all of it",
    }
    contenders = {name: [Lane("cpu", threads, maker, folder, pixels)] for name, maker in makers.items()}
    with lanes(contenders):
        title = f"{len(list(folder.glob('train/*/*.jpg')))} JPEG files to {pixels} pixels"
        return race(Comparison(title, "plain Pillow loop", notes=notes), contenders, repetitions, say)


def cropping(folder: Path, pixels: int, crop: int, repetitions: int, say: Say) -> Comparison:
    """A plain loop that crops before it resizes against one that crops after it."""
    threads = torch.get_num_threads()
    orders = {"resize, then crop": True, "crop, then resize": False}
    contenders = {
        name: [Lane("cpu", threads, pillow_loop, folder, pixels, crop, last)] for name, last in orders.items()
    }
    with lanes(contenders):
        title = f"plain Pillow loop, the middle {crop} pixels to {pixels}"
        return race(Comparison(title, next(iter(orders))), contenders, repetitions, say)


# Predicting


def forward_work(pixels: int, batch: int, images: int, channels_last: bool, precision: str, device: str) -> Work:
    """The main network in evaluation mode, over uint8 images on the device, `batch` at a time."""
    where, dtype = torch.device(device), PRECISIONS[precision]
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = models.build(ModelConfig(MAIN)).to(where, memory_format=layout).eval()
    x = torch.randint(256, (batch, 3, pixels, pixels), dtype=torch.uint8, device=where)

    @torch.inference_mode()
    def work() -> int:
        for _ in range(max(1, images // batch)):
            with torch.autocast(where.type, dtype, enabled=dtype is not None):
                model((x / 255).contiguous(memory_format=layout)).float().softmax(1).cpu()
        return batch * max(1, images // batch)

    return work


def in_integers(exported: bytes, pixels: int) -> bytes:
    """An ONNX file with weights and activations in 8 bits, scaled by what a few pictures of noise give."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    noise = np.random.default_rng(0).integers(0, 256, (4, 8, pixels, pixels, 3), dtype=np.uint8)

    class Noise(quantization.CalibrationDataReader):
        left = iter(noise)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"images": pictures} for pictures in self.left), None)

    with tempfile.TemporaryDirectory(prefix="bloodcell-bench-") as home:
        plain, ready, done = (Path(home) / f"{name}.onnx" for name in ("plain", "ready", "done"))
        plain.write_bytes(exported)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantization.quantize_static(ready, done, Noise(), per_channel=True)
        return done.read_bytes()


def onnx_work(pixels: int, batch: int, images: int, form: str, threads: int) -> Work:
    """The same network behind ONNX Runtime: `plain` as it is trained, `folded` as `predict` has it, or in `int8`."""
    model = models.build(ModelConfig(MAIN)).eval()
    exported = export.to_onnx(model if form == "plain" else export.fold(model), pixels)
    runtime = predict.session(in_integers(exported, pixels) if form == "int8" else exported, threads)
    x = np.random.default_rng(0).integers(0, 256, (batch, pixels, pixels, 3), dtype=np.uint8)

    def work() -> int:
        for _ in range(max(1, images // batch)):
            predict.softmax(runtime.run(["logits"], {"images": x})[0])
        return batch * max(1, images // batch)

    return work


def predicting(pixels: int, images: int, repetitions: int, device: str, say: Say) -> Comparison:
    """The main network's forward pass, one image at a time and in batches."""
    rows = {
        "one at a time": (1, False, "float32"),
        "one at a time, channels-last": (1, True, "float32"),
        "64 at a time": (64, False, "float32"),
        "64 at a time, channels-last": (64, True, "float32"),
        "64 at a time, channels-last, bfloat16": (64, True, "bfloat16"),
    }
    threads = torch.get_num_threads()
    contenders = {
        name: [Lane(device, threads, forward_work, pixels, batch, images, last, precision, device)]
        for name, (batch, last, precision) in rows.items()
    }
    if device == "cpu" and not export.missing_packages():
        onnx = {
            "one at a time, ONNX Runtime, plain export": (1, "plain"),
            "one at a time, ONNX Runtime": (1, "folded"),
            "one at a time, ONNX Runtime, 8-bit integers": (1, "int8"),
            f"{predict.BATCH} at a time, ONNX Runtime": (predict.BATCH, "folded"),
        }
        for name, (batch, form) in onnx.items():
            contenders[name] = [Lane(device, threads, onnx_work, pixels, batch, images, form, threads)]
    with lanes(contenders):
        return race(Comparison(f"{MAIN}, {pixels} pixels", next(iter(rows))), contenders, repetitions, say)


# Growth


def large_folder(drawn: Path, target: Path, images: int) -> Path:
    """Writes `target`, a folder in the course's layout with `images` cells, evenly over the classes.

    They repeat the pixels of the few cells in `drawn` in files of other bytes and names (a JPEG comment holds the
    number), so that all are read, hashed, decoded and kept as that many different files are.
    """
    for k, name in enumerate(NAMES):
        sources = [path.read_bytes() for path in sorted((drawn / "train" / name).iterdir())]
        (target / "train" / name).mkdir(parents=True)
        for i in range(k, images, len(NAMES)):
            source, number = sources[i // len(NAMES) % len(sources)], b"%012d" % i
            # Start of image, then a comment segment: marker, length of what follows, text (ITU-T T.81, B.2.4.5).
            comment = b"\xff\xfe" + (len(number) + 2).to_bytes(2, "big") + number
            (target / "train" / name / f"{i:06d}.jpg").write_bytes(source[:2] + comment + source[2:])
    return target


def growth_work(stage: str, folder: Path, pixels: int, device: str) -> Work:
    """One of STAGES, over all files of `folder`/train; the cache is in `folder`."""
    cache = folder / "cache"

    def load() -> CellImages:
        return data.load(folder, pixels, cache=cache, progress=False)

    if stage == "first load":

        def work() -> int:
            shutil.rmtree(cache, ignore_errors=True)
            return len(load())

    elif stage == "second load":

        def work() -> int:
            return len(load())

    elif stage == "split":
        cells = random_cells(int(folder.name), 8)  # the files repeat their pixels; here no two are the same

        def work() -> int:
            return len(np.concatenate(data.split(cells)))

    elif stage == "epoch":
        cells = load()
        train = cells.subset(range(0, len(cells), 2))  # a copy, as a training's images are
        config = TrainConfig(epochs=1_000_000, batch_size=128)
        trainers = [Trainer(ModelConfig(SMALL), config, AugmentConfig(), device, progress=False) for _ in range(2)]
        next(trainers[0].epochs(train.subset(range(min(256, len(train))))))  # the first steps prepare kernels
        epochs = trainers[1].epochs(train)

        def work() -> int:
            next(epochs)
            return len(train)

    else:
        files = data.find(folder)
        model = models.build(ModelConfig(SMALL)).to(device, memory_format=torch.channels_last).eval()

        def decoded(file: ImageFile) -> np.ndarray:
            return decode.to_pixels(file.path, pixels)

        @torch.inference_mode()
        def work() -> int:
            pictures = decode.in_threads(decoded, files)
            while batch := list(itertools.islice(pictures, 128)):
                model(torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2) / 255).argmax(1).cpu()
            return len(files)

    return work


def growth(sizes: tuple[int, ...], pixels: int, device: str, say: Say) -> list[Comparison]:
    """Each of STAGES at each number of images, one lap, against the smallest: a ratio of 1 is a straight line."""
    sizes = tuple(sorted(set(sizes)))
    threads = torch.get_num_threads()
    done = []
    with tempfile.TemporaryDirectory(prefix="bloodcell-bench-") as home:
        per_class = min(DRAWN, -(-sizes[0] // len(NAMES)))
        drawn = drawn_folder.write(Path(home) / "drawn", per_class, test=0)
        folders = {}
        for size in sizes:
            say(f"growth: writing {size:,} files")
            folders[f"{size:,} images"] = large_folder(drawn, Path(home) / str(size), size)
        for stage, what in STAGES.items():
            contenders = {
                name: [Lane(device, threads, growth_work, stage, folder, pixels, device)]
                for name, folder in folders.items()
            }
            with lanes(contenders):
                table = Comparison(f"{stage}: {what}", next(iter(folders)))
                done.append(race(table, contenders, 1, say, warm_up=False))
    return done
