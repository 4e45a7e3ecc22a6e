"""Drawn blood smears: one stained cell among red cells, the default data where there are no real images.

A picture is light that passed through stains. Each pixel holds amounts of four dyes, and Beer-Lambert's law turns
them into colour: light * exp(-amounts @ absorbance). What a cell looks like is a row of `FORMS`; shapes are signed
distances (pixels, negative inside), so that every edge is smooth. Nothing here comes from a photograph.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from bloodcell_lib.cells import CELL_TYPES, CLASS_MAP, NAMES, CellType
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.paths import write_folder_whole

WIDTH, HEIGHT = 360, 363
VERSION = 1  # of the drawing: another number means other pictures for the same seed
QUALITY = 92  # of the JPEG files
SMALL_JOB = 96  # pictures that are drawn sooner than a pool of processes has started

Span = tuple[float, float]  # drawn uniformly between the two
Stains = tuple[float, float, float]  # amounts of violet, blue and eosin; 1 is what a dense structure takes up

# Absorbance of one unit of each dye in red, green and blue light.
VIOLET, BLUE, EOSIN = (1.28, 2.25, 0.44), (0.80, 0.70, 0.13), (0.26, 0.74, 0.52)
HAEMOGLOBIN = (0.23, 0.34, 0.21)
PEACH, GREY = (254, 229, 204), (216, 216, 230)  # light through an empty field, in 8-bit RGB


@dataclass(frozen=True)
class Dots:
    """Granules, dust or vacuoles: `spacing` and `size` in pixels, the `share` of places taken, what they take up."""

    spacing: float
    size: float
    share: Span
    stains: Stains
    over: float = 0.0  # how much of them lies over the nucleus, 0 to 1


@dataclass(frozen=True)
class Form:
    """How one finer type looks. Nucleus: `lobes` discs on an arc, joined by necks; lengths are shares of the radius.

    No lobes, no nucleus; a short thick arc is round, a longer one a kidney, a long thin one a band.
    """

    radius: Span  # of the cell, pixels
    waves: tuple[float, float, float]  # of its outline: length, least and greatest height, pixels
    cytoplasm: tuple[Stains, Stains]  # one extreme and the other
    dots: tuple[Dots, ...] = ()
    lobes: tuple[int, ...] = (0,)  # one is chosen
    thick: Span = (0.0, 0.0)  # radius of a lobe
    bend: Span = (0.5, 0.5)  # radius of the arc
    turn: Span = (0.0, 0.0)  # degrees of the arc
    neck: Span = (1.0, 1.0)  # radius of a neck, as a share of `thick`
    chromatin: Span = (0.75, 0.95)  # violet of the nucleus
    grain: Span = (1.3, 1.7)  # of its texture, pixels
    clear: Span = (0.3, 0.5)  # how light the gaps in it are
    rim: float = 0.15  # darker line along the cell's edge


GREEDY = Dots(4.5, 1.5, (0.6, 0.95), (0.10, 0.0, 0.95))
LILAC = ((0.10, 0.10, 0.08), (0.14, 0.30, 0.04))
PINK = ((0.03, 0.0, 0.09), (0.09, 0.05, 0.13))
PRIMARY = Dots(4.5, 1.1, (0.5, 0.85), (0.65, 0.0, 0.15))  # purple granules of the young forms
DUST = Dots(4.0, 0.9, (0.1, 0.5), (0.28, 0.0, 0.14))
HOLES = Dots(11.0, 2.4, (0.0, 0.25), (0.03, 0.06, 0.0))

MYELOCYTE = Form(
    (60, 74), (34, 1, 4), LILAC, (replace(PRIMARY, share=(0.2, 0.5), over=0.3),), (2,),
    thick=(0.48, 0.58), bend=(0.15, 0.25), turn=(60, 120), chromatin=(0.86, 0.98), clear=(0.4, 0.6),
)  # fmt: skip
MONOCYTE = Form(
    (68, 86), (26, 1, 6), ((0.03, 0.28, 0.05), (0.12, 0.50, 0.0)), (replace(DUST, share=(0.05, 0.3)), HOLES), (3, 4),
    thick=(0.32, 0.4), bend=(0.3, 0.4), turn=(150, 220), neck=(0.8, 1.0), chromatin=(0.8, 0.94), clear=(0.4, 0.6),
)  # fmt: skip
SEGMENTED = Form(
    (56, 70), (34, 1, 3), PINK, (DUST,), (3, 3, 4, 4, 5), thick=(0.2, 0.27), bend=(0.4, 0.5), turn=(200, 300),
    neck=(0.12, 0.3), chromatin=(0.92, 1.04), grain=(1.5, 2.0), clear=(0.3, 0.5), rim=0.08,
)  # fmt: skip

FORMS: dict[str, tuple[Form, ...]] = {
    "basophil": (
        Form(
            (54, 68), (30, 1, 4), ((0.06, 0.0, 0.06), (0.18, 0.08, 0.04)),
            (Dots(6.5, 2.1, (0.5, 0.9), (1.0, 0.05, 0.0), over=0.85),), (2, 3), thick=(0.4, 0.5),
            bend=(0.3, 0.4), turn=(110, 180), chromatin=(0.65, 0.85), clear=(0.2, 0.4), rim=0.05,
        ),
    ),
    "eosinophil": (
        Form(
            (57, 70), (34, 1, 3), ((0.04, 0.0, 0.55), (0.1, 0.05, 0.65)), (GREEDY,), (2, 2, 2, 3), thick=(0.3, 0.38),
            bend=(0.42, 0.5), turn=(110, 180), neck=(0.15, 0.5), grain=(1.5, 2.0), rim=0.3,
        ),
    ),
    "erythroblast": (
        Form(
            (36, 46), (26, 1, 3), ((0.04, 0.22, 0.14), (0.10, 0.50, 0.0)), (), (1,), thick=(0.48, 0.6),
            chromatin=(1.0, 1.12), clear=(0.05, 0.35),
        ),
        Form(
            (44, 56), (26, 1, 3), ((0.06, 0.6, 0.0), (0.15, 0.95, 0.0)), (), (1,), thick=(0.58, 0.68),
            chromatin=(0.98, 1.08), grain=(1.5, 2.0), clear=(0.45, 0.7), rim=0.2,
        ),
    ),
    "myelocyte": (MYELOCYTE,),
    "promyelocyte": (
        replace(MYELOCYTE, radius=(66, 80), dots=(replace(PRIMARY, over=0.75),), thick=(0.54, 0.64)),
    ),
    "metamyelocyte": (
        replace(
            MYELOCYTE, radius=(58, 70), dots=(replace(PRIMARY, share=(0.1, 0.35)),), lobes=(3,), thick=(0.34, 0.4),
            bend=(0.38, 0.46), turn=(130, 175),
        ),
    ),
    "lymphocyte": (
        Form(
            (40, 54), (24, 1, 3), ((0.06, 0.35, 0.0), (0.15, 0.85, 0.0)), (), (2,), thick=(0.62, 0.74),
            bend=(0.08, 0.14), turn=(60, 140), chromatin=(0.92, 1.05), clear=(0.25, 0.5), rim=0.2,
        ),
    ),
    "monocyte": (
        MONOCYTE,
        replace(MONOCYTE, lobes=(3,), thick=(0.42, 0.5), bend=(0.2, 0.3), turn=(140, 220)),
        replace(
            MONOCYTE, waves=(20, 5, 10), dots=(replace(DUST, share=(0.05, 0.3)), replace(HOLES, share=(0.3, 0.7)))
        ),
    ),
    "segmented neutrophil": (SEGMENTED,),
    "band neutrophil": (
        replace(SEGMENTED, lobes=(6,), thick=(0.17, 0.23), bend=(0.44, 0.54), turn=(150, 250), neck=(0.75, 1.0)),
    ),
    "platelet": (
        Form(
            (18, 29), (11, 1, 3), ((0.08, 0.08, 0.02), (0.25, 0.22, 0.02)),
            (Dots(4.0, 1.2, (0.5, 0.9), (0.8, 0.0, 0.1)),), rim=0.05,
        ),
    ),
}  # fmt: skip
FORMS["immature granulocyte"] = FORMS["myelocyte"] + FORMS["promyelocyte"] + FORMS["metamyelocyte"]
FORMS["neutrophil"] = FORMS["segmented neutrophil"] + FORMS["band neutrophil"]


def draw(cell_type: str | CellType, rng: np.random.Generator, prefix: str | None = None) -> Image.Image:
    """One picture, RGB, 360 wide and 363 high, with a cell of `cell_type` (a name or a row of CELL_TYPES) at its centre.

    `prefix` asks for the finer type that a file prefix names (BNE: a band neutrophil); without it one of the class's
    is drawn. The generator's state decides the picture, bit for bit. Raises BloodcellError for an unknown type or
    prefix.
    """
    cell = _known(cell_type)
    if prefix is None:
        prefix = str(rng.choice(list(cell.prefixes)))
    if prefix not in cell.prefixes:
        raise BloodcellError(f"Unknown prefix '{prefix}' of {cell.name}: choose one of {', '.join(cell.prefixes)}.")
    forms = FORMS[cell.prefixes[prefix]]

    dyes = np.array([VIOLET, BLUE, EOSIN, HAEMOGLOBIN], np.float32) * _pick(rng, (0.88, 1.12))
    dyes *= 1 + 0.05 * rng.standard_normal((4, 3), dtype=np.float32)
    centre = np.array([HEIGHT, WIDTH]) / 2 + rng.normal(0, 5, 2)
    amounts, cover, radius = _paint(forms[rng.integers(len(forms))], rng)
    red = _red_cells(centre, radius, rng)
    painted = [(amounts, _cover(red, cover, centre))]
    for _ in range(rng.choice(3, p=(0.6, 0.3, 0.1))):  # stray platelets
        angle, far = rng.uniform(0, 2 * np.pi), radius + rng.uniform(25, 140)
        amounts, cover, _ = _paint(FORMS["platelet"][0], rng, scale=_pick(rng, (0.4, 0.8)))
        painted.append((amounts, _cover(red, cover, centre + far * np.array([np.sin(angle), np.cos(angle)]))))

    picture = _light(rng)
    for c in range(3):
        picture[c] *= np.exp(-dyes[3, c] * red)
        for amounts, (there, here) in painted:
            a = amounts[(slice(None), *here)]
            picture[c][there] *= np.exp(-(dyes[0, c] * a[0] + dyes[1, c] * a[1] + dyes[2, c] * a[2]))
    return _expose(picture, rng)


def _known(cell_type: str | CellType) -> CellType:
    name = cell_type.name if isinstance(cell_type, CellType) else cell_type
    if name not in NAMES:
        raise BloodcellError(f"Unknown cell type '{name}': choose one of {', '.join(NAMES)}.")
    return CELL_TYPES[NAMES.index(name)]


def _pick(rng: np.random.Generator, span: Span) -> np.float32:
    return np.float32(rng.uniform(*span))


def _enlarge(small: np.ndarray, pixels: int) -> np.ndarray:
    """A smooth float32 field (n, m) at `pixels` x `pixels`."""
    return np.asarray(Image.fromarray(small).resize((pixels, pixels), Image.Resampling.BICUBIC))


def _grain(rng: np.random.Generator, pixels: int, sigma: float) -> np.ndarray:
    """Band-limited noise of variance 1, float32 (pixels, pixels)."""
    noise = rng.standard_normal((pixels, pixels), dtype=np.float32)
    return gaussian_filter(noise, sigma, truncate=2.5) * np.float32(2 * sigma * np.sqrt(np.pi))


def _inside(distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """1 inside, 0 outside, smooth over 2 * `soft` pixels."""
    t = np.clip(0.5 - distance / (2 * soft), 0, 1)
    return t * t * (3 - 2 * t)


def _paint(form: Form, rng: np.random.Generator, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, float]:
    """A cell in a square window: stain amounts float32 (3, n, n), how far it covers what lies below (n, n), radius."""
    radius = _pick(rng, form.radius) * scale
    # Distances are smooth: they are computed at half the resolution.
    half = int(radius * 1.15 + form.waves[2]) + 4
    grid = np.arange(half, dtype=np.float32) * 2 - (half - 1)
    x, y = _turned(grid, rng)
    knots = max(4, round(2 * half / form.waves[0]))
    height = _pick(rng, form.waves[1:])
    dx, dy = (_enlarge(rng.standard_normal((knots, knots), dtype=np.float32), half) for _ in range(2))
    stretch = _pick(rng, (0.93, 1.08))
    body = np.hypot((x + height * dx) * stretch, (y + height * dy) / stretch) - radius
    gentle = min(height, np.float32(3))
    nucleus = _nucleus(form, radius, x + gentle * dy, y + gentle * dx, rng)
    body = _enlarge(body, 2 * half)
    mix, tone = rng.random(), _grain(rng, 2 * half, 2.2)
    body += 0.7 * tone  # a slightly frayed edge
    cover = _inside(body)
    cytoplasm = np.array(form.cytoplasm[0]) * (1 - mix) + np.array(form.cytoplasm[1]) * mix
    amounts = cytoplasm.astype(np.float32)[:, None, None] * (1 + 0.16 * tone)
    amounts[0] += form.rim * np.exp(-((body + 2) ** 2) / 6)
    if nucleus is None:
        core = np.zeros_like(body)
    else:
        nucleus = np.maximum(_enlarge(nucleus, 2 * half), body + 1.5)
        core = _inside(nucleus)
        amounts *= 1 - 0.35 * np.exp(-((nucleus - 3) ** 2) / 8)  # the pale zone around a nucleus
        mesh = _grain(rng, 2 * half, _pick(rng, form.grain)) + 0.5 * tone
        gaps = np.clip(0.3 + 0.45 * mesh, 0, 1) * np.clip(-nucleus / 4 - 0.3, 0, 1)  # none in the nucleus's own rim
        violet = _pick(rng, form.chromatin) * (1 - _pick(rng, form.clear) * gaps)
        amounts *= 1 - core
        amounts[0] += core * violet
        amounts[2] += core * 0.12 * gaps
    for dots in form.dots:
        at = _dots(dots, 2 * half, rng) * (1 - (1 - dots.over) * core) * _inside(body + 2)
        amounts += at * (np.array(dots.stains, np.float32)[:, None, None] - amounts)
    return amounts * cover, cover, radius


def _turned(grid: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y (n, n) of a square grid, turned by a random angle."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * grid[None] + sin * grid[:, None], cos * grid[:, None] - sin * grid[None]


def _nucleus(form: Form, radius: float, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Distance to the nucleus at each point, float32 (n, n); None for a cell without one."""
    lobes = int(rng.choice(form.lobes))
    if not lobes:
        return None
    thick = _pick(rng, form.thick) * radius
    neck = thick * _pick(rng, form.neck)
    angle = np.linspace(-0.5, 0.5, lobes) * np.radians(_pick(rng, form.turn))
    centres = np.stack([np.cos(angle), np.sin(angle)], 1) * _pick(rng, form.bend) * radius
    centres += rng.normal(0, 0.12, (lobes, 2)) * thick * (lobes > 1)
    sizes = thick * rng.uniform(0.88, 1.1, lobes)
    reach = (np.hypot(*(centres - centres.mean(0)).T) + sizes).max()
    centres += -centres.mean(0) + rng.uniform(-0.7, 0.7, 2) * max(0, 0.97 * radius - reach)
    distance = None
    for i in range(lobes):
        along = rng.normal(0, 0.2, 2) * sizes[i]  # a lobe is a little longer than wide
        parts = [(centres[i] - along, centres[i] + along, sizes[i])]
        if i:
            parts.append((centres[i - 1], centres[i], neck))
        for start, end, size in parts:
            new = _capsule(x, y, start, end, size)
            distance = new if distance is None else _join(distance, new, 0.5 * neck)
    return distance


