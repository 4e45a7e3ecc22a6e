"""May a heat map be believed? What happens when pixels go in its order, and when the network forgets what it learnt.

A map that looks right proves nothing: cells lie at the centre, and so does any smooth map's middle. So each test has
rivals that know nothing of the network: a random map as coarse as the real one, the distance to the centre, the mask.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import Tensor, nn

from bloodcell_lib import gradcam
from bloodcell_lib.analysis import as_input, logits
from bloodcell_lib.evaluate import bootstrap_mean
from bloodcell_lib.models import Classifier

BLUR = 0.1  # of the image's side: standard deviation that leaves a cell's place and tint and none of its structure


def orders(maps: Tensor, cell: Tensor, coarse: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Scores float (n, H, W) by which pixels are taken, highest first, for Grad-CAM `maps` and masks bool (n, H, W).

    random: random numbers on a grid of `coarse` (h, w) cells, enlarged as maps are; single pixels at random would break
    every structure at once and lose to any smooth map. centre: nearness to the centre. cell: the mask, its depth first.
    """
    n, h, w = maps.shape
    generator = torch.Generator().manual_seed(seed)
    far = torch.hypot((torch.arange(h) - (h - 1) / 2)[:, None], torch.arange(w) - (w - 1) / 2)
    found = {
        "grad_cam": maps,
        "random": gradcam.enlarged(torch.rand(n, *coarse, generator=generator), (h, w)),
        "centre": (-far).expand(n, h, w),
        "cell": _blurred(cell[:, None].float(), BLUR / 2 * w)[:, 0] + cell.float(),
    }
    # Large parts of a map are 0: ties would be broken from the top left.
    return {name: score + 1e-6 * torch.rand(n, h, w, generator=generator) for name, score in found.items()}


def curves(
    network: Classifier, images: Tensor, classes: Tensor, scores: Tensor, canvas: Tensor, steps: int, insert: bool
) -> np.ndarray:
    """Probability of `classes`, float64 (n, steps + 1), as pixels go by their scores (Petsiuk et al. 2018).

    Deletion puts `canvas` in place of the highest scores' pixels, from the whole image to the whole canvas; insertion
    puts the highest scores' pixels of the image on the canvas, from none to all. images, canvas: uint8 (n, 3, H, W).
    """
    n, pixels = len(images), images[0, 0].numel()
    rank = scores.flatten(1).argsort(1, descending=True).argsort(1).view(scores.shape)
    out = np.empty((n, steps + 1))
    for i in range(steps + 1):
        taken = (rank < round(pixels * i / steps))[:, None]
        shown = torch.where(taken == insert, images, canvas)
        p = logits(network, shown).double().softmax(1)
        out[:, i] = p.gather(1, classes[:, None])[:, 0].numpy()
    return out


def blurred(images: Tensor) -> Tensor:
    """uint8 images without their structure, the canvas of insertion: on one flat colour the first pixels put down would
    be a shape by themselves (Petsiuk et al. 2018)."""
    return _blurred(images.float(), BLUR * images.shape[-1]).round().byte()


def emptied(images: Tensor, colour: Tensor) -> Tensor:
    """uint8 images of one colour each, float (n, 3, 1, 1), the canvas of deletion: of the background, because then a
    pixel is gone as if the slide were empty there, and no colour comes in that the image does not have."""
    return colour.round().byte().expand(images.shape)


def area(curve: np.ndarray) -> np.ndarray:
    """Area under each curve (n, steps + 1) over the share of pixels from 0 to 1: float (n,), in [0, 1]."""
    return trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1)


def cascade(network: Classifier, images: Tensor, seed: int = 0) -> Iterator[tuple[str, Classifier]]:
    """The network with one part more made meaningless each time, from the head down (Adebayo et al. 2018).

    Weights are shuffled within each tensor, which keeps how they are distributed; fresh ones would be no test here,
    where residual branches start at zero and pass everything on. Batch norms that were shuffled take their statistics
    anew from `images`, uint8 (n, 3, H, W), or nothing sensible would reach the head. Yields the same copy, changed.
    """
    network = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(seed)
    norms: list[nn.Module] = []
    for name, part in gradcam.parts(network).items():
        with torch.no_grad():
            for weight in part.parameters():
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view(weight.shape))
            norms += [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all that is shown from now on
                norm.train()
            network(as_input(images, next(network.parameters()).device))
        yield name, network.eval()


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's, float (n,), of maps (n, h, w) each with its fellow; 0 where one of the two is the same all over."""
    ranks = [rankdata(x.reshape(len(x), -1), axis=1) for x in (a, b)]
    one, other = (r - r.mean(1, keepdims=True) for r in ranks)
    scale = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.divide((one * other).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def mean(values: np.ndarray) -> dict[str, float]:
    """mean of values (n,) with low and high, its 95 % percentile bootstrap interval over images."""
    return dict(zip(("mean", "low", "high"), bootstrap_mean(values)))


def _blurred(x: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest"))
