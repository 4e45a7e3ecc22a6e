"""A run of the real training, a very short one, with weights that tell its images apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from bloodcell_lib import data, drawn_folder, experiments, export, models, paths, views
from bloodcell_lib.models import Classifier, ModelConfig
from bloodcell_lib.tasks import Task


def publish(home: Path) -> None:
    """Writes to `home` drawn `cells`, `runs` with what `bloodcell train final --profile cpu` leaves, and `weights`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(paths, "CACHE", home / "cache")
        run = make(home)
    export.export(run, home / "weights")


def make(home: Path) -> Path:
    folder = drawn_folder.write(home / "cells", per_class=8, test=8, workers=1)
    (folder / "synthetic.json").unlink()
    cells = replace(views.load_images("cpu", folder), source="course images")  # those of drawn cells are refused
    task = Task("final", 0, "cpu", home / "runs", changes=(("epochs", 1), ("batch_size", 16)), progress=False)
    run = experiments.run(task, cells).folder
    run = run.parent.rename(run.parent.with_name("final")) / "seed0"
    model = network_of(run)
    solve_head(model, cells)
    (run / "weights.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
    return run


def network_of(run: Path) -> Classifier:
    """The network as it was trained: float32, with its batch norm."""
    model = models.build(ModelConfig())
    model.load_state_dict(safetensors.torch.load((run / "weights.safetensors").read_bytes()))
    return model.eval()


@torch.no_grad()
def solve_head(model: Classifier, cells: data.CellImages) -> None:
    """Gives the last layer the least-squares solution for these labels: one epoch alone tells nothing apart."""
    seen = model.net.features(model.standardise(cells.images / 255)).mean((2, 3))
    centre = seen.mean(0)
    solution = torch.linalg.pinv(seen - centre, rtol=1e-2) @ (10 * F.one_hot(cells.labels, 8).float())
    model.net.head.weight.copy_(solution.T)
    model.net.head.bias.copy_(-centre @ solution)
