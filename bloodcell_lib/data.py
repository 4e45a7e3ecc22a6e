"""Image files to one uint8 tensor: find, decode once, keep on disk, split.

The course layout is `train/<class>/*.jpg`, `test/*.jpg` and `class_map.json`. Decoded images lie in a memory-mapped
cache keyed by the files' bytes and the size asked for, so a second load reads no JPEG at all.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from tqdm import tqdm

from bloodcell_lib import decode, paths
from bloodcell_lib.cells import CLASS_MAP, NAMES
from bloodcell_lib.errors import BloodcellError

FOLDS, SEED = 5, 42
IN_MEMORY = 1 << 29  # bytes that a copy of images may take before it goes to a file

T = TypeVar("T")


@dataclass(frozen=True)
class ImageFile:
    """One file on disk; label is its class id, or -1 where there is none."""

    path: Path
    label: int


@dataclass(frozen=True)
class CellImages:
    """Decoded images: uint8 (N, 3, H, W) RGB; labels int64 (N,), -1 where unknown; file names; sha256 of the files.

    source: "course images", "synthetic cells" or the folder's name.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """sha256 over names, labels and file contents, in an order of its own: the same for any listing."""
        rows = sorted(zip(self.names, self.labels.tolist(), self.sha256))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def is_course(self) -> bool:
        """Whether these are images of the course set and nothing else."""
        return self.source == COURSE

    def subset(self, indices: Iterable[int]) -> CellImages:
        """The images at `indices`, in that order, copied; a large copy lies in a file without a name, not in memory."""
        at = torch.as_tensor(list(indices), dtype=torch.int64)
        return replace(
            self,
            images=take(self.images, at),
            labels=self.labels[at],
            names=tuple(self.names[i] for i in at.tolist()),
            sha256=tuple(self.sha256[i] for i in at.tolist()),
        )


