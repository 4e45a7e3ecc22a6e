"""The public sources of images, fetched with checksums: `fetch("pbc")`.

A download goes on where an earlier one stopped, an archive is unpacked whole or not at all, and what is there already
is returned without a network.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from bloodcell_lib import __version__, paths
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.sources import SOURCES, Source
from bloodcell_lib.unpack import unpack

PASSING = (408, 429, 500, 502, 503, 504)  # HTTP states worth another try


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


def terms(source: str, size: int | None = None) -> str:
    """The licence of a source, and what is to be cited for it. Raises BloodcellError for an unknown one."""
    row = _find(source, size, SOURCES)
    return f"{row.licence}; to be cited: {row.citation}"


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
        if not any(target.rglob("*.jpg")):
            raise BloodcellError(f"{target} holds none of the images of {source}: move it away, then fetch again.")
        return target
    pin = file.with_name(f"{file.name}.sha256")
    try:
        pinned = "sha256:" + "".join(pin.read_text(errors="replace").split()[:1]) if pin.exists() else None
        checksum = row.checksum or pinned
        _retrieve(row, file, checksum, _Download(row, file, progress, network))
        if row.kind == "zip":
            unpack(row, file, target, progress)
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
