"""Labels for files as a user gets them: the real command with real weights of a very short training."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import BAD
from PIL import Image

from bloodcell_lib import decode, export, paths, plans, predict, reader, synthetic
from bloodcell_lib.cells import CLASS_MAP, NAMES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.predict import BATCH, Network, Prediction


@pytest.fixture(scope="module")
def network(weights: Path) -> Network:
    return Network(weights)


@pytest.fixture
def mine(drawn: Path, tmp_path: Path) -> Path:
    """Eleven cells to spoil, named img_0.jpg to img_10.jpg."""
    (tmp_path / "mine").mkdir()
    for i, path in enumerate(sorted(drawn.glob("train/*/*.jpg"))[::6]):
        shutil.copy(path, tmp_path / "mine" / f"img_{i}.jpg")
    return tmp_path / "mine"


def in_torch(weights: Path, files: list[Path]) -> np.ndarray:
    """The same files through the same weights in PyTorch: probabilities (n, 8)."""
    images = np.stack([decode.to_pixels(path, 96, 240) for path in files])
    with torch.no_grad():
        return export.published(weights)(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).softmax(1).numpy()


def bloodcell(
    *arguments: object, weights: Path | None, folder: Path | None = None, python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "bloodcell_lib.cli", "predict", *map(str, arguments)]
    environment = os.environ | {"BLOODCELL_WEIGHTS": str(weights or "/nowhere")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)


def refused(done: subprocess.CompletedProcess[str], match: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("bloodcell: ") and done.stderr.count("\n") == 1, done.stderr
    assert re.search(match, done.stderr), done.stderr
    assert done.stdout == ""


# The command


def test_a_folder_gives_the_courses_file(weights: Path, mine: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python = ("-X", "importtime")
    done = bloodcell("mine", "--out", "new/labels.json", weights=weights, folder=tmp_path, python=python)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not imported & {"torch", "torchvision", "pandas", "sklearn", "matplotlib", "scipy", "onnx"}

    names = [f"img_{i}.jpg" for i in range(11)]
    found = json.loads((tmp_path / "new" / "labels.json").read_text())
    assert list(found) == names
    expected = in_torch(weights, [mine / name for name in names]).argmax(1).tolist()
    assert list(found.values()) == expected and len(set(expected)) == 8
    assert [type(label) for label in found.values()] == [int] * 11
    assert done.stdout.startswith("new/labels.json: 11 images, 2 ")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["labels.json"]


def test_files_are_told_on_lines(weights: Path, mine: Path) -> None:
    done = bloodcell("img_10.jpg", "img_9.jpg", weights=weights, folder=mine)
    assert done.returncode == 0 and done.stderr == ""
    probabilities = in_torch(weights, [mine / "img_9.jpg", mine / "img_10.jpg"])
    for line, name, row in zip(done.stdout.splitlines(), ("img_9.jpg", "img_10.jpg"), probabilities, strict=True):
        shown = line.split()
        assert shown[:2] == [name, NAMES[row.argmax()]]
        assert float(shown[2].rstrip("%")) / 100 == pytest.approx(row.max(), abs=2e-3)


def test_bad_files_are_told_and_the_rest_is_predicted(weights: Path, mine: Path, tmp_path: Path) -> None:
    good = dict.fromkeys(path.name for path in mine.iterdir())
    for i, make in enumerate(BAD.values()):
        bad = mine / f"bad_{i}.jpg"
        shutil.copy(mine / "img_0.jpg", bad)
        make(bad)
    (mine / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(mine / "pipe.jpg")
    (mine / "notes.txt").write_text("passed over")
    (mine / "deeper").mkdir()
    shutil.copy(mine / "img_0.jpg", mine / "deeper" / "passed over.jpg")
    done = bloodcell(mine, "--out", tmp_path / "o.json", weights=weights)
    assert done.returncode == 3
    assert set(json.loads((tmp_path / "o.json").read_text())) == set(good)
    told = done.stderr.splitlines()
    assert len(told) == len(BAD) + 2
    for i, kind in enumerate(BAD):
        (line,) = [line for line in told if line.startswith(f"Left out: bad_{i}.jpg (")]
        assert line.endswith(").") and len(line) > 30, kind
    assert "Left out: pipe.jpg (not a file)." in told and "Left out: gone.jpg (No such file or directory)." in told
    assert f"{len(good)} images" in done.stdout


def test_more_files_than_a_batch_keep_their_order(weights: Path, drawn: Path, network: Network) -> None:
    files = predict.find(sorted((drawn / "train").iterdir()))
    assert len(files) == 64 > BATCH
    rows = list(predict.predict(files, network, workers=3))
    assert [row.name for row in rows] == list(files)
    expected = [CLASS_MAP[path.parent.name] for path in files.values()]
    assert [row.label for row in rows] == expected
    together = np.array([row.probabilities for row in rows])
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(together, in_torch(weights, list(files.values())), atol=1e-4)
    assert predict.counted(rows).startswith("8 ") and predict.counted(rows).count("8 ") == 8
    alone = [next(predict.predict({name: files[name]}, network)).probabilities for name in list(files)[::7]]
    np.testing.assert_allclose(alone, together[::7], atol=1e-5)


def test_turns_and_mirrorings_are_averaged(weights: Path, mine: Path, tmp_path: Path, network: Network) -> None:
    image = decode.to_pixels(mine / "img_3.jpg", 96, 240)
    picture = Image.fromarray(image)
    turns = [picture.rotate(angle) for angle in (0, 90, 180, 270)]
    turns += [turn.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for turn in turns]
    eight = np.stack([np.asarray(turn) for turn in turns])
    assert len({one.tobytes() for one in eight}) == 8
    assert {one.tobytes() for one in eight} == {one[0].tobytes() for one in predict.symmetries(image[None])}
    expected = network.probabilities(eight).mean(0)
    found = network.probabilities(np.stack([image, image[::-1]]), tta=True)
    np.testing.assert_allclose(found, [expected] * 2, atol=1e-6)
    assert np.abs(found[0] - network.probabilities(image[None])[0]).max() > 1e-5
    done = bloodcell(mine / "img_3.jpg", "--tta", "--probabilities", "--format", "json", weights=weights)
    told = json.loads(done.stdout)["img_3.jpg"]["probabilities"]
    np.testing.assert_allclose(list(told.values()), expected, atol=2e-6)


def test_all_probabilities_in_each_format(weights: Path, mine: Path, tmp_path: Path) -> None:
    names = [f"img_{i}.jpg" for i in range(11)]
    expected = in_torch(weights, [mine / name for name in names])
    bloodcell(mine, "--out", tmp_path / "o.json", "--probabilities", weights=weights)
    rows = json.loads((tmp_path / "o.json").read_text())
    assert list(rows) == names
    for row, probabilities in zip(rows.values(), expected):
        assert row["label"] == probabilities.argmax() and row["class"] == NAMES[row["label"]]
        assert tuple(row["probabilities"]) == NAMES
        np.testing.assert_allclose(list(row["probabilities"].values()), probabilities, atol=1e-4)
    bloodcell(mine, "--out", tmp_path / "o.csv", "--probabilities", weights=weights)
    table = list(csv.reader((tmp_path / "o.csv").open(newline="", encoding="utf-8")))
    assert table[0] == ["name", "label", "class", *NAMES]
    assert [row[:3] for row in table[1:]] == [[name, str(row["label"]), row["class"]] for name, row in rows.items()]
    assert [list(map(float, row[3:])) for row in table[1:]] == [
        [*row["probabilities"].values()] for row in rows.values()
    ]
    plain = bloodcell(mine, "--format", "csv", weights=weights).stdout
    assert list(csv.reader(io.StringIO(plain))) == [row[:3] for row in table]
    heading, *lines = bloodcell(mine, "--probabilities", weights=weights).stdout.splitlines()
    assert tuple(heading.split()) == NAMES
    assert [float(p) for p in lines[0].split()[3:]] == pytest.approx(expected[0], abs=1e-4)


def test_odd_names_come_through_every_format(weights: Path, mine: Path, tmp_path: Path) -> None:
    odd = {"a, b.jpg", "\u00e9 \u7d30.jpg", "two\nlines.jpg", "b\udcff.jpg", 'say "x".jpg'}
    (tmp_path / "odd").mkdir()
    for name in odd:
        shutil.copy(mine / "img_0.jpg", tmp_path / "odd" / name)
    done = bloodcell(tmp_path / "odd", "--out", tmp_path / "o.json", weights=weights)
    assert done.returncode == 0 and set(json.loads((tmp_path / "o.json").read_text())) == odd
    bloodcell(tmp_path / "odd", "--out", tmp_path / "o.csv", weights=weights)
    names = {row["name"] for row in csv.DictReader((tmp_path / "o.csv").open(newline="", encoding="utf-8"))}
    assert names == {name.replace("\udcff", "\\udcff") for name in odd}
    assert len(bloodcell(tmp_path / "odd", weights=weights).stdout.splitlines()) == 5
    shown = bloodcell(tmp_path / "odd" / "two\nlines.jpg", weights=weights).stdout
    assert shown.startswith("two\\nlines.jpg ") and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("nowhere", "No file or folder nowhere: check its name"),
        ("mine/img_0.jpg mine/img_0.jpeg", "No file or folder mine/img_0.jpeg"),
        ("empty", "No images straight inside empty: give the folder that holds them"),
        (".", r"No images straight inside \."),
        ("bad", r"No file can be read, 2 tried; the first: a.jpg \(an empty file\)"),
        ("bad/notes.txt", r"No file can be read, 1 tried; the first: notes.txt \(not an image\)"),
        ("mine --format xml", "Unknown format 'xml': choose json or csv"),
        ("mine --out o.txt", "Unknown format 'txt'"),
        ("mine --out o.json --format lines", "Unknown format 'lines'"),
        ("mine --out mine/img_0.jpg/o.json", "Cannot write .*o.json: "),
        ("mine --out empty --format json", r"empty is a folder: give a file, such as empty.prediction_labels\.json"),
        ("", "Missing argument"),
        ("mine --out", "requires an argument"),
        ("bad --out new.json", "No file can be read"),
    ],
)
def test_bad_words_are_one_sentence_and_write_nothing(
    weights: Path, mine: Path, tmp_path: Path, arguments: str, match: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").touch()
    (tmp_path / "bad" / "b.jpg").write_text("no image")
    (tmp_path / "bad" / "notes.txt").write_text("no image")
    before = {str(path) for path in tmp_path.rglob("*")}
    refused(bloodcell(*arguments.split(), weights=weights, folder=tmp_path), match)
    assert {str(path) for path in tmp_path.rglob("*")} == before


def test_a_reader_that_has_gone_is_not_told(weights: Path, mine: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "bloodcell_lib.cli", "predict", str(mine)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"BLOODCELL_WEIGHTS": str(weights)},
        timeout=120,
    )
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


def test_nothing_is_kept_or_sent_about_its_use(weights: Path, mine: Path, tmp_path: Path) -> None:
    quiet = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI"}  # what might keep onnxruntime quiet without us
    (tmp_path / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"BLOODCELL_WEIGHTS": str(weights), "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "bloodcell_lib.cli", "predict", str(mine)]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode == 0
    assert list((tmp_path / "home").iterdir()) == []


# Weights


def test_without_weights_the_command_says_how_to_make_them(mine: Path, tmp_path: Path) -> None:
    done = bloodcell(mine, "--out", tmp_path / "o.json", weights=tmp_path / "none")
    refused(
        done,
        "No weights in .*none: bring the published ones back with `git checkout .*`, or make some as README says",
    )
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    "damage", ["no onnx", "half an onnx", "other onnx", "other safetensors", "half a record", "[]"]
)
def test_what_is_no_whole_set_is_refused(weights: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    onnx, record = folder / f"{predict.NAME}.onnx", folder / f"{predict.NAME}.json"
    match damage:
        case "no onnx":
            onnx.unlink()
        case "half an onnx":
            onnx.write_bytes(onnx.read_bytes()[:1_000_000])
        case "other onnx":
            onnx.write_bytes(onnx.read_bytes().replace(b"logits", b"logitz"))
        case "other safetensors":
            (folder / f"{predict.NAME}.safetensors").write_bytes(b"")
        case "half a record":
            record.write_text(record.read_text()[:200])
        case _:
            record.write_text(damage)
    with pytest.raises(BloodcellError, match="are not a whole set: publish or install them again"):
        Network(folder)
    with pytest.raises(BloodcellError, match="are not a whole set"):
        export.published(folder)


# Photographs of another microscope


@pytest.fixture(scope="module")
def with_reader(weights: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights beside a reader that was taught by the drawn cells, if only for a moment."""
    folder = shutil.copytree(weights, tmp_path_factory.mktemp("eye") / "weights")
    whole = np.stack([decode.to_pixels(path, 192, 360) for path in sorted(drawn.glob("train/*/*.jpg"))])
    eye = reader.learn(torch.from_numpy(whole).permute(0, 3, 1, 2), epochs=20)
    eye.steady.zero_()  # after so short a lesson little would be told from ours
    export.export_reader(eye, {"part": "all"}, folder)
    return folder


