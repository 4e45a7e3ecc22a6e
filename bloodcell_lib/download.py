"""The public sources of images, fetched with checksums: `fetch("pbc")`.

A download goes on where an earlier one stopped, an archive is unpacked whole or not at all, and what is there already
is returned without a network. The addresses could not be tried where this was written; PBC's is the public address of
the one file of that data set at Mendeley Data, as published scripts of several groups have it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
import requests
from tqdm import tqdm

from bloodcell_lib import __version__, paths
from bloodcell_lib.cells import NAMES
from bloodcell_lib.errors import BloodcellError

PASSING = (408, 429, 500, 502, 503, 504)  # HTTP states worth another try
MOST_RATIO = 20  # unpacked to packed size; photographs hardly shrink, so more than this is a bomb
PBC = (
    "Acevedo A., Merino A., Alférez S., Molina Á., Boldú L., Rodellar J., A dataset of microscopic peripheral blood "
    "cell images for development of automatic recognition systems, Data in Brief 30 (2020) 105474, "
    "doi:10.17632/snkd93bnjr.1"
)
MENDELEY = "https://data.mendeley.com"
MEDMNIST = (
    "Yang J. et al., MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image classification, "
    f"Scientific Data 10 (2023) 41, doi:10.5281/zenodo.10519652; from {PBC}"
)


@dataclass(frozen=True)
class Source:
    """One file to download, kept at `file` in the folder of all sources; `page` is where a person can download it.

    urls: all of the same file; the next one is tried when one fails for good.
    checksum: "algorithm:hex", or None to pin the sha256 of the first sound download in `<file>.sha256`.
    kind: "zip" is unpacked to a folder called `name`, "npz" stays as it is.
    size: in pixels, where a source comes in several.
    holds: what a zip has side by side somewhere inside; this alone is unpacked, up to `most_bytes`.
    manifest: table of the sha256 of each image that must come out, checked where it exists.
    """

    name: str
    urls: tuple[str, ...]
    file: str
    page: str
    checksum: str | None = None
    licence: str = "CC BY 4.0"
    citation: str = PBC
    kind: str = "zip"
    size: int | None = None
    holds: tuple[str, ...] = ()
    manifest: Path | None = None
    most_bytes: int = 4 * 2**30


def _bloodmnist(size: int, md5: str) -> Source:
    file = "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"
    page = "https://zenodo.org/records/10519652"
    name, checksum = "bloodmnist", f"md5:{md5}"
    return Source(
        name, (f"{page}/files/{file}",), f"{name}/{file}", page, checksum, citation=MEDMNIST, kind="npz", size=size
    )


SOURCES = (
    Source(
        "course",
        ("https://codeload.github.com/ALFIE-SADMAN/perfect-cell-classification/zip/HEAD",),  # the default branch
        "course.zip",
        "https://github.com/ALFIE-SADMAN/perfect-cell-classification",
        holds=("class_map.json", "train", "test"),
        manifest=paths.MANIFEST,
    ),
    Source(
        "pbc",
        (f"{MENDELEY}/public-files/datasets/snkd93bnjr/files/2fc38728-2ae7-4a62-a857-032af82334c3/file_downloaded",),
        "pbc.zip",
        f"{MENDELEY}/datasets/snkd93bnjr/1",
        holds=NAMES,
    ),
    _bloodmnist(28, "7053d0359d879ad8a5505303e11de1dc"),
    _bloodmnist(64, "2b94928a2ae4916078ca51e05b6b800b"),
    _bloodmnist(128, "adace1e0ed228fccda1f39692059dd4c"),
    _bloodmnist(224, "b718ff6835fcbdb22ba9eacccd7b2601"),
)


@dataclass(frozen=True)
class Network:
    """How patient a download is; times in seconds.

    connect, stall: until a connection must stand, and the longest silence on it.
    attempts: how many may fail in a row without one new byte.
    backoff: wait after the first failure, doubled with each further one, at most `longest_wait`; a server that asks
    for a longer wait (Retry-After) ends the download.
    """

    connect: float = 10.0
    stall: float = 30.0
    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0


def fetch(
    source: str,
    size: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
    *,
    sources: Sequence[Source] = SOURCES,
    network: Network = Network(),
) -> Path:
    """Downloads, checks and unpacks a source; returns its folder (`course`, `pbc`) or npz file (`bloodmnist`).

    size: 28 (default), 64, 128 or 224 pixels, for `bloodmnist` alone. folder: of all sources, `paths.RAW` if None.
    A file that was put at `<folder>/<Source.file>` by hand is taken as the download.
    Raises BloodcellError for an unknown source or size, a download that fails for good, a wrong checksum, an archive
    that is unsafe or lacks its images, images that are not the manifest's, and a disk that cannot be written.
    """
    row = _find(source, size, sources)
    folder = Path(folder or paths.RAW).expanduser().absolute()
    file, target = folder / row.file, folder / row.name
    if row.kind == "zip" and target.is_dir() and any(target.iterdir()):
        return target
    pin = file.with_name(f"{file.name}.sha256")
    try:
        pinned = "sha256:" + "".join(pin.read_text(errors="replace").split()[:1]) if pin.exists() else None
        checksum = row.checksum or pinned
        _retrieve(row, file, checksum, _Download(row, file, progress, network))
        if row.kind == "zip":
            _unpack(row, file, target, progress)
        if checksum is None:  # only now, so that a login page served in place of an archive is never pinned
            with paths.write_whole(pin) as path:
                path.write_text(f"{pooch.file_hash(str(file))}  {file.name}\n")
    except OSError as error:
        raise BloodcellError(
            f"{source}: cannot write in {folder} ({error.strerror or error}): free some space or choose another "
            "folder, then try again: the download resumes."
        ) from error
    return target if row.kind == "zip" else file


def _find(source: str, size: int | None, sources: Sequence[Source]) -> Source:
    sizes = {row.size: row for row in sources if row.name == source}
    if not sizes:
        names = ", ".join(dict.fromkeys(row.name for row in sources))
        raise BloodcellError(f"Unknown source '{source}': choose one of {names}.")
    if size is None:
        return next(iter(sizes.values()))
    if size not in sizes:
        advice = "leave the size out" if None in sizes else f"choose one of {', '.join(map(str, sizes))}"
        raise BloodcellError(f"{source} does not come in size {size}: {advice}.")
    return sizes[size]


def _retrieve(row: Source, file: Path, checksum: str | None, download: _Download) -> None:
    """Leaves the verified file at `file`; reads only its checksum if it is there already."""
    pooch.get_logger().setLevel("WARNING")  # its notes are about `known_hash`, which is not the user's to set
    failure = BloodcellError(f"{row.name} has no address to download from.")
    for url in row.urls:
        try:
            pooch.retrieve(url, checksum, file.name, file.parent, downloader=download)
            return
        except BloodcellError as error:
            failure = error
        except ValueError:  # pooch's word for another checksum; it has deleted the file
            advice = "" if row.checksum else f", or delete {file}.sha256 if the source was changed on purpose"
            failure = BloodcellError(
                f"{row.name}: the file from {url} does not have the checksum {checksum} and was deleted: "
                f"try again{advice}."
            )
    raise failure


class _Passing(Exception):
    """(reason, seconds that the server asks to wait): a failure that another try may mend."""


class _Download:
    """A downloader for pooch that keeps `<file>.part` and goes on from there.

    `<file>.part.json` notes which version the part belongs to: address, ETag, Last-Modified, length.
    """

    def __init__(self, row: Source, file: Path, progress: bool, network: Network) -> None:
        self.row, self.file, self.progress, self.network = row, file, progress, network
        self.part = file.with_name(f"{file.name}.part")
        self.note = file.with_name(f"{file.name}.part.json")

    def __call__(self, url: str, output_file: str, _: object) -> None:
        failed, most = 0, self.size()
        while True:
            try:
                self.attempt(url)
                break
            except _Passing as error:
                reason, asked = error.args
            except requests.RequestException:
                reason, asked = "the connection failed, stalled or broke off", 0.0
            failed = 1 if self.size() > most else failed + 1
            most = max(most, self.size())
            if failed >= self.network.attempts or asked > self.network.longest_wait:
                raise BloodcellError(
                    f"{self.row.name}: {url} gave no whole file ({reason}); try again later: the download resumes."
                )
            wait = max(asked, min(self.network.backoff * 2 ** (failed - 1), self.network.longest_wait))
            if self.progress:
                print(f"{self.row.name}: {reason}; next try in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
        os.replace(self.part, output_file)
        self.note.unlink(missing_ok=True)

    def size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def begun(self, url: str) -> dict:
        """The version that the part belongs to, {} if it cannot be continued from `url`."""
        try:
            version = json.loads(self.note.read_text())
            return version if version["url"] == url and 0 < self.size() <= version["length"] else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    def attempt(self, url: str) -> None:
        begun, have = self.begun(url), self.size()
        if begun and have == begun["length"]:
            return
        headers = {"User-Agent": f"bloodcell-lib/{__version__}", "Accept-Encoding": "identity"}
        if begun:
            headers["Range"] = f"bytes={have}-"
        timeout = (self.network.connect, self.network.stall)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            status = answer.status_code
            if status in PASSING:
                asked = _retry_after(answer)
                wish = f", asking to wait {asked:.0f} s" if asked else ""
                raise _Passing(f"it answered {status} {answer.reason}{wish}", asked)
            version = _version(url, answer)
            where = answer.headers.get("Content-Range", "")
            if begun and (status == 416 or (status == 206 and (version != begun or f"bytes {have}-" not in where))):
                self.part.unlink()  # another version, or not the range that was asked for: begin again
                return self.attempt(url)
            if status != 200 and not (begun and status == 206):
                raise BloodcellError(
                    f"{self.row.name}: {url} answered {status} {answer.reason}: try again later, or download the file "
                    f"by hand from {self.row.page}, save it as {self.file} and fetch again."
                )
            have = have if status == 206 else 0
            with open(self.part, "ab" if have else "wb") as part:
                if not have:  # after the part is emptied: no note ever stands over another version's bytes
                    with paths.write_whole(self.note) as path:
                        path.write_text(json.dumps(version))
                bar = {"desc": self.row.name, "unit": "B", "unit_scale": True, "disable": not self.progress}
                with tqdm(total=version["length"], initial=have, **bar) as shown:
                    for chunk in answer.iter_content(2**14):  # what is short of a chunk is lost when the line breaks
                        shown.update(part.write(chunk))
        if version["length"] not in (None, self.size()):
            raise _Passing(f"it ended at byte {self.size()} of {version['length']}", 0.0)


def _version(url: str, answer: requests.Response) -> dict:
    """What tells one version of a file from another; the length, in bytes, is of the whole file."""
    length = answer.headers.get("Content-Range" if answer.status_code == 206 else "Content-Length", "")
    length = length.rpartition("/")[2]
    return {
        "url": url,
        "etag": answer.headers.get("ETag"),
        "last_modified": answer.headers.get("Last-Modified"),
        "length": int(length) if length.isdecimal() else None,
    }


def _retry_after(answer: requests.Response) -> float:
    """Seconds that the server asks to wait, named as a number or as a date; 0 if it does not say."""
    said = answer.headers.get("Retry-After", "")
    try:
        return float(said) if said.isdecimal() else max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _unpack(row: Source, archive: Path, target: Path, progress: bool) -> None:
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
