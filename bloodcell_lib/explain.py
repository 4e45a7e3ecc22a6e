"""Does the network look at the cell or at the background? Grad-CAM held against the cell's mask, and its sanity checks.

What is explained is the class that each network says, on images that it was not trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bloodcell_lib import decode, gradcam, plans, sanity, synthetic
from bloodcell_lib.analysis import Subject, logits, sample
from bloodcell_lib.cells import CELL_TYPES, TITLES
from bloodcell_lib.evaluate import wilson
from bloodcell_lib.models import Classifier
from bloodcell_lib.painting import median_colour, wider
from bloodcell_lib.segment import Masks, segment

# Images and steps of a curve; each image goes through the network 8 x (steps + 1) times.
CURVES, STEPS = 128, 16
DEMO_IMAGES, DEMO_CURVES, DEMO_STEPS = 96, 24, 8


def analyse(subject: Subject) -> dict[str, Any]:
    """Heat inside the cell; deletion and insertion; the cascade of randomised parts.

    location: of all images (a demo: some), each by the network of the fold that held it out; without the folds, of the
    first run's, since other seeds would see the same again. curves and randomisation: of `curves` images, shared out
    among the networks, so that more networks cost no more.
    """
    demo = plans.profile(subject.profile).disposable
    folds = subject.folds()
    count, steps = (DEMO_CURVES, DEMO_STEPS) if demo else (CURVES, STEPS)
    where, order, forgotten, shown = [], [], [], None
    for k, (record, held_out) in enumerate(folds):
        network = subject.network(record)
        shown = shown or show(network, record.info["config"]["pixels"], record.info["config"]["crop"])
        part = held_out.subset(sample(held_out.labels.numpy(), DEMO_IMAGES if demo else None))
        masks = segment(part.images)
        said = logits(network, part.images).argmax(1)
        coarse = gradcam.coarse_maps(network, part.images, said)
        where.append(locate(coarse, masks) | {"label": part.labels.numpy()})
        few = torch.from_numpy(sample(part.labels.numpy(), max(2, count // len(folds)), seed=k))
        inside = Masks(*(mask[few] for mask in masks))
        order.append(compare_orders(network, part.images[few], said[few], coarse[few], inside, steps))
        forgotten.append(forget(network, part.images[few], said[few], coarse[few]))
    return {
        "runs": [f"{record.experiment}/seed{record.seed}" for record, _ in folds],
        "location": located(_joined(where)),
        "curves": compared(_joined(order)),
        "randomisation": {
            "images": sum(len(rows["between_images"]) for rows in forgotten),
            **{name: sanity.mean(values) for name, values in _joined(forgotten).items()},
        },
        "drawn": shown,
    }


def drawn(pixels: int, crop: int | None, seed: int = 0) -> Tensor:
    """A drawn cell of each class, uint8 (8, 3, pixels, pixels), cut out as `data.load` does; a seed gives the same."""
    images = []
    for cell in CELL_TYPES:
        picture = synthetic.draw(cell, np.random.default_rng((seed, cell.id)))
        picture = decode.central(picture, crop).resize((pixels, pixels), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(images)


def show(network: Classifier, pixels: int, crop: int | None) -> dict[str, Any]:
    """The network's maps for the `drawn` cells, for a figure that shows no real one: said, classes (8,), and maps, not
    scaled, (8, h, w)."""
    images = drawn(pixels, crop)
    said = logits(network, images).argmax(1)
    return {"pixels": pixels, "crop": crop, "said": said, "maps": gradcam.coarse_maps(network, images, said)}


def locate(coarse: Tensor, masks: Masks, seed: int = 0) -> dict[str, np.ndarray]:
    """Shares, float (n,) each, of maps (n, h, w) and masks (n, H, W). Nan where a map is 0 all over.

    inside: of the heat that lies in the cell; inside_other: in the cell of another image, drawn at random, which is
    what a map that merely points to the middle reaches; area: of the picture that is cell; nucleus and nucleus_area:
    of the heat in the cell and of the cell's area, that lies in the nucleus; ceiling: inside, of the mask itself shown
    as coarsely as the maps. hit: whether the hottest pixel lies in the cell (the pointing game of Zhang et al. 2018,
    without its tolerance), centre_hit: whether the picture's centre does.
    """
    n, h, w = masks.cell.shape
    maps = gradcam.enlarged(coarse, (h, w))
    cell, other = masks.cell, masks.cell[_derangement(n, seed)]
    limit = F.adaptive_avg_pool2d(cell[:, None].float(), coarse.shape[-2:])[:, 0]
    hottest = maps.flatten(1).argmax(1, keepdim=True)
    warm = maps.flatten(1).amax(1) > 0
    hit = torch.where(warm, cell.flatten(1).gather(1, hottest)[:, 0].double(), torch.nan)
    ones = torch.ones_like(maps)
    found = {
        "inside": _share(maps, cell),
        "inside_other": _share(maps, other),
        "area": _share(ones, cell),
        "nucleus": _share(maps * cell, masks.nucleus),
        "nucleus_area": _share(cell.float(), masks.nucleus),
        "ceiling": _share(gradcam.enlarged(limit, (h, w)), cell),
        "hit": hit,
        "centre_hit": cell[:, h // 2, w // 2].double(),
    }
    return {name: values.numpy() for name, values in found.items()}


def located(rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `locate` found, in means with intervals over images; hit and centre_hit with Wilson's; inside and area by
    class. images: how many maps there are; cold: how many of them are 0 all over, and left out."""
    cold = np.isnan(rows["inside"])
    warm = {name: values[~cold] for name, values in rows.items()}
    label = warm.pop("label")
    result: dict[str, Any] = {"images": len(cold), "cold": int(cold.sum())}
    if cold.all():
        return result
    for name in ("hit", "centre_hit"):
        values = warm.pop(name)
        low, high = wilson(values.sum(), len(values))
        result[name] = {"mean": values.mean(), "low": low, "high": high}
    known = {name: values[~np.isnan(values)] for name, values in warm.items()}  # no nucleus, no share of it
    result |= {name: sanity.mean(values) for name, values in known.items() if len(values)}
    result["inside_less_other"] = sanity.mean(warm["inside"] - warm["inside_other"])
    result["by_class"] = [
        {name: sanity.mean(warm[name][label == k]) for name in ("inside", "area")} if (label == k).any() else None
        for k in range(len(TITLES))
    ]
    return result


