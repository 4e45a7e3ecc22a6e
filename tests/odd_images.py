"""Files that a folder of images may hold: pictures of noise, and everything that is no whole picture."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin


def picture(mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> np.ndarray:
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = np.random.default_rng(1).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return image[..., 0] if bands == 1 else image


def write_png(
    path: Path, size: tuple[int, int], rows: bytes, bits: int = 8, colour: int = 0, more: bytes = b""
) -> None:
    """A PNG file that declares `size`, whatever `rows` holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def truncated(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def text_bomb(path: Path) -> None:
    """A PNG whose comment unpacks to 80 MB: Pillow answers with a ValueError."""
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 80_000_000, zip=True)
    Image.new("L", (4, 4)).save(path, "PNG", pnginfo=info)


def broken_png(path: Path) -> None:
    """Pillow answers with a SyntaxError."""
    Image.fromarray(picture(size=(40, 40))).save(path, "PNG")
    raw = bytearray(path.read_bytes())
    raw[50] ^= 255
    path.write_bytes(raw)


BAD: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "zero bytes": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a picture at all"),
    "a web page": lambda path: path.write_text("<html><body>404 Not Found</body></html>"),
    "noise": lambda path: path.write_bytes(np.random.default_rng(4).bytes(5000)),
    "a JPEG header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "PostScript": lambda path: Image.new("RGB", (4, 4)).save(path, "EPS"),
    "text bomb": text_bomb,
    "broken PNG": broken_png,
    "decompression bomb": lambda path: write_png(path, (30000, 30000), bytes(10**6)),
    "large by half": lambda path: write_png(path, (10000, 10000), bytes(10**6)),
    "an archive": lambda path: (
        shutil.make_archive(str(path.with_suffix("")), "zip", path.parent, path.name)
        and path.with_suffix(".zip").rename(path)
    ),
}