def test_what_is_read_is_undone_before_a_label_is_given(with_reader: Path, mine: Path, tmp_path: Path) -> None:
    half = {}
    for path in sorted(mine.iterdir()):  # the same cells at half the magnification, in a yellow light
        small = Image.open(path).resize((180, 180))
        wide = np.pad(np.asarray(small), ((90, 90), (90, 90), (0, 0)), mode="edge") * np.array([1, 0.97, 0.86])
        Image.fromarray(wide.astype(np.uint8)).save(path)
        half[path.name] = path
    network, eye = Network(with_reader), predict.Eye(with_reader)
    readings = eye.read([decode.read(path) for path in half.values()])
    assert readings.shape == (11, 7) and readings[:, 0].mean() < -0.15, "half is log 0.5 = -0.69"
    assert readings[:, 3].mean() < readings[:, 1].mean() - 0.05, "blue is less than red"
    files = predict.find([mine])
    plain, undone = (list(predict.predict(files, network, eye=one)) for one in (None, eye))
    by_hand = network.probabilities(eye.undone([decode.read(path) for path in files.values()], 96, 240))
    np.testing.assert_allclose(np.stack([row.probabilities for row in undone]), by_hand, atol=1e-4)
    assert np.abs(by_hand - np.stack([row.probabilities for row in plain])).max() > 0.01

    (mine / "broken.jpg").write_bytes(b"no image")
    done = bloodcell(mine, "--normalise", "--out", tmp_path / "o.json", weights=with_reader)
    assert done.returncode == 3 and "Left out: broken.jpg" in done.stderr
    assert list(json.loads((tmp_path / "o.json").read_text()).values()) == [row.label for row in undone]