def take(images: Tensor, at: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> (len(at), 3, H, W), a copy; above IN_MEMORY bytes mapped from a file in the cache's folder
    that goes with the process, so that the memory need not hold all images."""
    if len(at) * images[:1].numel() <= IN_MEMORY:
        return images[at]
    try:
        paths.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=paths.CACHE) as file:
            for rows in at.split(1024):
                file.write(np.ascontiguousarray(images[rows].permute(0, 2, 3, 1).numpy()))
            file.flush()
            raw = np.memmap(file, np.uint8, "c", shape=(len(at), *images.shape[2:], 3))
    except OSError as error:
        raise BloodcellError(f"Cannot copy {len(at)} images to {paths.CACHE}: {error.strerror or error}.") from error
    return torch.from_numpy(raw).permute(0, 3, 1, 2)


COURSE = "course images"
SYNTHETIC = "synthetic cells"


def find(folder: Path, part: str = "train") -> list[ImageFile]:
    """The image files of `part` ("train", with labels from folder names, or "test"), sorted by name.

    Raises BloodcellError for a missing or empty folder, a class folder that is missing, misspelt or extra, and a
    `class_map.json` that is not the course's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BloodcellError(f"No folder {folder}: give the folder that holds train/, test/ and class_map.json.")
    check_class_map(folder / "class_map.json")
    root = folder / part
    if not root.is_dir():
        raise BloodcellError(f"No folder {root}: the images belong in train/<class>/ and test/.")
    if part != "train":
        files = [ImageFile(path, -1) for path in decode.images_in(root)]
        if not files:
            raise BloodcellError(f"No images in {root}: put the .jpg files there.")
        return sorted(files, key=lambda file: file.path.name)
    check_class_folders(root)
    files = []
    for name, label in CLASS_MAP.items():
        inside = decode.images_in(root / name)
        if not inside:
            raise BloodcellError(f"No images in {root / name}: every one of the eight classes needs some.")
        files += [ImageFile(path, label) for path in inside]
    return files


def check_class_map(path: Path) -> None:
    """Raises BloodcellError if `class_map.json` is there and differs from the course's."""
    if not path.exists():
        return
    restore = "restore the course's file."
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        ids = list(found.values())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BloodcellError(f"{path} is not a table of class names and ids: {restore}") from error
    for name, i in found.items():
        if ids.count(i) > 1:
            raise BloodcellError(f"{path} gives id {i} to more than one class: {restore}")
        if CLASS_MAP.get(name) != i:
            raise BloodcellError(f"{path} differs from the course's at '{name}': {restore}")
    if found != CLASS_MAP:
        raise BloodcellError(f"{path} lacks '{next(name for name in NAMES if name not in found)}': {restore}")


def check_class_folders(root: Path) -> None:
    """Raises BloodcellError unless the folders in `root` are exactly the eight classes."""
    found = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    extra, missing = sorted(found - set(NAMES)), [name for name in NAMES if name not in found]
    if extra:
        near = difflib.get_close_matches(extra[0].lower(), missing, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(NAMES)}."
        raise BloodcellError(f"{root / extra[0]} is not one of the eight classes: {hint}")
    if missing:
        raise BloodcellError(f"No folder {root / missing[0]}: each of the eight classes needs one.")


def load(
    folder: Path,
    pixels: int = 224,
    crop: int | None = None,
    part: str = "train",
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
    cache: Path | None = None,
) -> CellImages:
    """All images of a folder at `pixels` x `pixels`, from the cache if they were decoded before.

    cache: the folder that holds what was decoded; default `paths.CACHE`.

    Raises BloodcellError as `find` does, and for files that are no whole image unless `skip_bad` leaves them out; even
    then a class, or `test/`, must keep some.
    """
    found, workers = find(folder, part), workers or decode.usable_cores()
    files, digests, unread = digested(found, workers)
    if not files:
        report_bad(unread, len(found), folder, skip_bad)
    # Name, class and bytes make the key: a renamed folder finds its cache, a changed file does not.
    rows = [(file.path.name, file.label, digest) for file, digest in zip(files, digests)]
    key = hashlib.sha256(json.dumps([decode.VERSION, pixels, crop, rows]).encode()).hexdigest()[:24]
    home = (cache or paths.CACHE) / key
    index = cached(home, pixels) or fill_cache(home, files, digests, pixels, crop, workers, progress)
    if bad := unread + index["bad"]:
        report_bad(bad, len(found), folder, skip_bad)
        readable = set(index["labels"])
        for file in found:
            if file.label not in readable:
                raise BloodcellError(f"No image in {file.path.parent} can be read: every class needs some.")
    # Copy on write: torch wants writable memory, and nobody may change the cache.
    raw = np.memmap(home / "images.bin", dtype=np.uint8, mode="c", shape=(len(index["names"]), pixels, pixels, 3))
    return CellImages(
        torch.from_numpy(raw).permute(0, 3, 1, 2),  # (N, 3, H, W) over bytes in (N, H, W, 3): channels last for free
        torch.tensor(index["labels"], dtype=torch.int64),
        tuple(index["names"]),
        tuple(index["sha256"]),
        name_source(Path(folder), part, index["names"], index["labels"], index["sha256"]),
    )


def cached(home: Path, pixels: int) -> dict[str, Any] | None:
    """The index of a filled cache; None where there is none, or one that somebody damaged."""
    try:
        index = json.loads((home / "index.json").read_text(encoding="utf-8"))
        size = (home / "images.bin").stat().st_size
        return index if size == len(index["names"]) * pixels * pixels * 3 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fill_cache(
    home: Path,
    files: list[ImageFile],
    digests: list[str],
    pixels: int,
    crop: int | None,
    workers: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Decodes `files` into `home`: images.bin, uint8 (N, H, W, 3), and index.json, returned; whole or not at all."""

    def one(path: Path) -> bytes | OSError:
        return attempted(lambda: decode.to_pixels(path, pixels, crop).tobytes(), path)

    index: dict[str, Any] = {"names": [], "labels": [], "sha256": [], "bad": []}
    if home.exists() and cached(home, pixels) is None:  # damaged, for it appeared whole
        shutil.rmtree(home, ignore_errors=True)
    try:
        with paths.write_folder_whole(home) as folder:
            decoding = contextlib.closing(decode.in_threads(one, [file.path for file in files], workers))
            # Written in order and never mapped while it grows: a full disk is then an error, not a crash.
            with (folder / "images.bin").open("wb") as out, decoding as decoded:
                bar = tqdm(decoded, "decode", len(files), disable=None if progress else True, unit="image", leave=False)
                for file, digest, raw in zip(files, digests, bar):
                    if isinstance(raw, OSError):
                        index["bad"].append([str(file.path), str(raw)])
                        continue
                    out.write(raw)
                    index["names"].append(file.path.name)
                    index["labels"].append(file.label)
                    index["sha256"].append(digest)
            (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    except BloodcellError:
        # Another process may have filled it meanwhile, with the same images, and this one have stopped half-way.
        if (whole := cached(home, pixels)) is None:
            raise
        return whole
    return index


def report_bad(bad: list[list[str]], total: int, folder: Path, skip: bool) -> None:
    """Raises BloodcellError that names and counts unreadable files, or prints the same if they may be left out."""
    first = "; ".join(f"{Path(path).name} ({why.rstrip('.')})" for path, why in bad[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    what = f"{len(bad)} of {total} files in {folder} cannot be read: {first}{more}"
    if not skip or len(bad) == total:
        or_skip = ", or leave them out with --skip-bad" if len(bad) < total else ""
        raise BloodcellError(f"{what}. Mend or remove them{or_skip}.")
    tqdm.write(f"Left out: {what}.")


def attempted(read: Callable[[], T], path: Path) -> T | OSError:
    """What is read of a file, or why it is no good. Raises BloodcellError where the system cannot read what is there,
    which may be gone tomorrow: nothing to keep in a cache."""
    try:
        return read()
    except OSError as error:
        if error.errno is not None:
            raise BloodcellError(f"Cannot read {path}: {error.strerror}.") from error
        return error


def digested(files: list[ImageFile], workers: int | None = None) -> tuple[list[ImageFile], list[str], list[list[str]]]:
    """The files that are some, their sha256, and of the others, such as broken links, the path and why not. Raises
    BloodcellError where the system cannot read what is there."""

    def one(path: Path) -> str | OSError:
        return attempted(lambda: sha256_of(path), path)

    found = list(zip(files, decode.in_threads(one, [file.path for file in files], workers)))
    read = [(file, digest) for file, digest in found if isinstance(digest, str)]
    bad = [[str(file.path), str(why)] for file, why in found if isinstance(why, OSError)]
    return [file for file, _ in read], [digest for _, digest in read], bad


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes. Raises OSError for what cannot be read, such as a broken link."""
    if not path.is_file():  # a pipe would never end
        raise OSError("no file, or a link to none")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):  # a file may be larger than the memory
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def manifest() -> dict[str, dict[str, tuple[int, str]]]:
    """Label and sha256 of each course image by part and name, from `data/manifest.csv`; empty without that file."""
    table: dict[str, dict[str, tuple[int, str]]] = {"train": {}, "test": {}}
    if paths.MANIFEST.exists():
        with paths.MANIFEST.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                table[row["part"]][row["name"]] = (CLASS_MAP.get(row["class"], -1), row["sha256"])
    return table


def name_source(folder: Path, part: str, names: Sequence[str], labels: Sequence[int], sha256: Sequence[str]) -> str:
    """What to call these images: the course set if the manifest has exactly them, synthetic, or the folder's name."""
    if (folder / paths.DRAWN).exists():
        return SYNTHETIC
    known = manifest()[part]
    if known and dict(zip(names, zip(labels, sha256))) == known and len(names) == len(known):
        return COURSE
    return folder.resolve().name


def folds(cells: CellImages, k: int = FOLDS, seed: int = SEED) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified k-fold: (training, validation) int64 indices, sorted; identical pictures stay on one side.

    The five of the whole course set are those of `data/folds.csv`, so that every size and crop has the same. Raises
    BloodcellError if a class has fewer than `k` different pictures.
    """
    if (k, seed) == (FOLDS, SEED) and cells.is_course and (known := course_folds()).keys() == set(cells.names):
        fold = np.array([known[name] for name in cells.names])
        return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(k)]
    labels = cells.labels.numpy()
    # Identical is judged by pixels, not by file: the same picture saved twice has other bytes.
    pictures = [hashlib.sha256(np.ascontiguousarray(image)).digest() for image in cells.images.numpy()]
    numbers: dict[bytes, int] = {}  # in the order of the images, which does not change with their size as hashes do
    groups = np.array([numbers.setdefault(picture, len(numbers)) for picture in pictures])
    for label in np.unique(labels):
        if len(np.unique(groups[labels == label])) < k:
            raise BloodcellError(f"{NAMES[label]} has fewer than {k} different pictures: add some, one for each fold.")
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    return [(np.sort(a), np.sort(b)) for a, b in splitter.split(labels, labels, groups)]


def course_folds() -> dict[str, int]:
    """The fold, 0 to 4, of each labelled course image, from `data/folds.csv`; empty without that file."""
    if not paths.FOLDS_FILE.exists():
        return {}
    with paths.FOLDS_FILE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: int(row["fold"]) for row in csv.DictReader(file)}


def split(cells: CellImages, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """The 80/20 split: the first of the five folds."""
    return folds(cells, FOLDS, seed)[0]
