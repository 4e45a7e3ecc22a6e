"""A training step as one CUDA graph: recorded once, then launched as a whole.

A small network at a small batch waits for the CPU, which launches hundreds of kernels a step; a graph is one launch.
What PyTorch's notes on CUDA graphs ask of a step: shapes that stay, nothing that waits for the device, an optimiser
that is `capturable` with its rate in a tensor, gradients that are None when it begins. BLOODCELL_GRAPHS=0 switches
graphs off.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

WARM_UP = 3  # steps before recording, in which kernels are chosen and the optimiser's state is made

Step = Callable[[Tensor, Tensor], Tensor]


def wanted(device: torch.device) -> bool:
    """Whether steps on `device` should be recorded."""
    return device.type == "cuda" and os.environ.get("BLOODCELL_GRAPHS", "1") != "0"


@dataclass
class Recording:
    """A graph and the tensors that it reads and writes, which stay where they are."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor
    result: Tensor


class Graphs:
    """`run(step, x, y, recover)` is `step(x, y)`, recorded for each shape of x and replayed.

    The first WARM_UP calls run the step as it is, and recording runs nothing, so no step has to be undone and a
    replayed training is the same as a plain one. Where recording fails, `recover` is called to undo what the attempt
    left in Python objects, one sentence says so, and every later call runs the step as it is.
    """

    def __init__(self) -> None:
        self.failed = False
        self.recordings: dict[torch.Size, Recording] = {}
        self.calls: Counter[torch.Size] = Counter()
        self.stream: torch.cuda.Stream | None = None

    def run(self, step: Step, x: Tensor, y: Tensor, recover: Callable[[], None]) -> Tensor:
        """One step, by whatever way; its result holds until the next call."""
        if self.failed:
            return step(x, y)
        if x.shape not in self.recordings:
            try:
                self.stream = self.stream or torch.cuda.Stream(x.device)
                if self.calls[x.shape] < WARM_UP:
                    self.calls[x.shape] += 1
                    return self._aside(step, x, y)
                self.recordings[x.shape] = self._record(step, x, y)
            except torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, AssertionError) as error:  # torch raises each, by how it was built
                self.failed = True
                self.recordings.clear()
                recover()
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                tqdm.write(f"Training goes on without a CUDA graph, which could not be recorded: {why}")
                return step(x, y)
        kept = self.recordings[x.shape]
        kept.x.copy_(x)
        kept.y.copy_(y)
        kept.graph.replay()
        return kept.result

    def _aside(self, step: Step, x: Tensor, y: Tensor) -> Tensor:
        """The step on the stream that will record it, in order with all before and after."""
        here = torch.cuda.current_stream(x.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = step(x, y)
        here.wait_stream(self.stream)
        return result

    def _record(self, step: Step, x: Tensor, y: Tensor) -> Recording:
        graph, x, y = torch.cuda.CUDAGraph(), x.clone(), y.clone()
        with torch.cuda.graph(graph, stream=self.stream):
            result = step(x, y)
        return Recording(graph, x, y, result)
