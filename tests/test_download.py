from __future__ import annotations

import hashlib
import io
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from http_server import Reply, serve
from PIL import Image

from bloodcell_lib import paths
from bloodcell_lib.cells import CELL_TYPES, NAMES
from bloodcell_lib.download import Network, fetch
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.sources import SOURCES

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
HASTY = Network(connect=2, stall=0.3, attempts=3, backoff=0.01, longest_wait=5)
ROWS = {(row.name, row.size): row for row in SOURCES}


@pytest.fixture
def site():
    with serve(files={"bloodmnist.npz": CONTENT}) as site:
        yield site


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def npz_row(site, content=CONTENT, **changes):
    row = ROWS["bloodmnist", 28]
    return replace(row, **{"urls": (site.url("bloodmnist.npz"),), "checksum": md5(content), **changes})


def get(row, folder, network=HASTY):
    return fetch(row.name, row.size, folder, progress=False, sources=(row,), network=network)


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


def pbc_members(seed: int = 0) -> dict[str, bytes]:
    root = "PBC_dataset_normal_DIB"
    cells = {f"{root}/{cell.name}/X_{cell.id}.jpg": picture(seed + cell.id) for cell in CELL_TYPES}
    return cells | {
        f"{root}/neutrophil/.DS_169665.jpg": picture(99),
        f"{root}/notes.txt": b"not an image",
        **{f"__MACOSX/{root}/{name}/._X.jpg": b"fork" for name in NAMES},
    }


@pytest.fixture
def pbc(site):
    site.files["pbc.zip"] = archive(pbc_members())
    return replace(ROWS["pbc", None], urls=(site.url("pbc.zip"),))


@pytest.fixture
def course(site, tmp_path):
    """The course's layout deep in an archive, with a manifest of its images."""
    images = {f"train/{cell.name}/A_{cell.id}.jpg": picture(cell.id) for cell in CELL_TYPES}
    images |= {f"test/img_{i}.jpg": picture(50 + i) for i in range(3)}
    root = "perfect-main/Some folder - material"
    members = {f"{root}/{name}": content for name, content in images.items()}
    members |= {f"{root}/class_map.json": b"{}", f"{root}/report.pdf": b"text", "perfect-main/README.md": b"text"}
    site.files["course.zip"] = archive(members)
    manifest = tmp_path / "manifest.csv"
    lines = ["part,name,class,prefix,width,height,sha256"]
    for name, content in images.items():
        part, *middle, file = name.split("/")
        lines.append(f"{part},{file},{''.join(middle)},A,12,12,{hashlib.sha256(content).hexdigest()}")
    manifest.write_text("\n".join(lines) + "\n")
    return replace(ROWS["course", None], urls=(site.url("course.zip"),), manifest=manifest)


# What is asked for


def test_table_is_complete():
    assert set(ROWS) == {("course", None), ("pbc", None), *(("bloodmnist", size) for size in (28, 64, 128, 224))}
    assert len({row.file for row in SOURCES}) == len(SOURCES)
    for row in SOURCES:
        assert row.licence == "CC BY 4.0"
        assert "10.17632/snkd93bnjr.1" in row.citation
        assert all(url.startswith("https://") for url in (*row.urls, row.page))
        assert (row.kind == "npz") == bool(row.checksum), "a zip is pinned, an npz has its published md5"


@pytest.mark.parametrize(
    ("source", "size", "words"),
    [
        ("imagenet", None, "choose one of course, pbc, bloodmnist"),
        ("pbc", 64, "leave the size out"),
        ("course", 28, "leave the size out"),
        ("bloodmnist", 32, "choose one of 28, 64, 128, 224"),
    ],
)
def test_wrong_source_or_size(tmp_path, source, size, words):
    with pytest.raises(BloodcellError, match=words):
        fetch(source, size, tmp_path)
    assert left(tmp_path) == []


