"""What it gains at other sites, simulated, to read from each photograph how it was taken, and to undo it.

The reader learns from the training images of the same split, and everything from the whole photograph onwards is what
`predict` does, file by file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bloodcell_lib import microscope, plans, reader, travel, views
from bloodcell_lib.analysis import Subject, logits
from bloodcell_lib.data import CellImages
from bloodcell_lib.microscope import READ, SIDE
from bloodcell_lib.reader import Reader
from bloodcell_lib.robustness import spread
from bloodcell_lib.travel import SITES, Site

DEMO_IMAGES = 32
PART = 128  # photographs that are held as pictures at once
KINDS = ("plain", "undone")


def analyse(subject: Subject) -> dict[str, Any]:
    """Accuracy of the experiment's networks at every site without and with it, and how exact the readings are.

    images: how many; sites: their titles; `experiments` holds `travel.judged` of both kinds, whose difference is of
    unchanged pictures. exact: `exactness`. left: share of unchanged photographs of which nothing is changed. A demo is
    bounded to `DEMO_IMAGES` of either. Raises BloodcellError where the subject has no folder of photographs, or its
    run held none out.
    """
    config = subject.records[0].info["config"]
    part = config["part"]
    sides = views.divide(subject.cells, part)[0], subject.held_out(subject.records[0])
    if plans.profile(subject.profile).disposable:
        sides = tuple(spread(cells, DEMO_IMAGES) for cells in sides)
    train, held_out = (subject.photographs(cells, SIDE) for cells in sides)
    eye = reader.Lesson(subject.profile, part, train, subject.device, subject.runs).taught()
    networks = [subject.network(record) for record in subject.peers(subject.experiment)]
    right: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    for key, site in {"clean": Site("As it is"), **SITES}.items():
        shown, readings = seen(held_out, site, eye, config["pixels"], config["crop"])
        if key == "clean":
            left = float((readings == 0).all(1).mean())
        for kind in KINDS:
            said = [logits(network, shown[kind]).argmax(1) for network in networks]
            right[kind][key] = np.stack([(one == held_out.labels).numpy() for one in said])
    return {
        "images": len(held_out),
        "experiment": subject.experiment,
        "sites": {key: site.title for key, site in SITES.items()},
        "goals": {"alone": travel.ALONE, "together": travel.TOGETHER},
        "experiments": {kind: travel.judged(right[kind], right["plain"]) for kind in KINDS},
        "exact": exactness(eye, held_out),
        "left": left,
        "learnt": {"images": len(train), "parameters": sum(p.numel() for p in eye.parameters())},
    }


def seen(
    photographs: CellImages, site: Site, eye: Reader, pixels: int, crop: int | None
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """What a network sees of a site's photographs, uint8 (n, 3, pixels, pixels), plain and with what was read undone;
    and what was read, (n, 7)."""
    shown: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    readings = []
    taken = travel.visit(photographs.images, site, SIDE, None)
    for part in taken.split(PART):
        pictures, found = reader.pictured(eye, part)
        readings.append(found)
        for kind, undo in zip(KINDS, (np.zeros_like(found), found)):
            shown[kind].append(microscope.undone(pictures, undo, pixels, crop))
    together = {kind: torch.from_numpy(np.concatenate(shown[kind])).permute(0, 3, 1, 2) for kind in KINDS}
    return together, np.concatenate(readings)


@torch.no_grad()
def exactness(eye: Reader, held_out: CellImages, seed: int = 0) -> dict[str, dict[str, float]]:
    """How far readings of photographs are off that are changed as in learning: for each of READ the median and the 90th
    percentile of the factor less 1 (0.1: a tenth too large, or as much too small), of the blur in its own unit."""
    generator = torch.Generator().manual_seed(seed)
    off = []
    for part in held_out.images.split(PART):
        x, truth = reader.elsewhere(part.to(eye.spread.device), generator)
        off.append((eye(x) - truth).abs().cpu())
    factors = torch.cat(off)
    factors[:, :-1] = factors[:, :-1].exp() - 1
    median, most = factors.quantile(torch.tensor([0.5, 0.9]), dim=0).tolist()
    return {name: {"median": m, "most": q} for name, m, q in zip(READ, median, most)}