def compare_orders(
    network: Classifier, images: Tensor, classes: Tensor, coarse: Tensor, masks: Masks, steps: int
) -> dict[str, np.ndarray]:
    """Deletion and insertion curves, float (n, steps + 1), named "deletion/grad_cam" and so on, for each order."""
    size = images.shape[-2:]
    canvas = {"deletion": sanity.emptied(images, median_colour(images, ~wider(masks.cell)))}
    canvas["insertion"] = sanity.blurred(images)
    orders = sanity.orders(gradcam.enlarged(coarse, size), masks.cell, tuple(coarse.shape[-2:]))
    return {
        f"{kind}/{name}": sanity.curves(network, images, classes, score, base, steps, insert=kind == "insertion")
        for kind, base in canvas.items()
        for name, score in orders.items()
    }


def compared(rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `compare_orders` found: for each kind and order the mean curve and the area under it; and what Grad-CAM's
    area has more than each rival's, paired by image. Deletion is good when its area is small, insertion when large."""
    result: dict[str, Any] = {"images": len(rows["deletion/random"]), "steps": rows["deletion/random"].shape[1] - 1}
    for kind in ("deletion", "insertion"):
        areas = {key.split("/")[1]: sanity.area(curve) for key, curve in rows.items() if key.startswith(kind)}
        result[kind] = {
            name: {"curve": rows[f"{kind}/{name}"].mean(0), "area": sanity.mean(values)}
            for name, values in areas.items()
        }
        for name, values in areas.items():
            if name != "grad_cam":
                result[kind][name]["grad_cam_less"] = sanity.mean(areas["grad_cam"] - values)
    return result


def forget(network: Classifier, images: Tensor, classes: Tensor, coarse: Tensor) -> dict[str, np.ndarray]:
    """Rank correlation, float (n,), of the maps with those of the same network as its parts are randomised, by part.

    between_images: of the network's maps with its own for other images, which is how alike maps are that have nothing
    in common but the network and a cell at the centre.
    """
    original = coarse.numpy()
    found = {"between_images": sanity.rank_correlation(original, original[_derangement(len(images), 0)])}
    for name, changed in sanity.cascade(network, images):
        found[name] = sanity.rank_correlation(original, gradcam.coarse_maps(changed, images, classes).numpy())
    return found


def _share(heat: Tensor, mask: Tensor) -> Tensor:
    """Of the heat (n, H, W) what lies inside the mask: float64 (n,), nan where there is no heat."""
    heat = heat.double()
    return (heat * mask).sum((1, 2)) / heat.sum((1, 2))


def _derangement(n: int, seed: int) -> np.ndarray:
    """For each of n >= 2 another one, int (n,): a random circle through all."""
    order = np.random.default_rng(seed).permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, 1)
    return out


def _joined(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