def _capsule(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, size: float) -> np.ndarray:
    """Distance to all that is nearer than `size` to the line from `start` to `end`."""
    (ax, ay), (bx, by) = start.astype(np.float32), (end - start).astype(np.float32)
    px, py = x - ax, y - ay
    t = np.clip((px * bx + py * by) / (bx * bx + by * by + np.float32(1e-6)), 0, 1)
    return np.hypot(px - t * bx, py - t * by) - np.float32(size)


def _join(a: np.ndarray, b: np.ndarray, soft: float) -> np.ndarray:
    """The nearer of two distances, rounded where they meet."""
    soft = np.float32(soft)
    h = np.clip(soft - np.abs(a - b), 0, None)
    return np.minimum(a, b) - h * h / (4 * soft)


def _dots(dots: Dots, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Where the dots are, float32 (pixels, pixels) from 0 to 1: a jittered grid of bumps, cut at half their height."""
    places = int(pixels / dots.spacing)
    at = (np.indices((places, places)).reshape(2, -1) + rng.uniform(0, 1, (2, places * places))) * dots.spacing
    at = at[:, rng.random(places * places) < _pick(rng, dots.share)].astype(int)
    bumps = np.zeros((pixels, pixels), np.float32)
    bumps[at[0], at[1]] = rng.uniform(0.6, 1.6, at.shape[1])
    height = gaussian_filter(bumps, dots.size, truncate=2.5) * np.float32(2 * np.pi * dots.size**2)
    t = np.clip((height - 0.25) / 0.4, 0, 1)
    return t * t * (3 - 2 * t)


def _red_cells(centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Haemoglobin, float32 (363, 360), of 10 to 20 red cells: discs with a pale middle, away from the cell at `centre`."""
    layer = np.zeros((HEIGHT, WIDTH), np.float32)
    size, pallor = rng.uniform(32, 38), rng.uniform(0.1, 0.75)
    apart = size * rng.uniform(0.7, 2.3)  # how far they keep from one another: heaps or a thin film
    spots = np.empty((0, 2))
    for _ in range(rng.integers(10, 21)):
        tries = rng.uniform(-20, (HEIGHT + 20, WIDTH + 20), (8, 2))
        gap = np.hypot(*(tries[:, None] - spots[None]).transpose(2, 0, 1)).min(1, initial=apart)
        gap[np.hypot(*(tries - centre).T) < radius + 0.75 * size] = -1
        spots = np.vstack([spots, tries[gap.argmax()]])
        _red_cell(layer, *spots[-1], size * rng.uniform(0.88, 1.1), pallor * rng.uniform(0.6, 1.2), rng)
    return layer


def _red_cell(layer: np.ndarray, cy: float, cx: float, size: float, pallor: float, rng: np.random.Generator) -> None:
    reach = int(size * 1.3) + 2
    y0, y1 = max(0, int(cy) - reach), min(HEIGHT, int(cy) + reach)
    x0, x1 = max(0, int(cx) - reach), min(WIDTH, int(cx) + reach)
    if y0 >= y1 or x0 >= x1:
        return
    gy = ((np.arange(y0, y1) - cy) / size).astype(np.float32)[:, None]
    gx = ((np.arange(x0, x1) - cx) / size).astype(np.float32)[None]
    angle, stretch, dent = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.12), np.float32(rng.normal(0, 0.04))
    cos, sin = np.float32(np.cos(angle) * stretch), np.float32(np.sin(angle) * stretch)
    u, v = cos * gx + sin * gy, (cos * gy - sin * gx) / np.float32(stretch**2)
    uu, vv = u * u, v * v
    q = uu + vv + dent * u * (uu - 3 * vv)  # 1 at the edge; the last term pulls three corners
    thickness = 0.85 + 0.2 * q * q - np.float32(pallor) * np.exp(np.float32(-5) * q * q)
    new = _inside((q - 1) * np.float32(size / 2), 1.5) * thickness * np.float32(rng.uniform(0.85, 1.1))
    old = layer[y0:y1, x0:x1]
    old += new - 0.6 * np.minimum(old, new)  # where two overlap it is darker, by less than the sum


