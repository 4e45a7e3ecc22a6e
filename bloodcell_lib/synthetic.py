"""Drawn blood smears: one stained cell among red cells, the default data where there are no real images.

A picture is light that passed through stains. Each pixel holds amounts of four dyes, and Beer-Lambert's law turns
them into colour: light * exp(-amounts @ absorbance). What a cell looks like is told by `forms`; shapes are signed
distances (pixels, negative inside), so that every edge is smooth. Nothing here comes from a photograph.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from bloodcell_lib.cells import CELL_TYPES, NAMES, CellType
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.forms import FORMS, PLATELET, Dots, Form, Span

WIDTH, HEIGHT = 360, 363
VERSION = 1  # of the drawing: another number means other pictures for the same seed

# Absorbance of one unit of each dye in red, green and blue light.
VIOLET, BLUE, EOSIN = (1.28, 2.25, 0.44), (0.80, 0.70, 0.13), (0.26, 0.74, 0.52)
HAEMOGLOBIN = (0.23, 0.34, 0.21)
PEACH, GREY = (254, 229, 204), (216, 216, 230)  # light through an empty field, in 8-bit RGB


def draw(cell_type: str | CellType, rng: np.random.Generator, prefix: str | None = None) -> Image.Image:
    """One picture, RGB, 360 wide and 363 high, a cell of `cell_type` (a name or a row of CELL_TYPES) near its centre.

    `prefix` asks for the finer type that a file prefix names (BNE: a band neutrophil); without it one of the class's
    is drawn by lot. On one machine the generator's state decides the picture, bit for bit. Raises BloodcellError for an
    unknown type or prefix.
    """
    return draw_with_masks(cell_type, rng, prefix)[0]


def draw_with_masks(
    cell_type: str | CellType, rng: np.random.Generator, prefix: str | None = None
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """The picture that `draw` gives, and the truth about it: where the cell and where its nucleus is, bool (363, 360).

    A cell without a nucleus, a platelet, has an empty one.
    """
    name = cell_type.name if isinstance(cell_type, CellType) else cell_type
    if name not in NAMES:
        raise BloodcellError(f"Unknown cell type '{name}': choose one of {', '.join(NAMES)}.")
    finer = CELL_TYPES[NAMES.index(name)].prefixes
    prefix = str(rng.choice(list(finer))) if prefix is None else prefix
    if prefix not in finer:
        raise BloodcellError(f"Unknown file prefix '{prefix}' of class {name}: choose one of {', '.join(finer)}.")
    forms = FORMS[finer[prefix]]

    amounts, cover, core, radius = _paint(forms[rng.integers(len(forms))], rng)
    centre = np.array([HEIGHT, WIDTH]) / 2 + rng.normal(0, 5, 2)
    red = _red_cells(centre, radius, rng)
    painted = [_place(amounts, cover, centre, red)]
    body, nucleus = (_mask(part, centre) for part in (cover, core))
    for _ in range(rng.choice(3, p=(0.65, 0.28, 0.07))):  # stray platelets
        angle, far = rng.uniform(0, 2 * np.pi), radius + rng.uniform(25, 140)
        amounts, cover, _, _ = _paint(PLATELET, rng, scale=_pick(rng, (0.35, 0.7)))
        painted.append(_place(amounts, cover, centre + far * np.array([np.sin(angle), np.cos(angle)]), red))

    dyes = np.array([VIOLET, BLUE, EOSIN, HAEMOGLOBIN], np.float32) * _pick(rng, (0.88, 1.12))
    dyes *= 1 + 0.05 * rng.standard_normal((4, 3), dtype=np.float32)
    rows, columns = _light(rng)
    blur, sharpness, noise = rng.uniform(0.8, 1.6), rng.uniform(0, 1.7), rng.uniform(0.6, 3)
    planes = []
    for c in range(3):
        plane = np.exp(-dyes[3, c] * red)
        for (violet, blue, eosin), where in painted:
            plane[where] *= np.exp(-(dyes[0, c] * violet + dyes[1, c] * blue + dyes[2, c] * eosin))
        plane *= rows[c][:, None] + columns[c]
        planes.append(Image.fromarray(_exposed(plane, blur, sharpness, noise, rng)))
    return Image.merge("RGB", planes), body, nucleus


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


def _paint(
    form: Form, rng: np.random.Generator, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A cell in a square window: stain amounts float32 (3, n, n), how far it covers what lies below (n, n), how far
    each place is nucleus (n, n), radius."""
    radius = _pick(rng, form.radius) * scale
    # Distances are smooth: they are computed at half the resolution.
    half = int(radius * 1.15 + form.waves[2]) + 4
    grid = np.arange(half, dtype=np.float32) * 2 - (half - 1)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = cos * grid[None] + sin * grid[:, None], cos * grid[:, None] - sin * grid[None]
    knots = max(4, round(2 * half / form.waves[0]))
    height = _pick(rng, form.waves[1:])
    dx, dy = (_enlarge(rng.standard_normal((knots, knots), dtype=np.float32), half) for _ in range(2))
    stretch = _pick(rng, (0.93, 1.08))
    body = np.hypot((x + height * dx) * stretch, (y + height * dy) / stretch) - radius
    gentle = min(height * np.float32(0.7), np.float32(2.5))
    nucleus = _nucleus(form, radius, x + gentle * dy, y + gentle * dx, rng)
    body = _enlarge(body, 2 * half)
    mix, tone = rng.random(), _enlarge(_grain(rng, half, 1.1), 2 * half)
    body = body + 0.4 * tone  # a slightly frayed edge
    cover = _inside(body)
    cytoplasm = np.array(form.cytoplasm[0]) * (1 - mix) + np.array(form.cytoplasm[1]) * mix
    amounts = cytoplasm.astype(np.float32)[:, None, None] * (1 + 0.13 * tone)
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
    return amounts * cover, cover, core, radius


