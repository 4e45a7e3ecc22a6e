"""A training's last whole epoch on disk, for a run of the same configuration to go on from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bloodcell_lib import paths
from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.recipe import TrainConfig

Epochs = list[dict[str, float]]  # the history: a row an epoch


def save(
    path: Path, identity: str, parts: dict[str, Any], generator: torch.Generator, history: Epochs, seconds: float
) -> None:
    """Writes the states of `parts` and of every random generator, whole or not at all.

    identity: JSON of what a run must share to go on from here. generator: the training's own, on its device. seconds:
    spent so far. Raises BloodcellError where the disk has no room.
    """
    random = {"own": generator.get_state(), "cpu": torch.get_rng_state()}
    if generator.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(generator.device)
    state = {name: part.state_dict() for name, part in parts.items()}
    whole = {"identity": identity, "history": history, "seconds": seconds, "state": state, "random": random}
    with paths.write_whole(path) as temporary:
        try:
            torch.save(whole, temporary)
        except RuntimeError as error:  # how torch's writer tells it
            raise OSError("the disk may be full") from error


def restore(path: Path, identity: str, parts: dict[str, Any], generator: torch.Generator) -> tuple[Epochs, float]:
    """Puts `parts` and the random generators where they were; gives the history, and the seconds spent.

    Raises OtherRun for a checkpoint of another identity, BloodcellError for one that is damaged.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if changed := difference(saved["identity"], identity):
            raise OtherRun(
                f"{path} belongs to another configuration ({changed}): "
                "train with that one, or start afresh with --no-resume."
            )
        for name, part in parts.items():
            part.load_state_dict(saved["state"][name])
        generator.set_state(saved["random"]["own"])
        torch.set_rng_state(saved["random"]["cpu"])
        if generator.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random"]["cuda"], generator.device)
        return saved["history"], saved["seconds"]
    except BloodcellError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file or one of other networks
        raise BloodcellError(f"{path} is not a whole checkpoint: remove it and start again.") from error


def difference(before: str, now: str) -> str:
    """The first setting in which two identities differ, in words; "" where they agree.

    A field that is newer than the checkpoint counts with its default, which trains as before there was one.
    """
    a, b = json.loads(before), json.loads(now)
    defaults = json.loads(json.dumps([asdict(part) for part in (ModelConfig(), TrainConfig(), AugmentConfig())]))
    for default, old, new in zip([*defaults, {}], a, b):
        old = default | old
        for key in old | new:
            if old.get(key) != new.get(key):
                return f"{key} {old.get(key)}, not {new.get(key)}"
    return "" if len(a) == len(b) else "format an older one, not this one"