def _cover(red: np.ndarray, cover: np.ndarray, centre: np.ndarray) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Hides `red` under a cell at `centre` (row, column), and says which part of the picture is which of the window."""
    there, here = [], []
    for size, middle, n in zip(red.shape, centre, cover.shape):
        first = round(middle - n / 2)
        low, high = min(max(0, first), size), max(0, min(size, first + n))
        there.append(slice(low, high))
        here.append(slice(low - first, max(low, high) - first))
    red[tuple(there)] *= 1 - cover[tuple(here)]
    return tuple(there), tuple(here)


def _light(rng: np.random.Generator) -> np.ndarray:
    """Light of an empty field, float32 (3, 363, 360), 0 to 255: peach, now and then bluish grey, a little uneven."""
    grey = rng.uniform(0.6, 1) if rng.random() < 0.12 else rng.uniform(0, 0.15)
    colour = (np.array(PEACH) * (1 - grey) + np.array(GREY) * grey) * rng.uniform(0.97, 1.02)
    y, x = np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH)
    slope = rng.normal(0, 0.012, (2, 1, 1)) + rng.normal(0, 0.004, (2, 3, 1))
    bow = rng.uniform(-0.03, 0, (2, 1, 1))
    rows, columns = (colour[:, None] * (0.5 + slope[i] * t + bow[i] * t * t) for i, t in enumerate((y, x)))
    return rows.astype(np.float32)[:, :, None] + columns.astype(np.float32)[:, None]


def _expose(picture: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Focus, sensor noise and 8 bits for float32 (3, 363, 360); most pictures are sharpened a little, as cameras do."""
    focus = rng.uniform(-1, 1)
    if focus < 0.2:
        blurred = gaussian_filter(picture, (0, 1, 1), truncate=2)
        picture = picture + np.float32(0.6 * (0.2 - focus)) * (picture - blurred)
    else:
        sigma = 0.3 + focus
        picture = gaussian_filter(picture, (0, sigma, sigma), truncate=2)
    picture += rng.integers(-3, 4, picture.shape, np.int8) * _pick(rng, (0.2, 1.0))
    levels = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in levels])