def test_size_chooses_the_file(site, tmp_path):
    site.files["64.npz"] = OTHER
    rows = (npz_row(site), replace(ROWS["bloodmnist", 64], urls=(site.url("64.npz"),), checksum=md5(OTHER)))
    assert fetch("bloodmnist", None, tmp_path, False, sources=rows).read_bytes() == CONTENT
    big = fetch("bloodmnist", 64, tmp_path, False, sources=rows)
    assert big == tmp_path / "bloodmnist" / "bloodmnist_64.npz" and big.read_bytes() == OTHER


# A good day


def test_file_and_second_fetch_without_network(site, tmp_path):
    row = npz_row(site)
    first = get(row, tmp_path)
    assert first == tmp_path / "bloodmnist" / "bloodmnist.npz" and first.read_bytes() == CONTENT
    assert left(tmp_path) == ["bloodmnist/bloodmnist.npz"], "nothing but the file stays"
    assert get(row, tmp_path) == first
    assert len(site.log) == 1


def test_default_folder_is_raw(site, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    assert get(npz_row(site), None) == tmp_path / "raw" / "bloodmnist" / "bloodmnist.npz"


def test_progress_is_shown_only_when_asked(site, tmp_path, capsys):
    row = npz_row(site)
    site.script = [Reply(cut=1000)]
    fetch("bloodmnist", None, tmp_path / "a", True, sources=(row,), network=HASTY)
    shown = capsys.readouterr().err
    assert "100%" in shown and "next try in" in shown
    get(row, tmp_path / "b")
    assert capsys.readouterr().err == ""


def test_damaged_local_file_is_fetched_again(site, tmp_path):
    row = npz_row(site)
    get(row, tmp_path).write_bytes(b"damaged")
    assert get(row, tmp_path).read_bytes() == CONTENT


def test_file_saved_by_hand_is_taken(site, tmp_path, pbc):
    (tmp_path / "pbc.zip").write_bytes(site.files["pbc.zip"])
    assert len(left(get(pbc, tmp_path))) == 8
    assert site.log == []


# A bad line


@pytest.mark.parametrize("reply", [Reply(cut=98_304), Reply(stall=98_304)], ids=["truncated", "stalled"])
def test_goes_on_where_the_line_broke(site, tmp_path, reply):
    site.script = [reply]
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None, "bytes=98304-"]


def test_goes_on_as_long_as_bytes_come(site, tmp_path):
    site.script = [Reply(cut=49_152) for _ in range(5)]  # more breaks than attempts
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert len(site.log) == 6


def test_silence_before_the_answer(site, tmp_path):
    site.script = [Reply(stall=0), Reply(stall=0)]
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT


def test_truncated_without_a_length(site, tmp_path):
    site.length = False
    site.script = [Reply(cut=98_304)]
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None, None], "a part of unknown length cannot be continued"


def test_later_call_goes_on(site, tmp_path):
    row = npz_row(site)
    site.script = [Reply(cut=114_688)]
    with pytest.raises(BloodcellError, match=r"^bloodmnist: .*the download resumes\.$"):
        get(row, tmp_path, replace(HASTY, attempts=1))
    assert "bloodmnist/bloodmnist.npz" not in left(tmp_path)
    assert get(row, tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None, "bytes=114688-"]
    assert left(tmp_path) == ["bloodmnist/bloodmnist.npz"]


def test_killed_process_goes_on(site, tmp_path):
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from bloodcell_lib.download import fetch\nfrom bloodcell_lib.sources import SOURCES\n"
        "row = next(r for r in SOURCES if r.kind == 'npz')\n"
        "row = replace(row, urls=(sys.argv[1],), checksum=sys.argv[2])\n"
        "fetch(row.name, None, Path(sys.argv[3]), False, sources=(row,))\n"
    )
    row = npz_row(site)
    site.script = [Reply(stall=200_000)]
    process = subprocess.Popen([sys.executable, "-c", script, row.urls[0], row.checksum, str(tmp_path)])
    part = tmp_path / "bloodmnist" / "bloodmnist.npz.part"
    end = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 98_304):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert get(row, tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None, f"bytes={have}-"]


