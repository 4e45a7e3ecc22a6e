"""One image file to uint8 RGB pixels, the same for training and for prediction. Imports no torch."""

from __future__ import annotations

import collections
import errno
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP")  # by content; for others, such as EPS, Pillow runs programs
MAX_PIXELS = 25_000_000  # a larger "cell" is a mistake or a decompression bomb
VERSION = 2  # part of the cache's key: raise it when other pixels come out
# Pillow's warnings on broken files: `read` raises for those that matter, and a filter set in a thread is not safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
T = TypeVar("T")
R = TypeVar("R")


def images_in(folder: Path) -> list[Path]:
    """Image files straight inside `folder`, by name; hidden files, folders and other kinds are passed over."""
    named = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in named if not p.is_dir())


def read(path: Path, crop: int | None = None) -> Image.Image:
    """One image as 8-bit RGB, upright; `crop` keeps the central square of at most that many pixels.

    Raises OSError for what is not a whole image, and for one of more than MAX_PIXELS pixels; its `errno` is None
    where the fault is the content's, and a number where the system could not read.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise OSError("not a file")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise OSError(f"{opened.width} x {opened.height} pixels is more than any cell image has")
            image = to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise OSError("not an image" if path.stat().st_size else "an empty file") from error
    except OSError:
        raise
    except MemoryError as error:
        raise OSError(errno.ENOMEM, "the memory does not hold it") from error
    except Exception as error:  # Pillow's plugins raise many kinds for a broken file, and one for a bomb
        raise OSError(str(error) or type(error).__name__) from error
    return central(image, crop)


def central(image: Image.Image, crop: int | None) -> Image.Image:
    """The central square of `crop` pixels a side, or as large as the picture has it; the whole for None."""
    if crop is None:
        return image
    side = min(crop, *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_pixels(path: Path, pixels: int, crop: int | None = None) -> np.ndarray:
    """What the networks see of a file: uint8 (pixels, pixels, 3), RGB. Raises OSError as `read` does."""
    return np.asarray(read(path, crop).resize((pixels, pixels), Image.Resampling.BILINEAR))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any of Pillow's modes as 8-bit RGB, over white where it is transparent."""
    if image.mode.startswith(("I", "F")):  # more than 8 bits: Pillow would clip at 255 rather than scale
        deep = np.nan_to_num(np.asarray(image, dtype=np.float32))
        # Only I;16 says how far its values may reach; for the others the largest one has to tell.
        sixteen = image.mode.startswith("I;16") or deep.max() > 255
        white = 65535 if sixteen else 255 if deep.max() > 1 else 1
        return Image.fromarray((deep / white * 255).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def usable_cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int | None = None, ahead: int = 64
) -> Iterator[R]:
    """`map` over threads, in order: Pillow and hashlib let go of the interpreter while they work.

    workers: threads; by default one for each of `usable_cores`. At most `ahead` results wait for whoever takes them,
    so that memory is bounded.
    """
    rest = iter(items)
    pool = ThreadPoolExecutor(workers or usable_cores())
    try:
        waiting: collections.deque[Future[R]] = collections.deque(
            pool.submit(function, item) for item in itertools.islice(rest, ahead)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
    finally:
        pool.shutdown(cancel_futures=True)
