"""Every kind of image file, beside what the same picture should be."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_images import picture, write_png
from PIL import Image

from bloodcell_lib import decode


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255
    return rgb * alpha + 255 * (1 - alpha)


def three(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, -1)


def same(path: Path, expected: np.ndarray, within: float = 1) -> None:
    found = decode.read(path)
    assert found.mode == "RGB"
    found = np.asarray(found, dtype=float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= within


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colour_and_grey_are_exact(tmp_path: Path, suffix: str) -> None:
    path, rgb, grey = tmp_path / f"a.{suffix}", picture(), picture("L")
    Image.fromarray(rgb).save(path)
    same(path, rgb, 0)
    Image.fromarray(grey).save(path)
    same(path, three(grey), 0)
    Image.fromarray(grey > 127).save(path)
    same(path, three((grey > 127) * 255), 0)


def test_a_grey_jpeg(tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (32, 1))
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=98)
    same(tmp_path / "a.jpg", three(grey), 4)


def test_cmyk_as_it_is_and_inverted_by_adobe(tmp_path: Path) -> None:
    ink = np.zeros((32, 48, 4), np.uint8)
    ink[:16, :24], ink[16:, :24], ink[:16, 24:], ink[16:, 24:] = (0, 200, 200, 0), (90, 0, 0, 60), (0, 0, 0, 255), 0
    rgb = (255.0 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    same(tmp_path / "a.tif", rgb)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    raw = (tmp_path / "a.jpg").read_bytes()
    assert b"Adobe" in raw
    same(tmp_path / "a.jpg", rgb, 3)


def test_lab(tmp_path: Path) -> None:
    for lab, rgb in (((255, 128, 128), 255), ((128, 128, 128), 119), ((0, 128, 128), 0)):
        Image.new("LAB", (4, 4), lab).save(tmp_path / "a.tif")
        same(tmp_path / "a.tif", np.full((4, 4, 3), rgb))


def test_palettes(tmp_path: Path) -> None:
    colours = np.array([[250, 10, 20], [0, 200, 30], [5, 6, 240]], np.uint8)
    index = picture("L") % 3
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "plain.png")
    same(tmp_path / "plain.png", colours[index], 0)
    image.save(tmp_path / "plain.bmp")
    same(tmp_path / "plain.bmp", colours[index], 0)
    image.save(tmp_path / "one.png", transparency=1)
    same(tmp_path / "one.png", over_white(colours[index], np.array([255, 0, 255])[index]))
    alpha = np.array([255, 100, 0], np.uint8)
    image.save(tmp_path / "each.png", transparency=alpha.tobytes())
    same(tmp_path / "each.png", over_white(colours[index], alpha[index]))
    image.save(tmp_path / "really.gif", transparency=2)
    (tmp_path / "really.gif").rename(tmp_path / "named.png")
    same(tmp_path / "named.png", over_white(colours[index], np.array([255, 255, 0])[index]))


def test_transparency_is_seen_over_white(tmp_path: Path) -> None:
    rgba, la, rgb, grey = picture("RGBA"), picture("LA"), picture(), picture("L")
    for suffix in ("png", "tif"):
        Image.fromarray(rgba, "RGBA").save(tmp_path / f"a.{suffix}")
        same(tmp_path / f"a.{suffix}", over_white(rgba[..., :3], rgba[..., 3]))
        Image.fromarray(la, "LA").save(tmp_path / f"b.{suffix}")
        same(tmp_path / f"b.{suffix}", over_white(three(la[..., 0]), la[..., 1]))
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=tuple(rgb[2, 3].tolist()))
    rgb[2, 3] = 255
    same(tmp_path / "key.png", rgb, 0)
    Image.fromarray(grey).save(tmp_path / "grey key.png", transparency=int(grey[0, 0]))
    same(tmp_path / "grey key.png", three(np.where(grey == grey[0, 0], 255, grey)), 0)


@pytest.mark.parametrize("top", [65535, 4095, 200])
def test_sixteen_bits_are_scaled_whatever_the_brightest_pixel(tmp_path: Path, top: int) -> None:
    deep = np.random.default_rng(2).integers(0, top + 1, (5, 7)).astype(np.uint16)
    deep[0, 0] = top
    expected = three(np.round(deep / 257))
    Image.fromarray(deep).save(tmp_path / "a.png")
    same(tmp_path / "a.png", expected, 0)
    Image.fromarray(deep).save(tmp_path / "a.tif")
    same(tmp_path / "a.tif", expected, 0)
    swapped = Image.frombytes("I;16B", (7, 5), deep.astype(">u2").tobytes())
    swapped.save(tmp_path / "b.tif")
    with Image.open(tmp_path / "b.tif") as image:
        assert image.mode == "I;16B"
    same(tmp_path / "b.tif", expected, 0)


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    """Pillow cannot write them, so the file is put together here."""
    deep = np.random.default_rng(3).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    write_png(tmp_path / "a.png", (7, 5), rows, bits=16, colour=2)
    same(tmp_path / "a.png", deep / 257)


@pytest.mark.parametrize(("top", "white"), [(1.0, 1), (250.0, 255), (60000.0, 65535)])
def test_real_numbers_are_scaled_by_how_far_they_reach(tmp_path: Path, top: float, white: int) -> None:
    real_numbers = np.linspace(0, top, 35, dtype=np.float32).reshape(5, 7)
    Image.fromarray(real_numbers).save(tmp_path / "a.tif")
    same(tmp_path / "a.tif", three(real_numbers / white * 255))
    real_numbers[0, :2] = np.nan, -5
    Image.fromarray(real_numbers).save(tmp_path / "a.tif")
    same(tmp_path / "a.tif", three(np.nan_to_num(real_numbers).clip(0) / white * 255))
    Image.fromarray(real_numbers[1:].astype(np.int32)).save(tmp_path / "b.tif")
    same(tmp_path / "b.tif", three(real_numbers[1:].astype(int) / white * 255))


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # from what is stored to what is seen, by the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_what_a_camera_turned_is_turned_back(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb, grey = picture(), picture("L").astype(np.uint16) * 257
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    same(tmp_path / "a.png", TURNS[orientation](rgb), 0)
    Image.fromarray(grey).save(tmp_path / "b.png", exif=exif)
    same(tmp_path / "b.png", three(TURNS[orientation](grey // 257)), 0)
    large = np.kron(rgb, np.ones((16, 16, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    same(tmp_path / "a.jpg", TURNS[orientation](large), 4)


def test_the_crop_is_central_and_at_most_the_image(tmp_path: Path) -> None:
    rgb = picture(size=(9, 6))
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for crop, part in ((4, rgb[1:5, 2:6]), (6, rgb[:, 1:7]), (100, rgb[:, 1:7]), (1, rgb[2:3, 4:5])):
        assert np.array_equal(np.asarray(decode.read(tmp_path / "a.png", crop)), part), crop


# Files that are no image, or not all of one


def test_a_bomb_costs_little_time_and_memory(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", (30000, 30000), bytes(10**7))
    write_png(tmp_path / "b.png", (12000, 12000), bytes(12000 * 12001))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for name in ("a.png", "b.png"):
        with pytest.raises(OSError, match="pixels"):
            decode.read(tmp_path / name)
    assert time.process_time() - began < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_damaged_at_random_raise_oserror_or_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, rng, wholes = Image.fromarray(picture(size=(40, 30))), random.Random(5), []
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("PNG", {"exif": exif}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("WEBP", {}),
    ):
        image.save(tmp_path / "whole", kind, **options)
        wholes.append((tmp_path / "whole").read_bytes())
    read = 0
    for _ in range(700):
        raw = bytearray(rng.choice(wholes))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(min(len(raw), rng.choice([60, 300, 10**6])))
            raw[at : at + rng.choice([1, 1, 4])] = rng.choice([b"\xff", b"\0", b"\x7f\xff\xff\xff", rng.randbytes(4)])
        (tmp_path / "a.jpg").write_bytes(raw)
        with contextlib.suppress(OSError):
            decode.read(tmp_path / "a.jpg", 20)
            read += 1
    assert 50 < read < 650


def test_pixels_are_those_of_the_picture_cropped_and_brought_to_size(tmp_path: Path) -> None:
    image = Image.fromarray(picture(size=(36, 40)))
    image.save(tmp_path / "a.png")
    found = decode.to_pixels(tmp_path / "a.png", 16, crop=20)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image.crop((8, 10, 28, 30)).resize((16, 16), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_nobody_waits_for_what_is_no_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jpg").mkdir() if kind == "folder" else os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="not a file"):
        decode.read(tmp_path / "a.jpg")


# Threads


def test_results_come_in_order_and_few_wait() -> None:
    begun = []

    def slow_first(i: int) -> int:
        begun.append(i)
        time.sleep(0.05 if i == 0 else 0)
        return i * i

    results = decode.in_threads(slow_first, range(100), workers=4, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    time.sleep(0.02)
    assert len(begun) <= 3 + 5
    assert list(results) == [i * i for i in range(3, 100)] and sorted(begun) == list(range(100))
    assert list(decode.in_threads(slow_first, [], workers=4)) == []


def test_an_error_in_a_thread_is_raised_and_ends_the_rest() -> None:
    begun = []

    def one(i: int) -> float:
        begun.append(i)
        return 1 / (i - 2)

    with pytest.raises(ZeroDivisionError):
        list(decode.in_threads(one, range(1000), workers=1, ahead=10))
    assert len(begun) < 20
