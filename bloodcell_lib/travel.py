"""Other laboratories, simulated: the photographs of the held-out cells as another site would have taken them.

Unlike `corrupt`, which changes what a network is given, a site's magnification and field change what is photographed:
a smaller magnification shows more of the smear, and a smaller camera less of it. Dyes, light, blur and JPEG then change
what the network would see of that; `reading`, which has to see whole photographs, has them change these. Augmentations
of like kind practise for some of these changes: what they gain here says what practice can give, not what another
laboratory will.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bloodcell_lib import corrupt, plans
from bloodcell_lib.analysis import Subject, logits
from bloodcell_lib.camera import Conditions, photographed
from bloodcell_lib.corrupt import Lot
from bloodcell_lib.data import CellImages
from bloodcell_lib.evaluate import bootstrap_mean, over_seeds
from bloodcell_lib.microscope import SIDE
from bloodcell_lib.robustness import rivals, spread

DEMO_IMAGES = 96
ALONE, TOGETHER = 0.95, 0.9  # shares of the clean accuracy that a network should keep under one change, under all


@dataclass(frozen=True)
class Site:
    """What differs. zoom: lowest and highest magnification, one drawn for each cell, evenly in its logarithm. field:
    share of the photograph's side that the camera sees; its edge is repeated beyond. tint: largest change of each
    colour channel, as a share. stain, jpeg: levels of `corrupt`. blur: sigma as a share of the photograph's side. 0
    leaves them out."""

    title: str
    zoom: tuple[float, float] = (1.0, 1.0)
    field: float = 1.0
    tint: float = 0.0
    stain: float = 0.0
    blur: float = 0.0
    jpeg: float = 0.0


SITES = {
    "half": Site("Half as large", zoom=(0.5, 0.5)),
    "less": Site("Three quarters as large", zoom=(0.75, 0.75)),
    "more": Site("One and a half times as large", zoom=(1.5, 1.5)),
    "twice": Site("Twice as large", zoom=(2.0, 2.0)),
    "thrice": Site("Three times as large", zoom=(3.0, 3.0)),
    "field": Site("A small camera field", field=0.5),
    "tint": Site("Another white balance", tint=0.15),
    "stain": Site("Another strength of stain", stain=0.4),
    "blur": Site("Softer optics", blur=1 / 150),
    "jpeg": Site("Stronger JPEG", jpeg=20),
    "all": Site("All of these", zoom=(0.5, 3.0), field=0.5, tint=0.15, stain=0.4, blur=1 / 150, jpeg=20),
}


def analyse(subject: Subject) -> dict[str, Any]:
    """Accuracy at every site of the experiment's networks, of its rivals' and of other augmentations of it.

    images: how many; sites: their titles; `experiments` holds `judged` of each that is recorded. A demo is bounded to
    `DEMO_IMAGES` images. Raises BloodcellError where the subject has no folder of photographs.
    """
    photographs = subject.photographs(subject.held_out(subject.records[0]))
    if plans.profile(subject.profile).disposable:
        photographs = spread(photographs, DEMO_IMAGES)
    right = hits(subject, photographs)
    return {
        "images": len(photographs),
        "experiment": subject.experiment,
        "sites": {key: site.title for key, site in SITES.items()},
        "goals": {"alone": ALONE, "together": TOGETHER},
        "experiments": {name: judged(own, right[subject.experiment]) for name, own in right.items()},
    }


def titles(result: dict[str, Any]) -> dict[str, str]:
    """What an analysis' sites are called today, by key."""
    return {key: SITES[key].title if key in SITES else recorded for key, recorded in result["sites"].items()}


def beside(experiment: str) -> list[str]:
    """What is set beside an experiment: its rivals, and those of its variants that were shown other pictures."""
    rows = plans.EXPERIMENTS
    others = [name for name in plans.variants(experiment, "part") if rows[name].augment != rows[experiment].augment]
    return [*rivals(experiment), *others]


def hits(subject: Subject, photographs: CellImages) -> dict[str, dict[str, np.ndarray]]:
    """Which photographs each experiment's networks name rightly, bool (seeds, n), as they are and at every site.

    Experiments that are not recorded, or held other images out, are left out.
    """
    networks = {}
    for name in dict.fromkeys((subject.experiment, *beside(subject.experiment))):
        if records := subject.peers(name, ("part",)):
            config = records[0].info["config"]
            networks[name] = config["pixels"], config["crop"], [subject.network(record) for record in records]
    right: dict[str, dict[str, np.ndarray]] = {name: {} for name in networks}
    for key, site in {"clean": Site("As it is"), **SITES}.items():
        visited: dict[tuple[int, int | None], Tensor] = {}  # for all that see a photograph alike
        for name, (pixels, crop, group) in networks.items():
            if (pixels, crop) not in visited:
                visited[pixels, crop] = visit(photographs.images, site, pixels, crop)
            said = [logits(network, visited[pixels, crop]).argmax(1) for network in group]
            right[name][key] = np.stack([(one == photographs.labels).numpy() for one in said])
    return right


def judged(own: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> dict[str, Any]:
    """One experiment's hits, bool (seeds, n) by site, in numbers.

    clean, and sites by key: `evaluate.over_seeds`, at a site with `share`, of the clean accuracy; difference: of the
    clean accuracies, own less first, in points, with a paired bootstrap interval over images.
    """
    clean = over_seeds(own["clean"])
    sites = {key: over_seeds(hit) for key, hit in own.items() if key != "clean"}
    for row in sites.values():
        row["share"] = row["accuracy"] / clean["accuracy"] if clean["accuracy"] else math.nan
    change = 100 * (own["clean"].mean(0) - first["clean"].mean(0))
    return {
        "seeds": len(own["clean"]),
        "clean": clean,
        "sites": sites,
        "difference": dict(zip(("points", "low", "high"), bootstrap_mean(change))),
    }


def visit(photographs: Tensor, site: Site, pixels: int, crop: int | None, seed: int = 0) -> Tensor:
    """Whole photographs, uint8 (n, 3, S, S), as a network sees them from a site: uint8 (n, 3, pixels, pixels).

    crop: side of the central square that it sees, in pixels of a photograph, None for the whole. The same seed gives
    the same pictures.
    """
    lot, done = Lot(seed), []
    seen = (crop or SIDE) / SIDE  # of the photograph's side
    low, high = (math.log(bound) for bound in site.zoom)
    for part in photographs.split(corrupt.BATCH):
        one = torch.ones(len(part), device=part.device)
        how = Conditions(
            zoom=torch.exp(low + (high - low) * lot.uniform(part)),
            field=site.field * one,
            dyes=_factors(part, site.stain, 2, lot.sign),
            light=_factors(part, site.tint, 3, lambda x: 2 * lot.uniform(x) - 1),
            blur=site.blur * one,
            quality=site.jpeg * one,
        )
        done.append((photographed(part, how, pixels, seen) * 255).round().byte())
    return torch.cat(done)


def _factors(x: Tensor, level: float, times: int, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """For each of x so many, (B, times): 1 without a level, and nothing drawn, else 1 + level times a draw."""
    if not level:
        return torch.ones(len(x), times, device=x.device)
    return torch.stack([1 + level * draw(x) for _ in range(times)], 1)
