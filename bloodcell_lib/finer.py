"""Learning finer types than one predicts: an output for each of them, whose probabilities add up to the eight classes.

The names of the files tell finer types (`cells.FINER_TYPES`): three stages of immature granulocytes, two forms of
neutrophils. A name that tells only the class is used too, for all its finer types together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bloodcell_lib.cells import CELL_TYPES, FINER_TYPES, finer_type

OUTPUTS = len(FINER_TYPES)
CLASS_OF = tuple(label for label, _ in FINER_TYPES)


def allowed(names: Sequence[str], labels: Sequence[int]) -> Tensor:
    """bool (n, OUTPUTS): the finer types that each image may be, one where its name tells it, else all of its class."""
    of_class = torch.tensor(CLASS_OF)[None] == torch.tensor(labels, dtype=torch.int64)[:, None]
    at = {kind: i for i, kind in enumerate(FINER_TYPES)}
    found = [at.get((label, finer_type(name, label)), -1) for name, label in zip(names, labels)]
    told = torch.tensor(found, dtype=torch.int64)[:, None]
    return torch.where(told >= 0, torch.arange(OUTPUTS)[None] == told, of_class)


class AddUp(nn.Module):
    """Scores of finer types to scores of classes: float (B, OUTPUTS) -> (B, 8).

    log(sum(exp)) of a class's scores, so that softmax of what comes out is the sum of the finer probabilities.
    """

    def __init__(self) -> None:
        super().__init__()
        inside = torch.tensor(CLASS_OF)[None] == torch.arange(len(CELL_TYPES))[:, None]
        # exp(-1e4) is 0, and an average of weights, unlike one of infinities, keeps it.
        shut = torch.zeros(inside.shape).masked_fill(~inside, -1e4)
        self.register_buffer("shut", shut, persistent=False)  # no weight: made anew with the network

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] + self.shut).logsumexp(2)


def loss(scores: Tensor, may: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean of -log of the probability of what each image may be; scores float and `may` bool (B, OUTPUTS).

    Where that is one type it is the cross entropy with label smoothing of Szegedy et al. 2016, as torch has it.
    """
    log_p = F.log_softmax(scores.float(), dim=1)
    given = log_p.masked_fill(~may, -torch.inf).logsumexp(1)
    return -((1 - smoothing) * given + smoothing * log_p.mean(1)).mean()