def _nucleus(form: Form, radius: float, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Distance to the nucleus at each point, float32 (n, n); None for a cell without one."""
    lobes = int(rng.choice(form.lobes))
    if not lobes:
        return None
    thick = _pick(rng, form.thick) * radius
    neck = thick * _pick(rng, form.neck)
    angle = (np.arange(lobes) - lobes / 2) * np.radians(_pick(rng, form.turn))
    centres = np.stack([np.cos(angle), np.sin(angle)], 1) * _pick(rng, form.bend) * radius
    centres += rng.normal(0, 0.12, (lobes, 2)) * thick * (lobes > 1)
    sizes = thick * rng.uniform(0.88, 1.1, lobes)
    reach = (np.hypot(*(centres - centres.mean(0)).T) + sizes).max()
    centres += -centres.mean(0) + rng.uniform(-0.7, 0.7, 2) * max(0, 0.97 * radius - reach)
    distance = None
    for i in range(lobes):
        along = rng.normal(0, 0.2 if lobes > 1 else 0.06, 2) * sizes[i]  # a lobe is a little longer than wide
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
    bumps[at[0], at[1]] = rng.uniform(0.5, 1.6, at.shape[1])
    height = gaussian_filter(bumps, dots.size, truncate=2.5) * np.float32(2 * np.pi * dots.size**2)
    t = np.clip((height - 0.25) / 0.4, 0, 1)
    return t * t * (3 - 2 * t)


def _red_cells(centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Haemoglobin, float32 (363, 360), of 10 to 20 red cells, away from the cell at `centre`."""
    layer = np.zeros((HEIGHT, WIDTH), np.float32)
    size, pallor = rng.uniform(32, 38), rng.uniform(0.15, 0.8)
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
    new = _inside((q - 1) * np.float32(size / 2), 1.3) * thickness * np.float32(rng.uniform(0.85, 1.1))
    old = layer[y0:y1, x0:x1]
    old += new - 0.7 * np.minimum(old, new)  # where two overlap it is darker, by less than the sum


def _mask(part: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Where a window (n, n) at `centre` (row, column) is above one half, in the whole picture: bool (363, 360)."""
    out = np.zeros((HEIGHT, WIDTH), dtype=bool)
    there, here = _windows(part.shape, centre)
    out[there] = part[here] > 0.5
    return out


def _place(
    amounts: np.ndarray, cover: np.ndarray, centre: np.ndarray, red: np.ndarray
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Hides `red` under a cell at `centre` (row, column); its amounts inside the picture, and where they belong."""
    there, here = _windows(cover.shape, centre)
    red[there] *= 1 - cover[here]
    return amounts[(slice(None), *here)], there


def _windows(shape: tuple[int, ...], centre: np.ndarray) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window of `shape` at `centre` (row, column) lies in the picture, and which part of it lies inside."""
    there, here = [], []
    for size, middle, n in zip((HEIGHT, WIDTH), centre, shape):
        first = round(middle - n / 2)
        low, high = np.clip((first, first + n), 0, size)
        there.append(slice(low, high))
        here.append(slice(low - first, high - first))
    return tuple(there), tuple(here)


def _light(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Light of an empty field, 0 to 255, as the sum of rows float32 (3, 363) and columns (3, 360).

    Peach, now and then bluish grey, and a little uneven.
    """
    grey = rng.uniform(0.6, 1) if rng.random() < 0.1 else rng.uniform(0, 0.15)
    colour = (np.array(PEACH) * (1 - grey) + np.array(GREY) * grey)[:, None] * rng.uniform(0.97, 1.02)
    sides = []
    for pixels in (HEIGHT, WIDTH):
        t = np.linspace(-1, 1, pixels)
        slope = rng.normal(0, 0.012) + rng.normal(0, 0.004, (3, 1))
        sides.append((colour * (0.5 + slope * t - rng.uniform(0, 0.03) * t * t)).astype(np.float32))
    return sides[0], sides[1]


def _exposed(plane: np.ndarray, blur: float, sharpness: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """One colour of the picture through lens and sensor: float32 (363, 360) -> uint8.

    `blur` is in pixels; a sharpness of 0 leaves it, 1 undoes it, and above 1 edges are raised, as cameras do. `noise`
    is in levels.
    """
    seen = gaussian_filter(plane, blur, truncate=2)
    plane -= seen
    plane *= np.float32(sharpness)
    seen += plane
    seen += rng.integers(-128, 128, seen.shape, np.int8) * np.float32(noise / 128)
    seen += np.float32(0.5)
    return np.clip(seen, 0, 255, out=seen).astype(np.uint8)
