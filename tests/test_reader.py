"""A reader that really learns, from drawn cells, and the file it is kept in."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bloodcell_lib import camera, cli, drawn_folder, paths, reader, synthetic
from bloodcell_lib import predict as labels
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.microscope import LOOK, READ
from bloodcell_lib.reader import Lesson


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    rng = np.random.default_rng(0)
    names = ("neutrophil", "lymphocyte", "platelet", "eosinophil")
    drawn = [synthetic.draw(names[i % 4], rng).resize((192, 192)) for i in range(96)]
    return torch.from_numpy(np.stack([np.asarray(one) for one in drawn])).permute(0, 3, 1, 2).contiguous()


def looks_of(photographs: torch.Tensor) -> np.ndarray:
    return reader.shrunk(photographs, LOOK).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def learnt(photographs):
    return reader.learn(photographs[:80], epochs=14)


def test_it_learns_to_read_what_was_done(photographs, learnt):
    seen, truth = reader.elsewhere(photographs[80:].repeat(8, 1, 1, 1), torch.Generator().manual_seed(1))
    with torch.no_grad():
        off = (learnt(seen) - truth).abs().mean(0)
    guess = (truth - truth.median(0).values).abs().mean(0)  # the best that one can say without a look
    for name, own, blind in zip(READ[:4], off, guess):  # the dyes take longer
        assert own < blind, name
    assert off[0] < 0.75 * guess[0] and off[1:4].mean() < 0.75 * guess[1:4].mean()


def test_what_is_drawn_is_what_is_told(photographs):
    seen, truth = reader.elsewhere(photographs.repeat(2, 1, 1, 1), torch.Generator().manual_seed(0))
    assert seen.shape == (192, 3, LOOK, LOOK) and seen.min() >= 0 and seen.max() <= 1
    how = camera.drawn(192, torch.Generator().manual_seed(0))
    assert torch.equal(truth, torch.column_stack([how.zoom.log(), how.light.log(), how.dyes.log(), 100 * how.blur]))
    assert truth[:, 6].min() == 0 and 0.7 < truth[:, 6].max() <= 0.8
    step = seen.diff(dim=3).abs().mean((1, 2, 3))
    alike = truth[:, 0].abs() < 0.4  # of about the same magnification
    assert step[alike & (truth[:, 6] > 0.5)].mean() < step[alike & (truth[:, 6] < 0.2)].mean(), "a blur is smooth"
    brighter = truth[:, 1:4].mean(1) > 0.05
    darker = truth[:, 1:4].mean(1) < -0.05
    assert seen[brighter].mean() > seen[darker].mean()


def test_a_photograph_that_is_left_alone_is_as_sharp_as_when_it_is_read(monkeypatch):
    """Whatever else is in the batch; else a blur, and not its size, would tell it from an enlarged one."""
    for what in ("TINT", "STAIN", "BLUR"):
        monkeypatch.setattr(camera, what, 0.0)
    rng = np.random.default_rng(0)
    names = ("neutrophil", "lymphocyte", "platelet", "eosinophil")
    drawn = np.stack([np.asarray(synthetic.draw(names[i % 4], rng).resize((360, 360))) for i in range(16)])
    grain = rng.normal(0, 8, drawn.shape)  # what a resampling blurs first
    photographs = torch.from_numpy((drawn + grain).clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2).repeat(6, 1, 1, 1)
    seen, truth = reader.elsewhere(photographs, torch.Generator().manual_seed(0))
    plain = reader.shrunk(photographs, LOOK) / 255
    sharper = seen.diff(dim=3).abs().mean((1, 2, 3)) / plain.diff(dim=3).abs().mean((1, 2, 3))
    alone, enlarged = truth[:, 0] == 0, (truth[:, 0] > 0) & (truth[:, 0] < 0.3)
    assert alone.sum() >= 10 and enlarged.sum() >= 5
    # The upper ends: a smaller field leaves less to see.
    alone, enlarged = (sharper[some].quantile(0.9).item() for some in (alone, enlarged))
    assert 0.85 < alone < 1.05 and enlarged < 1.03 * alone


def test_the_published_reader_is_of_this_version():
    """What `travel` is told to gain is gained by `predict --normalise`."""
    kept = labels.Eye().session.get_modelmeta().custom_metadata_map
    assert kept["version"] == reader.VERSION and kept["part"] == "all"


def test_ours_are_read_as_ours(photographs, learnt):
    ours = reader.read(learnt, looks_of(photographs[:80]))
    assert (ours == 0).mean(0).min() > 0.9 and (learnt.steady > 0).all()
    assert (np.abs(ours[ours != 0]) > learnt.steady.min().item()).all()
    with torch.no_grad():
        raw = copy.deepcopy(learnt).train()(reader.shrunk(photographs[:80], LOOK) / 255)
    assert not (raw == 0).any()


def test_looks_are_read_one_as_many(photographs, learnt):
    looks = looks_of(photographs[:5])
    together = reader.read(learnt, looks)
    assert together.shape == (5, len(READ)) and together.dtype == np.float32
    alone = [reader.read(learnt, one[None]) for one in looks]
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)


def test_the_same_seed_is_the_same_reader(photographs):
    first, second, other = (reader.learn(photographs[:32], 1, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_it_is_kept_and_made_again_for_other_images(photographs, tmp_path, monkeypatch):
    labels = torch.arange(40) % 8
    cells = CellImages(
        photographs[:40], labels, tuple(map(str, range(40))), tuple(f"{i:064x}" for i in range(40)), "drawn"
    )
    lesson = Lesson("demo", "split", cells, runs=tmp_path)
    kept = lesson.taught()
    assert lesson.file == tmp_path / "demo" / "readers" / "split.safetensors"
    assert reader.about(lesson.file).items() >= {"part": "split", "images": cells.fingerprint, "epochs": "8"}.items()
    monkeypatch.setattr(reader, "learn", lambda *_, **__: pytest.fail("it was there"))
    again = lesson.taught()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in kept.state_dict().items())
    monkeypatch.undo()
    fewer = replace(lesson, photographs=cells.subset(range(24)))
    fewer.taught()
    assert reader.about(lesson.file)["images"] == fewer.photographs.fingerprint

    assert Lesson("cpu", "all", cells).epochs == 30  # the best recipe's

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(reader, "learn", lambda *_, **__: pytest.fail("what cannot be kept is told before"))
    with pytest.raises(BloodcellError, match="Cannot write"):
        replace(lesson, runs=tmp_path / "file").taught()
    monkeypatch.undo()

    lesson.file.write_bytes(b"no weights")
    with pytest.raises(BloodcellError, match="is damaged: remove it"):
        lesson.taught()


def test_the_command_teaches_and_publishes_none_of_drawn_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "WEIGHTS", tmp_path / "weights")
    folder = str(drawn_folder.write(tmp_path / "images", per_class=5, test=2))

    def command(*arguments: str) -> None:
        cli.app(["reader", "--data", folder, "--device", "cpu", *arguments], standalone_mode=False)

    command()
    file = tmp_path / "runs" / "demo" / "readers" / "all.safetensors"
    assert capsys.readouterr().out.strip() == str(file) and reader.about(file)["part"] == "all"
    with pytest.raises(BloodcellError, match="The demo gives no results"):
        command("--publish")
    with pytest.raises(BloodcellError, match="are drawn: publish a reader of photographs"):
        command("--publish", "--profile", "cpu")
    assert not (tmp_path / "weights").exists() and not (tmp_path / "runs" / "cpu").exists()
