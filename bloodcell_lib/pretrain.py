"""Learning from images without their labels, before the training with them: SimCLR (Chen et al. 2020).

Two views of one image are to be known again among the views of a batch. What learns it is the network without its last
layer; the head that it gets for that is thrown away. Where this leaves the paper: a view is no small crop, loses no
colour, changes no hue and is not blurred, because cells are told apart by size, colour and grain, and it may also lie
in any of the eight ways; batches are small and AdamW takes the place of LARS, since there are few images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bloodcell_lib.augment import NONE, Augment
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import Classifier

VIEWS = replace(
    NONE, flips=True, turns=True, scale=(0.8, 1.4), translate=0.1, brightness=0.2, contrast=0.2, saturation=0.2
)
BATCH = 128  # images at least, where there are so many: others of a batch are what an image is told from
WIDTH, TEMPERATURE = 64, 0.2  # of what is compared
RATE, DECAY = 1e-3, 1e-4


def contrast(model: Classifier, images: Tensor, epochs: int, generator: torch.Generator) -> Iterator[float]:
    """Trains `model` in place on images uint8 (N, 3, H, W), on its device; gives the mean loss after each epoch.

    Draws from `generator` and from torch's global random state. Raises BloodcellError, before the first epoch, for a
    network whose last layer is not one linear layer on pooled features, or fewer than two images; and where the loss is
    no longer a finite number.
    """
    net = model.net
    if not (isinstance(getattr(net, "head", None), nn.Linear) and hasattr(net, "features")):
        raise BloodcellError(f"{type(net).__name__} cannot be pre-trained: choose slim_resnet or an MBConv network.")
    if len(images) < 2:
        raise BloodcellError(f"{len(images)} images are too few to be told apart: give at least 2.")
    width = net.head.in_features
    head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, WIDTH)).to(images.device)
    optimiser = torch.optim.AdamW([*net.parameters(), *head.parameters()], RATE, weight_decay=DECAY, fused=True)
    augment = Augment(VIEWS)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator, device=images.device)
        batches = torch.tensor_split(order, max(1, len(order) // BATCH))
        total = torch.zeros((), device=images.device)
        for batch in batches:
            x = augment(images[batch].repeat(2, 1, 1, 1), generator).contiguous(memory_format=torch.channels_last)
            loss = nt_xent(head(net.features(model.seen(x)).mean((2, 3))))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(batch)
        optimiser.zero_grad(set_to_none=True)
        mean = total.item() / len(images)
        if not math.isfinite(mean):
            raise BloodcellError("The loss of learning without labels is no longer a finite number: set pretrain to 0.")
        yield mean


def nt_xent(z: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The normalised, temperature-scaled cross entropy (Chen et al. 2020, equation 1), its mean over 2 B views.

    z float (2 B, D): the first views of B images, then their second ones in the same order.
    """
    z = F.normalize(z, dim=1)
    alike = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(alike, other)