def test_killed_after_the_last_byte(site, tmp_path):
    row = npz_row(site)
    site.script = [Reply(cut=294_912)]
    with pytest.raises(BloodcellError):
        get(row, tmp_path, replace(HASTY, attempts=1))
    with open(tmp_path / "bloodmnist" / "bloodmnist.npz.part", "ab") as part:
        part.write(CONTENT[294_912:])
    assert get(row, tmp_path).read_bytes() == CONTENT
    assert len(site.log) == 1


def test_begins_again_without_ranges(site, tmp_path):
    site.ranges = False
    site.script = [Reply(cut=98_304)]
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert [status for *_, status in site.log] == [200, 200]


@pytest.mark.parametrize("validator", ["etag", "last_modified", "length"])
@pytest.mark.parametrize("ranges", [True, False])
def test_begins_again_when_the_file_changed(site, tmp_path, validator, ranges):
    new = OTHER[:250_000] if validator == "length" else OTHER
    site.etag, site.last_modified = ('"1"', None) if validator == "etag" else (None, None)
    if validator == "last_modified":
        site.last_modified = formatdate(0, usegmt=True)
    site.script = [Reply(cut=98_304)]
    row = npz_row(site, new)
    with pytest.raises(BloodcellError):
        get(row, tmp_path, replace(HASTY, attempts=1))
    site.files["bloodmnist.npz"], site.ranges = new, ranges
    if validator == "etag":
        site.etag = '"2"'
    if validator == "last_modified":
        site.last_modified = formatdate(1, usegmt=True)
    assert get(row, tmp_path).read_bytes() == new
    assert site.asked() == [None, "bytes=98304-", None] if ranges else [None, "bytes=98304-"]


def test_begins_again_when_the_file_became_shorter(site, tmp_path):
    site.script = [Reply(cut=98_304)]
    row = npz_row(site, OTHER[:80_000])
    with pytest.raises(BloodcellError):
        get(row, tmp_path, replace(HASTY, attempts=1))
    site.files["bloodmnist.npz"] = OTHER[:80_000]
    assert get(row, tmp_path).read_bytes() == OTHER[:80_000]
    assert [status for *_, status in site.log] == [200, 416, 200]


def test_begins_again_when_the_range_is_another(site, tmp_path):
    site.script = [Reply(cut=98_304), Reply(headers={"Content-Range": "bytes 7-299999/300000"})]
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None, "bytes=98304-", None]


def test_broken_note_begins_again(site, tmp_path):
    folder = tmp_path / "bloodmnist"
    folder.mkdir()
    (folder / "bloodmnist.npz.part").write_bytes(OTHER[:1000])
    (folder / "bloodmnist.npz.part.json").write_text('{"url"')
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None]


# A busy or absent server


@pytest.mark.parametrize(("status", "date"), [(503, False), (429, True)])
def test_waits_as_long_as_asked(site, tmp_path, status, date):
    asked = formatdate(time.time() + 2, usegmt=True) if date else "1"  # a date has whole seconds
    site.script = [Reply(status=status, headers={"Retry-After": asked})]
    begin = time.monotonic()
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT
    assert 0.9 <= time.monotonic() - begin < 5
    assert [seen for *_, seen in site.log] == [status, 200]


def test_unreadable_wish_is_no_wish(site, tmp_path):
    site.script = [Reply(status=503, headers={"Retry-After": "soon"})]
    assert get(npz_row(site), tmp_path).read_bytes() == CONTENT


def test_too_long_a_wait_ends_it(site, tmp_path):
    site.script = [Reply(status=503, headers={"Retry-After": "3600"})]
    with pytest.raises(BloodcellError, match=r"bloodmnist: .*asking to wait 3600 s.*try again"):
        get(npz_row(site), tmp_path)
    assert len(site.log) == 1


def test_gives_up_in_the_end(site, tmp_path):
    site.script = [Reply(status=503) for _ in range(9)]
    with pytest.raises(BloodcellError, match=r"bloodmnist: .*503 Service Unavailable.*the download resumes"):
        get(npz_row(site), tmp_path)
    assert len(site.log) == HASTY.attempts
    assert left(tmp_path) == []


