"""Another site's images, of other sizes and colours, through the command that users run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import small_runs
import torch
from PIL import Image

from bloodcell_lib import (
    analysis,
    cli,
    data,
    evaluate,
    export,
    external,
    paths,
    plans,
    predict,
    reader,
    shelf,
    synthetic,
)
from bloodcell_lib.cells import NAMES
from bloodcell_lib.errors import BloodcellError


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    runs = [("main", 0), ("main", 1), ("final", 0)]
    with small_runs.trained(tmp_path_factory.mktemp("external"), runs) as subject:
        yield subject


@pytest.fixture
def site(tmp_path):
    """Three classes at another site: other sizes and aspects, a blue light, three kinds of file."""
    folder = tmp_path / "Sítio B"
    rng = np.random.default_rng(0)
    sizes = [(300, 200), (640, 480), (97, 181), (255, 255)]
    for name in ("neutrophil", "lymphocyte", "platelet"):
        (folder / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            image = np.asarray(synthetic.draw(name, rng).resize(size)) * np.array([0.7, 0.8, 1.0])
            suffix = (".jpg", ".png", ".tif")[i % 3]
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"cell {i}{suffix}")
    return folder


def command(*arguments) -> None:
    cli.app(["evaluate", *map(str, arguments)], standalone_mode=False)


def test_what_is_read_of_a_site_is_undone_where_that_is_asked_for(subject, site, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    eye = reader.Reader().eval()
    with torch.no_grad():  # reads a blue light whatever it sees: 0.8 of ours in red
        eye.head.weight.zero_()
        eye.head.bias.copy_(torch.tensor([0, np.log(0.8), 0, 0, 0, 0, 0]) / eye.spread)
    export.export_reader(eye, {}, tmp_path)
    monkeypatch.setattr(paths, "WEIGHTS", tmp_path)
    command("--external", site, "--normalise")
    out = capsys.readouterr().out
    assert "normalised" in out.splitlines()[0]
    assert analysis.load_analyses(subject.runs / "demo")["external_Sítio_B_normalised"]["result"]["normalised"] is True
    plain, undone = (external.load(site, 32, 200 / 360, eye=one).images for one in (None, predict.Eye()))
    inner = plain[:, 0] < 150  # what is not cut off at white
    assert undone[:, 0][inner].float().mean() == pytest.approx(plain[:, 0][inner].float().mean().item() / 0.8, rel=0.02)
    assert (undone[:, 1:].int() - plain[:, 1:].int()).abs().max() <= 1


def test_a_site_is_scored_and_recorded(subject, site, capsys):
    command("--external", site)
    out = capsys.readouterr().out
    found = analysis.load_analyses(subject.runs / "demo")["external_Sítio_B"]
    result = found["result"]
    assert found["data"] == {"source": "Sítio B", "fingerprint": found["data"]["fingerprint"], "images": 12}
    assert result["seeds"] == 2 and result["images"] == 12 and result["crop"] == pytest.approx(200 / 360)
    assert list(result["classes"]) == ["lymphocyte", "neutrophil", "platelet"]
    # By hand, file by file.
    said, labels = [], [NAMES.index(name) for name in result["classes"] for _ in range(4)]
    for record in subject.records:
        network = subject.network(record)
        said.append([])
        for name in result["classes"]:
            for path in sorted((site / name).iterdir()):
                image = Image.open(path).convert("RGB")
                side = round(200 / 360 * min(image.size))
                left, top = (image.width - side) // 2, (image.height - side) // 2
                small = image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
                x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
                said[-1].append(int(analysis.logits(network, x).argmax()))
    assert result["confusion"] == sum(evaluate.confusion(labels, one) for one in said).tolist()
    right = np.array(said) == labels
    assert result["accuracy"] == evaluate.over_seeds(right)
    for k, name in enumerate(result["classes"]):
        one = result["classes"][name]
        assert one["accuracy"]["by_seed"] == right[:, 4 * k : 4 * k + 4].mean(1).tolist()
        assert one["images"] == 4
    assert result["among"]["accuracy"] >= result["accuracy"]["accuracy"]
    assert np.sum(result["confusion"]) == 24
    assert f"{result['accuracy']['accuracy']:.1%}" in out and "external_Sítio_B.json" in out
    assert "not there: basophil, eosinophil" in out


def test_the_fall_is_from_the_same_classes_validation(subject, site):
    result, _ = external.evaluate(subject.records, site)
    runs = [record.validation() for record in subject.records]
    there = np.isin(runs[0].labels, [4, 6, 7])
    before = np.mean([(run.predicted == run.labels)[there].mean() for run in runs])
    assert result["validation"]["accuracy"] == pytest.approx(before)
    fall = result["fall"]
    assert fall["points"] == pytest.approx(100 * (result["accuracy"]["accuracy"] - before))
    assert fall["low"] <= fall["points"] <= fall["high"]


def test_networks_trained_on_all_images_have_nothing_to_fall_from(subject, site, capsys):
    command("--external", site, "--experiment", "final")
    result = analysis.load_analyses(subject.runs / "demo")["external_Sítio_B_final"]["result"]
    assert result["validation"] is None and result["fall"] is None and result["seeds"] == 1
    assert "none" in capsys.readouterr().out


def test_folders_are_named_anew_or_left_out(site):
    (site / "platelet").rename(site / "PLT")
    shutil.copytree(site / "lymphocyte", site / "atypical")
    (site / "smudge").mkdir()
    (site / ".hidden").mkdir()
    (site / "readme.txt").write_text("x")
    mapping = external.parse_map(["PLT=platelet", "atypical=lymphocyte", "smudge=-"])
    cells = external.load(site, 32, 1.0, mapping)
    assert np.bincount(cells.labels.numpy(), minlength=8).tolist() == [0, 0, 0, 0, 8, 0, 4, 4]
    assert len(set(cells.names)) == 16 and "atypical/cell 0.jpg" in cells.names
    assert cells.images.shape == (16, 3, 32, 32) and cells.images.dtype == torch.uint8


def test_more_or_less_of_an_image_is_seen(tmp_path):
    (tmp_path / "platelet").mkdir()
    rings = np.zeros((100, 160, 3), np.uint8)
    rings[25:75, 55:105] = 255  # the central half of the height
    Image.fromarray(rings).save(tmp_path / "platelet" / "a.png")
    half, whole = (external.load(tmp_path, 20, share).images for share in (0.5, 1.0))
    assert half.min() == 255 and whole.float().mean() / 255 == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.rename(f.parent / "gone"), r"No folder .*Sítio B: give one that holds"),
        (lambda f: (f / "neutrophil").rename(f / "Neutrophils"), r"--map Neutrophils=neutrophil, or leave it out"),
        (lambda f: (f / "platelet").rename(f / "xyz"), r"xyz is not one of the eight classes .*--map xyz=CLASS"),
        (lambda f: [p.unlink() for p in (f / "platelet").iterdir()], r"No images in .*platelet: put some there"),
        (lambda f: [shutil.rmtree(p) for p in f.iterdir()], r"No class folder in .*Sítio B"),
        (lambda f: (f / "platelet" / "b.jpg").write_bytes(b"\xff\xd8no"), r"1 of 13 files .* b.jpg .*--skip-bad"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_told(subject, site, change, said):
    before = sorted((subject.runs / "demo").rglob("*"))
    change(site)
    with pytest.raises(BloodcellError, match=said):
        command("--external", site)
    assert sorted((subject.runs / "demo").rglob("*")) == before


def test_bad_files_may_be_left_out(subject, site):
    (site / "platelet" / "b.jpg").write_bytes(b"\xff\xd8no")
    (site / "platelet" / "c.jpg").symlink_to(site / "nowhere")
    with pytest.raises(BloodcellError, match=r"2 of 14 files .* a link to none"):
        command("--external", site)
    command("--external", site, "--skip-bad")
    assert analysis.load_analyses(subject.runs / "demo")["external_Sítio_B"]["result"]["images"] == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--map", "PLT"], "--map PLT is not understood: write FOLDER=CLASS"),
        (["--map", "platelet=thrombocyte"], "names no class: choose one of basophil"),
        (["--map", "PLT=platelet"], "No folder .*PLT, which --map names"),
        (["--crop", "0"], "--crop 0 is no share"),
        (["--crop", "1.5"], "--crop 1.5 is no share"),
        (["--crop", "nan"], "--crop nan is no share"),
        (["--device", "abacus"], "Device abacus cannot be used"),
        (["--experiment", "no_se"], "No record of no_se"),
        (["--published"], "No record of main|no weights"),
    ],
)
def test_wrong_settings_are_told(subject, site, arguments, said):
    with pytest.raises(BloodcellError, match=said):
        command("--external", site, *arguments)


def test_settings_for_another_site_need_one(subject):
    with pytest.raises(BloodcellError, match="give these with --external"):
        command("--crop", "0.5")


def test_images_that_trained_the_networks_are_refused(subject, site, monkeypatch):
    digest = data.sha256_of(site / "platelet" / "cell 0.jpg")
    monkeypatch.setattr(data, "manifest", lambda: {"train": {"x.jpg": (7, digest)}, "test": {}})
    with pytest.raises(BloodcellError, match=r"1 of 12 images in .* are the course's"):
        command("--external", site)


def test_two_sites_of_one_name_are_both_kept(subject, site, tmp_path):
    _, first = external.evaluate(subject.records, site)
    shutil.copytree(site, other := tmp_path / "elsewhere" / site.name)
    assert external.evaluate(subject.records, other)[1] == first, "the same images"
    Image.new("RGB", (40, 40)).save(other / "platelet" / "one more.png")
    _, second = external.evaluate(subject.records, other)
    kept = analysis.load_analyses(subject.runs / "demo")
    counts = [kept[path.stem]["data"]["images"] for path in (first, second)]
    assert first != second and counts[1] == counts[0] + 1
    second.unlink()


def test_what_is_recorded_can_be_published(subject, site, monkeypatch, tmp_path):
    external.evaluate(subject.records, site)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    assert any(path.name == "external_Sítio_B.json" for path in shelf.publish("demo"))
    kept = json.loads((tmp_path / "results/demo/analyses/external_Sítio_B.json").read_text())
    assert kept["experiment"] == "main" and kept["profile"] == plans.profile("demo").name
