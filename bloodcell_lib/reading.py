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
from bloodcell_lib.records import Record
from bloodcell_lib.robustness import spread
from bloodcell_lib.travel import SITES, Site

DEMO_IMAGES = 32
PART = 128  # photographs that are held as pictures at once
KINDS = ("plain", "undone")
UNCHANGED = Site("As it is")


def analyse(subject: Subject) -> dict[str, Any]:
    """Accuracy of the experiment's networks at every site without and with it, and how exact the readings are.

    images: how many; sites: their titles; `experiments` holds `travel.judged` of both kinds, whose difference is of
    unchanged pictures. exact: `exactness`. folds: `everywhere`. A demo is bounded to `DEMO_IMAGES` of either. Raises
    BloodcellError where the subject has no folder of photographs, or its run held none out.
    """
    eye, train, held_out = _taught(subject, subject.records[0])
    right = hits(subject, subject.peers(subject.experiment), eye, held_out, SITES)
    return {
        "images": len(held_out),
        "experiment": subject.experiment,
        "sites": {key: site.title for key, site in SITES.items()},
        "goals": {"alone": travel.ALONE, "together": travel.TOGETHER},
        "experiments": _judged(right),
        "exact": exactness(eye, held_out),
        "learnt": {"images": len(train), "parameters": sum(p.numel() for p in eye.parameters())},
        "folds": everywhere(subject),
    }


def everywhere(subject: Subject) -> dict[str, Any] | None:
    """The same of all images, each by the reader and the network of the fold that held it out, where all is changed at
    once: images, experiments. None before the five folds are recorded."""
    if len(subject.folds()) < 2:
        return None
    found = []
    for record, _ in subject.folds():
        eye, _, held_out = _taught(subject, record)
        found.append(hits(subject, [record], eye, held_out, {"all": SITES["all"]}))
    right = {
        kind: {key: np.concatenate([own[kind][key] for own in found], 1) for key in found[0][kind]} for kind in KINDS
    }
    return {"images": right["plain"]["clean"].shape[1], "experiments": _judged(right)}


def _taught(subject: Subject, record: Record) -> tuple[Reader, CellImages, CellImages]:
    """The reader of the images that a run trained on, these and those that it held out, as whole photographs."""
    part = record.info["config"]["part"]
    sides = views.divide(subject.cells, part)[0], subject.held_out(record)
    if plans.profile(subject.profile).disposable:
        sides = tuple(spread(cells, DEMO_IMAGES) for cells in sides)
    train, held_out = (subject.photographs(cells, SIDE) for cells in sides)
    return reader.Lesson(subject.profile, part, train, subject.device, subject.runs).taught(), train, held_out


def hits(
    subject: Subject, records: list[Record], eye: Reader, held_out: CellImages, sites: dict[str, Site]
) -> dict[str, dict[str, np.ndarray]]:
    """Which of these photographs the runs' networks name rightly, bool (runs, n), by kind, unchanged and by site."""
    networks, config = [subject.network(record) for record in records], records[0].info["config"]
    right: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    for key, site in {"clean": UNCHANGED, **sites}.items():
        shown = seen(held_out, site, eye, config["pixels"], config["crop"])
        for kind in KINDS:
            said = [logits(network, shown[kind]).argmax(1) for network in networks]
            right[kind][key] = np.stack([(one == held_out.labels).numpy() for one in said])
    return right


def _judged(right: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    return {kind: travel.judged(own, right["plain"]) for kind, own in right.items()}


def seen(photographs: CellImages, site: Site, eye: Reader, pixels: int, crop: int | None) -> dict[str, torch.Tensor]:
    """What a network sees of a site's photographs, uint8 (n, 3, pixels, pixels), plain and with what is read undone."""
    shown: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    taken = travel.visit(photographs.images, site, SIDE, None)
    for part in taken.split(PART):
        pictures, found = reader.pictured(eye, part)
        for kind, undo in zip(KINDS, (np.zeros_like(found), found)):
            shown[kind].append(microscope.undone(pictures, undo, pixels, crop))
    return {kind: torch.from_numpy(np.concatenate(shown[kind])).permute(0, 3, 1, 2) for kind in KINDS}


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
