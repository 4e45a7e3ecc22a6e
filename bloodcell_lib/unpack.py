"""An archive from outside, unpacked whole or not at all: nothing in it may lead out of its folder, or grow for ever."""

from __future__ import annotations

import csv
import shutil
import stat
import struct
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
from tqdm import tqdm

from bloodcell_lib import paths
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.sources import Source

MOST_RATIO = 20  # unpacked to packed size; photographs hardly shrink, so more than this is a bomb


def unpack(row: Source, archive: Path, target: Path, progress: bool) -> None:
    """Unpacks what `row.holds` names to `target`, whole or not at all; deletes an archive that is bad."""
    try:
        with zipfile.ZipFile(archive) as opened, paths.write_folder_whole(target) as folder:
            members = _members(row, archive, opened)
            for place, info in tqdm(members.items(), desc=f"unpacking {row.name}", disable=not progress):
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as packed, open(path, "xb") as file:
                    shutil.copyfileobj(packed, file, 2**20)
            if row.manifest and row.manifest.is_file():
                _compare(row.manifest, folder)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        archive.unlink(missing_ok=True)
        raise BloodcellError(
            f"{row.name}: the archive was not unpacked and is deleted, because {str(error).rstrip('.')}: try again, "
            f"or see {row.page} for what has changed."
        ) from error


def _members(row: Source, archive: Path, opened: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Which members to unpack, by the place to put them. Raises ValueError if one is unsafe, wanted or not."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    beside: dict[PurePosixPath, set[str]] = defaultdict(set)  # what of `row.holds` lies in a folder
    total, packed = 0, archive.stat().st_size
    for info in opened.infolist():
        # Windows' rules know both slashes, drives and roots: the stricter reading is right everywhere.
        strict, name = PureWindowsPath(info.filename), PurePosixPath(info.filename)
        if strict.anchor or ".." in strict.parts:
            raise ValueError(f"{info.filename!r} leads out of the folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{info.filename!r} is a link or a device")
        usual = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not usual or not 0 <= info.header_offset < packed:
            raise ValueError(f"{info.filename!r} is damaged or packed in an unusual way")
        total += info.file_size  # reading a member stops there, so a false size does no harm
        # Hidden files are macOS's resource forks, and one stray picture in PBC that its authors do not count.
        if info.filename.endswith("/") or any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
            continue
        if name in members or not name.parts:
            raise ValueError(f"{info.filename!r} is in it twice or has no name")
        members[name] = info
        for i, part in enumerate(name.parts):
            if part in row.holds:
                beside[PurePosixPath(*name.parts[:i])].add(part)
    if total > min(row.most_bytes, MOST_RATIO * packed):
        raise ValueError(f"it would grow to {total:,} bytes, more than its images can need")
    if any(folder in members for name in members for folder in name.parents):
        raise ValueError("one of its files has the name of a folder")
    roots = [folder for folder, found in beside.items() if found == set(row.holds)]
    if not roots:
        raise ValueError(f"it has no folder with {', '.join(row.holds)} side by side")
    root = min(roots, key=lambda folder: (len(folder.parts), folder))
    places = {name.relative_to(root): info for name, info in members.items() if name.is_relative_to(root)}
    return {place: info for place, info in places.items() if place.parts[0] in row.holds}


def _compare(manifest: Path, folder: Path) -> None:
    """Raises ValueError unless the images under train/ and test/ are exactly those of the manifest."""
    with open(manifest, newline="", encoding="utf-8") as file:
        # a test image has no class, and an empty part drops out of a path
        listed = {PurePosixPath(r["part"], r["class"], r["name"]): r["sha256"] for r in csv.DictReader(file)}
    images = [path for part in ("train", "test") for path in (folder / part).rglob("*") if path.is_file()]
    found = {PurePosixPath(path.relative_to(folder).as_posix()): pooch.file_hash(str(path)) for path in images}
    wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"{len(wrong):,} images are missing, extra or not as {manifest.name} lists them, first {wrong[0]}"
        )