def test_absent_file_is_not_asked_for_twice(site, tmp_path):
    row = npz_row(site, urls=(site.url("gone"),))
    with pytest.raises(BloodcellError, match=r"404 Not Found.*by hand from https://zenodo.*bloodmnist\.npz"):
        get(row, tmp_path)
    assert len(site.log) == 1


def test_second_address_helps(site, tmp_path):
    row = npz_row(site, urls=(site.url("gone"), site.url("bloodmnist.npz")))
    assert get(row, tmp_path).read_bytes() == CONTENT


def test_nobody_answers(tmp_path):
    with serve() as site:
        row = npz_row(site)
    with pytest.raises(BloodcellError, match="connection failed"):
        get(row, tmp_path)


# Wrong bytes


def test_wrong_checksum_is_deleted(site, tmp_path):
    row = npz_row(site)
    site.files["bloodmnist.npz"] = OTHER
    with pytest.raises(
        BloodcellError, match=r"^bloodmnist: .* does not have the checksum md5:\w+ and was deleted: try"
    ):
        get(row, tmp_path)
    assert left(tmp_path) == []
    site.files["bloodmnist.npz"] = CONTENT
    assert get(row, tmp_path).read_bytes() == CONTENT


def test_first_download_is_pinned(site, tmp_path, pbc):
    folder = get(pbc, tmp_path)
    pin = tmp_path / "pbc.zip.sha256"
    assert pin.read_text() == f"{hashlib.sha256(site.files['pbc.zip']).hexdigest()}  pbc.zip\n"
    shutil.rmtree(folder)
    (tmp_path / "pbc.zip").unlink()
    good, site.files["pbc.zip"] = site.files["pbc.zip"], archive(pbc_members(seed=1000))
    with pytest.raises(BloodcellError, match=r"^pbc: .*deleted: try again, or delete .*pbc\.zip\.sha256 if"):
        get(pbc, tmp_path)
    assert left(tmp_path) == ["pbc.zip.sha256"]
    site.files["pbc.zip"] = good
    folder.mkdir()
    assert len(left(get(pbc, tmp_path))) == 8, "an empty folder is no data set"


def test_page_in_place_of_an_archive_is_not_pinned(site, tmp_path, pbc):
    good, site.files["pbc.zip"] = site.files["pbc.zip"], b"<html>please log in</html>" * 100
    with pytest.raises(BloodcellError, match=r"^pbc: the archive was not unpacked and is deleted.*not a zip file"):
        get(pbc, tmp_path)
    assert left(tmp_path) == []
    site.files["pbc.zip"] = good
    assert len(left(get(pbc, tmp_path))) == 8


# Archives


def test_only_the_images_come_out(site, tmp_path, pbc):
    folder = get(pbc, tmp_path)
    assert folder == tmp_path / "pbc"
    assert left(folder) == [f"{cell.name}/X_{cell.id}.jpg" for cell in CELL_TYPES]
    assert (folder / "ig" / "X_3.jpg").read_bytes() == picture(3)
    get(pbc, tmp_path)
    assert len(site.log) == 1


def test_course_images_are_found_and_compared(site, tmp_path, course):
    folder = get(course, tmp_path / "raw")
    assert sorted(path.name for path in folder.iterdir()) == ["class_map.json", "test", "train"]
    assert len(left(folder)) == 12


@pytest.mark.parametrize("change", ["other", "missing", "extra"])
def test_course_images_that_are_others(site, tmp_path, course, change):
    lines = course.manifest.read_text().splitlines(keepends=True)
    if change == "other":
        lines[-1] = lines[-1].replace(lines[-1].rsplit(",", 1)[1], "0" * 64)
    elif change == "extra":  # in the archive, that is
        lines = lines[:-1]
    else:
        lines.append(f"test,img_9.jpg,,A,12,12,{'0' * 64}\n")
    course.manifest.write_text("".join(lines))
    name = "test/img_9.jpg" if change == "missing" else "test/img_2.jpg"
    with pytest.raises(BloodcellError, match=rf"^course: .*1 images are missing, extra or not as .* first {name}"):
        get(course, tmp_path / "raw")
    assert left(tmp_path / "raw") == []


