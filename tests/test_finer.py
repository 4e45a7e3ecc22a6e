"""Finer types as outputs: what their probabilities add up to, what may be learned from which name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bloodcell_lib import analysis, experiments, finer, gallery, models, views
from bloodcell_lib.augment import NONE
from bloodcell_lib.cells import FINER_TYPES, finer_type
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.recipe import TrainConfig
from bloodcell_lib.tasks import Task
from bloodcell_lib.trainer import Trainer


@pytest.fixture(scope="module")
def cells():
    """Drawn cells of 32 pixels; the immature granulocytes bear the names of their finer types, and one of none."""
    drawn = gallery.synthetic_cells(per_class=5, pixels=32)
    names = list(drawn.names)
    for i, prefix in zip(np.flatnonzero(drawn.labels.numpy() == 3), ("MY", "MMY", "PMY", "IG", "odd name")):
        names[i] = f"{prefix}_{i}.jpg"
    return replace(drawn, names=tuple(names), sha256=tuple(map(str, range(len(names)))))


def test_eleven_types_are_told_apart_and_vague_names_tell_none():
    assert len(FINER_TYPES) == 11 and len(set(FINER_TYPES)) == 11
    assert [kind for label, kind in FINER_TYPES if label == 3] == ["myelocyte", "metamyelocyte", "promyelocyte"]
    assert [kind for label, kind in FINER_TYPES if label == 6] == ["segmented neutrophil", "band neutrophil"]
    assert finer_type("BNE_12.jpg", 6) == "band neutrophil" and finer_type("BA_1.jpg", 0) == "basophil"
    assert [finer_type(name, 3) for name in ("IG_1.jpg", "cell 5.png", "BNE_1.jpg", "")] == [""] * 4


def test_an_image_may_be_what_its_name_says_or_any_type_of_its_class():
    may = finer.allowed(["MMY_1.jpg", "IG_2.jpg", "überall.jpg", "LY_3.jpg"], [3, 3, 6, 4])
    said = [{kind for (_, kind), yes in zip(FINER_TYPES, row) if yes} for row in may.tolist()]
    assert said[0] == {"metamyelocyte"} and said[1] == {"myelocyte", "metamyelocyte", "promyelocyte"}
    assert said[2] == {"segmented neutrophil", "band neutrophil"} and said[3] == {"lymphocyte"}


def test_probabilities_add_up():
    scores = 3 * torch.randn(20, finer.OUTPUTS, generator=torch.Generator().manual_seed(0))
    together, fine = finer.AddUp()(scores).softmax(1), scores.softmax(1)
    for label in range(8):
        members = [i for i, (of, _) in enumerate(FINER_TYPES) if of == label]
        assert torch.allclose(together[:, label], fine[:, members].sum(1), atol=1e-6)
    # Three types that share a class may win together where a single other type is the most probable.
    scores = torch.full((1, finer.OUTPUTS), -9.0)
    scores[0, [i for i, (of, _) in enumerate(FINER_TYPES) if of == 3]] = 1.0
    scores[0, FINER_TYPES.index((4, "lymphocyte"))] = 1.5
    assert finer.AddUp()(scores).argmax(1).item() == 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_where_the_type_is_told(smoothing):
    scores = torch.randn(16, finer.OUTPUTS, requires_grad=True, generator=torch.Generator().manual_seed(1))
    target = torch.arange(16) % finer.OUTPUTS
    ours = finer.loss(scores, F.one_hot(target, finer.OUTPUTS).bool(), smoothing)
    assert torch.allclose(ours, F.cross_entropy(scores, target, label_smoothing=smoothing), atol=1e-6)
    vague = finer.loss(scores, finer.allowed(["x"] * 16, [6] * 16))
    assert torch.allclose(vague, -finer.AddUp()(scores).log_softmax(1)[:, 6].mean(), atol=1e-6)
    vague.backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_gives_eight_logits_and_learns_eleven(name):
    network = models.build(ModelConfig(name, finer=True)).eval()
    x = torch.rand(2, 3, 32, 32)
    assert network(x).shape == (2, 8) and network(x, added=False).shape == (2, finer.OUTPUTS)
    plain = models.build(ModelConfig(name))
    inside = [m for m in plain.modules() if isinstance(m, torch.nn.Linear)][-1].in_features
    assert models.parameters(network) - models.parameters(plain) == 3 * (inside + 1)
    assert not any("add_up" in key for key in network.state_dict())


def test_training_on_finer_types_learns_and_averages(cells):
    model = ModelConfig("efficientnet_lite", dropout=0.0, stochastic_depth=0.0, finer=True)
    train = TrainConfig(epochs=25, batch_size=8, average=0.5)
    run = Trainer(model, train, NONE, device="cpu", progress=False).fit(cells, cells)
    assert run.history[-1]["train_loss"] < 0.7 * run.history[0]["train_loss"]
    assert run.probabilities.shape == (40, 8) and torch.allclose(run.probabilities.sum(1), torch.ones(40))
    assert run.history[-1]["train_accuracy"] > 0.5


def test_the_row_is_recorded_in_eight_classes_and_read_back(cells, tmp_path, small):
    task = Task("finer_labels", 0, small(32), tmp_path, (("epochs", 1),), device="cpu", progress=False)
    record = experiments.run(task, cells)
    assert record.info["config"]["model"]["finer"] and record.validation().probabilities.shape == (8, 8)
    held_out = views.divide(cells, "split")[1]
    found = analysis.logits(analysis.load_network(record).eval(), held_out.images).softmax(1).numpy()
    assert np.allclose(found, record.validation().probabilities, atol=2e-3)


def test_a_record_from_before_the_setting_existed_is_still_the_same_run(cells, tmp_path, small):
    task = Task("efficientnet_lite", 0, small(32), tmp_path, (("epochs", 1),), device="cpu", progress=False)
    experiments.run(task, cells)
    path = task.folder / "record.json"
    info = json.loads(path.read_text())
    assert info["config"]["model"].pop("finer") is False
    path.write_text(json.dumps(info))
    before = path.stat().st_mtime_ns
    assert experiments.run(replace(task, device="no such device"), cells).seed == 0
    assert path.stat().st_mtime_ns == before


def test_a_checkpoint_from_before_the_setting_existed_is_taken_up(cells, tmp_path):
    path = tmp_path / "run.pt"
    recipe = (ModelConfig("efficientnet_lite"), TrainConfig(epochs=1), NONE, "cpu", path)
    first = Trainer(*recipe, progress=False).fit(cells)
    saved = torch.load(path, weights_only=True)
    parts = json.loads(saved["identity"])
    del parts[0]["finer"]
    torch.save({**saved, "identity": json.dumps(parts)}, path)
    assert Trainer(*recipe, progress=False).fit(cells).history == first.history  # times and all: nothing trained again