def test_without_a_reader_the_command_says_how_to_make_one(weights: Path, mine: Path, tmp_path: Path) -> None:
    done = bloodcell(mine, "--normalise", "--out", tmp_path / "o.json", weights=weights)
    refused(done, "No reader .*reader.onnx: make it with `bloodcell reader .*, or do without --normalise")
    folder = shutil.copytree(weights, tmp_path / "weights")
    (folder / predict.READER).write_bytes(b"no network")
    refused(bloodcell(mine, "--normalise", weights=folder), "reader.onnx is damaged: make it")
    shutil.copy(folder / f"{predict.NAME}.onnx", folder / predict.READER)
    refused(bloodcell(mine, "--normalise", weights=folder), "reader.onnx is damaged: make it")
    assert not (tmp_path / "o.json").exists()


# Names


def test_files_come_once_in_natural_order(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [Path("mine/img_10.jpg"), Path("mine"), Path("mine/../mine/img_2.jpg"), mine / "img_10.jpg"]
    assert list(predict.find(given)) == [f"img_{i}.jpg" for i in range(11)]
    assert predict.find(given)["img_2.jpg"] == mine / "img_2.jpg"
    ordered = ["7.jpg", "a01.jpg", "a1.jpg", "a1b2.jpg", "a1b10.jpg", "a2.jpg", "a10.jpg", "b.jpg"]
    assert sorted(ordered[3:] + ordered[:3], key=predict.natural) == ordered


def test_one_name_in_two_folders_loses_neither(weights: Path, mine: Path, tmp_path: Path) -> None:
    for i, slide in enumerate(("slide1", "slide2/deep")):
        (tmp_path / slide).mkdir(parents=True)
        shutil.copy(mine / f"img_{5 * i}.jpg", tmp_path / slide / "img_0.jpg")
    shutil.copy(mine / "img_2.jpg", tmp_path / "slide1" / "other.jpg")
    done = bloodcell("slide1", "slide2/deep", "--out", "o.json", weights=weights, folder=tmp_path)
    assert done.returncode == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert list(found) == ["slide1/img_0.jpg", "slide1/other.jpg", "slide2/deep/img_0.jpg"]
    assert list(found.values()) == in_torch(weights, [mine / f"img_{i}.jpg" for i in (0, 2, 5)]).argmax(1).tolist()
    assert found["slide1/img_0.jpg"] != found["slide2/deep/img_0.jpg"]


def test_probabilities_of_huge_logits_are_numbers() -> None:
    found = predict.softmax(np.array([[1e4, 0, 0, 0, 0, 0, 0, -1e4], [0.0] * 8], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0, 0, 0, 0, 0, 0], [1 / 8] * 8])
    assert Prediction("a.jpg", found[0]).label == 0