def test_course_without_manifest(tmp_path, course):
    course.manifest.unlink()
    assert len(left(get(course, tmp_path / "raw"))) == 12


def test_archive_without_the_images(site, tmp_path, course):
    site.files["course.zip"] = archive({"perfect-main/README.md": b"text", "perfect-main/train/a.jpg": picture(0)})
    with pytest.raises(BloodcellError, match=r"it has no folder with class_map.json, train, test side by side"):
        get(course, tmp_path / "raw")
    assert left(tmp_path / "raw") == []


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


ZEROS = bytes(3_000_000)
UNSAFE = {
    "parent": ({"a/../../evil.jpg": b"x"}, "leads out of the folder"),
    "absolute": ({"/tmp/evil.jpg": b"x"}, "leads out of the folder"),
    "drive": ({"C:evil.jpg": b"x"}, "leads out of the folder"),
    "backslash": ({"a\\..\\..\\evil.jpg": b"x"}, "leads out of the folder"),
    "share": ({"\\\\host\\share\\evil.jpg": b"x"}, "leads out of the folder"),
    "link": ({special("basophil/link.jpg", stat.S_IFLNK | 0o777): b"/etc/passwd"}, "is a link or a device"),
    "pipe": ({special("basophil/pipe", stat.S_IFIFO | 0o644): b""}, "is a link or a device"),
    "bomb": ({"PBC_dataset_normal_DIB/basophil/zeros.jpg": ZEROS}, "it would grow to 3,0"),
    "file and folder": ({"PBC_dataset_normal_DIB/basophil": b"x"}, "has the name of a folder"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_archive_is_refused_whole(site, tmp_path, pbc, kind):
    members, words = UNSAFE[kind]
    site.files["pbc.zip"] = archive(pbc_members() | members)
    raw = tmp_path / "deep" / "raw"
    with pytest.raises(BloodcellError, match=words):
        get(pbc, raw)
    assert left(tmp_path) == [], "neither in the folder nor above it"
    assert not (raw / "pbc").exists()


def test_size_is_bounded(tmp_path, pbc):
    with pytest.raises(BloodcellError, match="it would grow to"):
        get(replace(pbc, most_bytes=1000), tmp_path)
    assert left(tmp_path) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_that_is_there_twice(site, tmp_path, pbc):
    file = io.BytesIO(site.files["pbc.zip"])
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr("PBC_dataset_normal_DIB/ig/X_3.jpg", b"another")
    site.files["pbc.zip"] = file.getvalue()
    with pytest.raises(BloodcellError, match="in it twice"):
        get(pbc, tmp_path)
    assert left(tmp_path) == []


def test_damaged_members(site, tmp_path, pbc):
    good = site.files["pbc.zip"]
    middle = good.index(b"ig/X_3.jpg") + 40
    encrypted = bytearray(good)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = good.index(mark)
        encrypted[at + flags] |= 1
    for bad in (good[:middle] + b"\0\1\2" + good[middle + 3 :], bytes(encrypted), good[:-30], good[50:]):
        site.files["pbc.zip"] = bytes(bad)
        with pytest.raises(BloodcellError, match=r"^pbc: the archive was not unpacked and is deleted"):
            get(pbc, tmp_path)
        assert left(tmp_path) == []


# The disk


def test_folder_that_cannot_be_made(site, tmp_path, pbc):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BloodcellError, match=r"^pbc: cannot write in"):
        get(pbc, tmp_path / "file" / "raw")


def test_disk_full_then_resumed(site, tmp_path):
    """A limit on the size of files stands in for the disk's: writing fails in the middle in the same way."""
    row = npz_row(site)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (131_072, before[1]))
    try:
        with pytest.raises(BloodcellError, match=r"^bloodmnist: cannot write in .*the download resumes"):
            get(row, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.path.getsize(tmp_path / "bloodmnist" / "bloodmnist.npz.part") == 131_072
    assert get(row, tmp_path).read_bytes() == CONTENT
    assert site.asked() == [None, "bytes=131072-"]
