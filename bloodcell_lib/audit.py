"""What is in a folder of images, before anything is trained on it; and the manifest of the course set."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from bloodcell_lib import data, decode, paths
from bloodcell_lib.cells import CELL_TYPES, TITLES, prefix
from bloodcell_lib.errors import BloodcellError

# Most differing bits of BITS at which two pictures count as near duplicates. Copies saved again at quality 30 to 75 or
# resized to 50 to 95 % differ by at most 8, those without a 3 pixel rim by up to 30; different course images by 60 up.
NEAR = 24
BITS = 256


@dataclass(frozen=True)
class Look:
    """What one file shows: width and height in pixels, Pillow's mode, perceptual hash (BITS bool); or why it does not.

    sha256: of its bytes, "" if they cannot be read.
    """

    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    phash: np.ndarray | None = None
    bad: str = ""


@dataclass
class Audit:
    """Everything `check` finds. Pairs and groups hold paths relative to the folder."""

    folder: Path
    source: dict[str, str]
    files: pd.DataFrame  # part, class, prefix, name, width, height, mode, sha256, bad
    exact: list[list[str]] = field(default_factory=list)
    near: list[tuple[str, str, int]] = field(default_factory=list)
    across: list[list[str]] = field(default_factory=list)

    @property
    def bad(self) -> pd.DataFrame:
        """The files that cannot be read."""
        return self.files[self.files["bad"] != ""]


def look(path: Path) -> Look:
    """Reads one file as `decode.read` would; never raises for a bad one."""
    digest = ""
    try:
        digest = data.sha256_of(path)
        grey = decode.read(path).convert("L")  # first: it knows all that may be wrong with a file
        with Image.open(path, formats=decode.FORMATS) as image:
            width, height, mode = *image.size, image.mode
    except OSError as error:
        return Look(digest, bad=str(error))
    return Look(digest, width, height, mode, imagehash.phash(grey, hash_size=16).hash.ravel())


def check(folder: Path, progress: bool = True) -> Audit:
    """Audits `train/` and, where it is there, `test/`. Raises BloodcellError as `data.find` does."""
    folder = Path(folder)
    parts = {"train": data.find(folder)}
    if (folder / "test").is_dir():
        parts["test"] = data.find(folder, "test")
    rows, hashes = [], []
    source = {}
    for part, files in parts.items():
        looks = decode.in_threads(look, [file.path for file in files])
        bar = tqdm(looks, f"look at {part}", len(files), disable=None if progress else True, unit="image", leave=False)
        seen_all = list(bar)
        names, labels = [file.path.name for file in files], [file.label for file in files]
        source[part] = data.name_source(folder, part, names, labels, [seen.sha256 for seen in seen_all])
        for file, seen in zip(files, seen_all):
            label = CELL_TYPES[file.label].name if file.label >= 0 else ""
            name = str(file.path.relative_to(folder))
            size = (seen.width, seen.height, seen.mode)
            rows.append((part, label, prefix(file.path.name) if label else "", name, *size, seen.sha256, seen.bad))
            hashes.append(seen.phash)
    columns = ["part", "class", "prefix", "name", "width", "height", "mode", "sha256", "bad"]
    found = Audit(folder, source, pd.DataFrame(rows, columns=columns))
    _duplicates(found, hashes)
    return found


def _duplicates(found: Audit, hashes: list[np.ndarray | None]) -> None:
    """Fills in files with the same bytes, with nearly the same picture, and those that stand in two classes."""
    names, labels = found.files["name"].to_numpy(), found.files["class"].to_numpy()
    groups = collections.defaultdict(list)
    for i, digest in enumerate(found.files["sha256"]):
        groups[digest].append(i)
    same = [group for digest, group in groups.items() if digest and len(group) > 1]
    found.exact = [[str(names[i]) for i in group] for group in same]
    readable = np.array([i for i, bits in enumerate(hashes) if bits is not None], dtype=np.int64)
    pairs = _close_pairs(np.array([hashes[i] for i in readable], dtype=np.float32).reshape(len(readable), BITS))
    digests = found.files["sha256"].to_numpy()
    near = [(readable[a], readable[b], bits) for a, b, bits in pairs if digests[readable[a]] != digests[readable[b]]]
    found.near = [(str(names[a]), str(names[b]), bits) for a, b, bits in near]
    twins = [*same, *([a, b] for a, b, _ in near)]
    found.across = [[str(names[i]) for i in group] for group in twins if len({labels[i] for i in group} - {""}) > 1]


def _close_pairs(bits: np.ndarray, block: int = 2048) -> list[tuple[int, int, int]]:
    """Index pairs a < b with at most NEAR differing bits. bits float32 (n, BITS) of 0, 1; blocks bound the memory."""
    pairs = []
    ones = bits.sum(1)
    for start in range(0, len(bits), block):
        rows = bits[start : start + block]
        distance = ones[start : start + block, None] + ones[None, :] - 2 * rows @ bits.T  # (block, n), Hamming
        at, other = np.nonzero(distance <= NEAR)
        keep = other > at + start
        pairs += [(int(a + start), int(b), int(distance[a, b])) for a, b in zip(at[keep], other[keep])]
    return pairs


def summary(found: Audit) -> str:
    """The audit as text: a table of counts for each class and prefix, then what stands out."""
    train, test = (found.files[found.files["part"] == part] for part in ("train", "test"))
    lines = [f"{found.folder}: {len(train)} labelled images ({found.source['train']})"]
    if len(test):
        lines[0] += f", {len(test)} unlabelled ({found.source['test']})"
    lines += ["", f"{'class':<22}{'images':>8}   by prefix"]
    for cell in CELL_TYPES:
        inside = train[train["class"] == cell.name]
        known = inside["prefix"].value_counts().filter(items=cell.prefixes)
        counts = [f"{key} {count} ({cell.prefixes[key]})" for key, count in known.items()]
        if known.sum() < len(inside):
            counts.append(f"{len(inside) - known.sum()} with another")
        lines.append(f"{TITLES[cell.id]:<22}{len(inside):>8}   {', '.join(counts)}")
    good = found.files[found.files["bad"] == ""]
    sizes = collections.Counter(zip(good["width"], good["height"]))
    lines += ["", "sizes:  " + ", ".join(f"{w} x {h}: {n}" for (w, h), n in sizes.most_common(8))]
    if len(sizes) > 8:
        lines[-1] += f", and {len(sizes) - 8} more"
    lines.append("modes:  " + ", ".join(f"{m}: {n}" for m, n in good["mode"].value_counts().items()))
    for title, rows in (
        ("unreadable", [f"{name} ({why})" for name, why in zip(found.bad["name"], found.bad["bad"])]),
        ("the same file twice", [" = ".join(group) for group in found.exact]),
        (f"nearly the same picture (at most {NEAR} of {BITS} bits)", [f"{a} ~ {b} ({n})" for a, b, n in found.near]),
        ("one picture in two classes", [" = ".join(group) for group in found.across]),
    ):
        lines.append(f"{title}: {len(rows) or 'none'}")
        lines += [f"  {row}" for row in rows[:10]]
        if len(rows) > 10:
            lines.append(f"  and {len(rows) - 10} more")
    return "\n".join(lines)


def write_manifest(found: Audit, path: Path = paths.MANIFEST) -> Path:
    """Writes name, class, prefix, size and sha256 of each image as CSV; test images have no class.

    Raises BloodcellError if a file cannot be read, or if `path` lists other images.
    """
    if len(found.bad):
        raise BloodcellError(f"{len(found.bad)} of {len(found.files)} files cannot be read: mend or remove them first.")
    table = found.files.assign(name=[Path(name).name for name in found.files["name"]])
    columns = ["part", "name", "class", "prefix", "width", "height", "sha256"]
    text = table[columns].to_csv(index=False, lineterminator="\n")
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise BloodcellError(f"{path} lists other images: remove it first if these are to be the course's.")
    with paths.write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