# What is published.


def test_each_test_image_of_the_course_has_one_published_label():
    labels = json.loads((paths.ROOT / "data" / "prediction_labels.json").read_text())
    with paths.MANIFEST.open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file) if row["part"] == "test"]
    assert list(labels) == sorted(names, key=predict.natural) and len(names) == 1000
    assert set(labels.values()) == set(range(8))


def test_the_published_weights_are_those_of_a_published_run():
    record, _ = predict.load_set(paths.ROOT / "bloodcell_lib" / "weights")
    assert record["experiment"] == f"{plans.CHOSEN}_final"
    run = paths.RESULTS / record["profile"] / record["experiment"] / f"seed{record['seed']}" / "record.json"
    fitted = export.temperatures(paths.RESULTS / record["profile"], plans.measured(record["experiment"]))
    assert fitted.keys() == {"plain", "tta"}
    assert {**json.loads(run.read_text()), "weights": record["weights"], "temperatures": fitted} == record
    assert record["data"]["course"] and record["data"]["train"] == 3200


def test_the_published_reader_finds_out_what_is_not_ours():
    eye, rng = predict.Eye(paths.ROOT / "bloodcell_lib" / "weights"), np.random.default_rng(0)
    cells = [
        synthetic.draw(name, rng) for name in NAMES for _ in range(3)
    ]  # drawn, and read as photographs none the less
    plain = eye.read(cells)
    dark = eye.read([Image.fromarray((np.asarray(one) * 0.85).astype(np.uint8)) for one in cells])
    assert np.allclose((dark - plain)[:, 1:4].mean(0), np.log(0.85), atol=0.06)
    near = eye.read([one.crop((90, 90, 270, 270)) for one in cells])
    assert (near - plain)[:, 0].mean() > 0.3


@pytest.mark.skipif(not os.environ.get("BLOODCELL_DATA"), reason="BLOODCELL_DATA names no folder")
def test_the_published_labels_are_what_the_published_weights_say(tmp_path):
    published = json.loads((paths.ROOT / "data" / "prediction_labels.json").read_text())
    folder, out = Path(os.environ["BLOODCELL_DATA"]) / "test", tmp_path / "labels.json"
    assert sorted(published) == sorted(path.name for path in folder.iterdir())
    some = sorted(published)[::4]
    command = [sys.executable, "-m", "bloodcell_lib.cli", "predict", *(str(folder / name) for name in some)]
    environment = {key: value for key, value in os.environ.items() if key != "BLOODCELL_WEIGHTS"}
    subprocess.run([*command, "--tta", "--out", str(out)], check=True, env=environment)
    found = json.loads(out.read_text())
    assert sorted(found) == some
    # Another processor may round otherwise, and a cell on the border between two classes fall to the other side.
    assert sum(label != published[name] for name, label in found.items()) <= 1
