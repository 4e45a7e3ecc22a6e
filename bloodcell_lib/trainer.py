"""One training loop for every network, budget and device.

CUDA with automatic mixed precision and plain float32 run the same lines: autocast that may be switched off, and a
gradient scaler that may be disabled. Nothing in an epoch waits for the device: sums stay there until it ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from bloodcell_lib import checkpoints, finer, graphs, mixing, models, pretrain
from bloodcell_lib.augment import Augment, AugmentConfig
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.machine import describe_machine, keep_memory, peak_memory, reset_peak_memory
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.recipe import PRECISIONS, TrainConfig, learning_rate, side


@dataclass
class Run:
    """What a training gave. `probabilities` float32 (n, 8) and `weights` are of the final epoch."""

    history: list[dict[str, float]]
    probabilities: Tensor | None
    weights: dict[str, Tensor]
    peak_memory_bytes: int
    wall_seconds: float
    machine: dict[str, str] = field(default_factory=dict)


class Trainer:
    """`Trainer(model, train, augment).fit(images, validation)` trains, from fresh weights or given ones, to a `Run`.

    checkpoint: a file that is written whole after every epoch; with `resume`, training goes on from it and, on one
    CPU, ends with the weights that an uninterrupted run has, bit for bit.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        augment: AugmentConfig,
        device: torch.device | str | None = None,
        checkpoint: Path | None = None,
        resume: bool = True,
        progress: bool = True,
        label: str = "train",
    ) -> None:
        train.check()
        if sum(map(bool, (model.finer, train.mixup or train.cutmix, train.distil))) > 1:
            raise BloodcellError(
                "Finer labels, mixed labels and those of other networks do not go together: choose one of finer, mixup "
                "with cutmix, and distil."
            )
        self.model_config, self.config, self.augment_config = model, train, augment
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # no such device, or torch was built without it
            raise BloodcellError(f"No device '{device}' here: choose cpu, or cuda where there is a GPU.") from error
        self.checkpoint, self.resume = checkpoint, resume
        self.progress, self.label = progress, label

    def fit(
        self,
        images: CellImages,
        validation: CellImages | None = None,
        taught: Tensor | None = None,
        start: dict[str, Tensor] | None = None,
    ) -> Run:
        """Trains on `images`; after each epoch measures `validation`, whose result decides nothing.

        taught: what other networks say of `images`, float (n, 8), rows sum to 1; where the recipe distils it. start:
        weights of a network of this kind, where the recipe goes on after another. Raises BloodcellError for a
        non-finite loss, a checkpoint of another configuration, too few images, probabilities that are none, or weights
        that are missing or do not fit.
        """
        began = time.perf_counter()
        probabilities = None
        for _, measured in self.epochs(images, validation, taught, start):
            probabilities = measured
        if validation is not None and probabilities is None:  # a checkpoint of a finished training
            probabilities = self.measure(*self._place(validation))[2]
        return Run(
            self.history,
            probabilities,
            {name: value.cpu().clone() for name, value in self.evaluated.state_dict().items()},
            peak_memory(self.device),
            self.seconds_before + time.perf_counter() - began,
            describe_machine(self.device),
        )

    def epochs(
        self,
        images: CellImages,
        validation: CellImages | None = None,
        taught: Tensor | None = None,
        start: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, float], Tensor | None]]:
        """What `fit` does, an epoch at a time: each one's row of the history and validation probabilities."""
        if len(images) < 2:
            raise BloodcellError(f"{len(images)} training images are too few: give at least 2.")
        if bool(self.config.after) != (start is not None):
            raise BloodcellError(
                f"A recipe goes on after another ('{self.config.after}') exactly where weights are given to start from."
            )
        began = time.perf_counter()
        self.fingerprint = images.fingerprint
        self.taught = None if taught is None else taught.double().mean(0).tolist()
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
        torch.use_deterministic_algorithms(self.config.deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
        keep_memory()
        self._build(images, start)
        self.history: list[dict[str, float]] = []
        self.seconds_before = 0.0
        if self.resume and self.checkpoint is not None and self.checkpoint.exists():
            self._restore()
        train = self._place(images)
        held_out = None if validation is None else self._place(validation)
        if self.model_config.finer:
            train = train[0], finer.allowed(images.names, images.labels.tolist()).to(self.device)
        if self.config.distil:
            train = train[0], mixing.distilled(train[1], taught, models.CLASSES, self.config.distil)
        reset_peak_memory(self.device)
        before = self.config.pretrain
        bar = tqdm(
            total=(before + self.config.epochs) * len(images),
            initial=(before * bool(self.history) + len(self.history)) * len(images),
            desc=self.label,
            unit="image",
            unit_scale=True,
            disable=None if self.progress else True,  # None: only where somebody watches
            mininterval=0.5,
        )
        with bar:
            if before and not self.history:
                for _ in pretrain.contrast(self.model, train[0], before, self.generator):
                    bar.update(len(images))
            while len(self.history) < self.config.epochs:
                epoch_began, probabilities = time.perf_counter(), None
                row = {"epoch": len(self.history) + 1, **self._epoch(*train, bar)}
                if held_out is not None:
                    loss, accuracy, probabilities = self.measure(*held_out)
                    row |= {"validation_loss": loss, "validation_accuracy": accuracy}
                else:
                    row |= {"validation_loss": None, "validation_accuracy": None}
                self._check_finite(row)
                row["seconds"] = time.perf_counter() - epoch_began
                self.history.append(row)
                if self.checkpoint is not None:
                    self._save(self.seconds_before + time.perf_counter() - began)
                shown = row["train_accuracy"] if validation is None else row["validation_accuracy"]
                bar.set_postfix(loss=f"{row['train_loss']:.3f}", accuracy=f"{shown:.3f}")
                yield row, probabilities

    @property
    def evaluated(self) -> nn.Module:
        """The network that predicts: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    def _build(self, images: CellImages, start: dict[str, Tensor] | None = None) -> None:
        c = self.config
        torch.manual_seed(c.seed)
        self.model = models.build(self.model_config)
        self.start = None if start is None else sha256(start)
        if start is not None:
            self._load(start)
        self.model.standardise.fit(images.images)
        self.model.to(self.device, memory_format=torch.channels_last)
        average = partial(blend, c.average) if c.average else None
        self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True) if average else None
        maker = torch.optim.AdamW if c.optimiser == "adamw" else torch.optim.Adam
        decay = c.weight_decay if c.optimiser == "adamw" else 0.0
        cuda = self.device.type == "cuda"
        self.graphs = graphs.Graphs() if graphs.wanted(self.device) else None
        # Fused also on a CPU: 4 to 8 times as fast as one kernel an operation, dear for many small tensors.
        self.optimiser = maker(self.model.parameters(), c.learning_rate, (0.9, 0.999), weight_decay=decay, fused=True)
        self._fit_optimiser()
        precision = c.precision or ("float16" if cuda else "float32")
        self.dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16" and cuda)
        self.augment = Augment(self.augment_config)
        self.generator = torch.Generator(self.device).manual_seed(c.seed)

    def _load(self, start: dict[str, Tensor]) -> None:
        try:
            self.model.load_state_dict(start)
        except RuntimeError as error:  # how torch tells of other names or shapes
            raise BloodcellError(
                f"The weights that {self.label} starts from are of another network: give those of a "
                f"{self.model_config.name}."
            ) from error

    def _fit_optimiser(self) -> None:
        """Makes the optimiser fit for a graph, or unfit: a graph reads the rate from the device."""
        for group in self.optimiser.param_groups:
            rate = float(group["lr"])
            group["capturable"] = self.graphs is not None
            group["lr"] = rate if self.graphs is None else torch.tensor(rate, device=self.device)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            if self.graphs is None:
                group["lr"] = rate
            else:
                group["lr"].fill_(rate)

    def _recover(self) -> None:
        """Forgets what a step that was cut off has left: gradients, and how far the scaler had got."""
        self.optimiser.zero_grad(set_to_none=True)
        state = self.scaler.state_dict()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaler.is_enabled())
        self.scaler.load_state_dict(state)

    def _place(self, cells: CellImages) -> tuple[Tensor, Tensor]:
        return cells.images.to(self.device), cells.labels.to(self.device)

    def _loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of scores that are not added up yet; targets are labels, or the finer types that may be."""
        smoothing = self.config.label_smoothing
        if self.model_config.finer:
            return finer.loss(scores, targets, smoothing)
        return F.cross_entropy(scores, targets, label_smoothing=smoothing)

    def _autocast(self) -> torch.autocast:
        # No cache of weights: each is used once a step, and a graph must not read one from outside of it.
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False)

    def _backward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and loss, whose gradients, times the scaler's factor, are then in the weights."""
        with self._autocast():
            scores = self.model(x.contiguous(memory_format=torch.channels_last), added=False)
            loss = self._loss(scores, y)
        self.scaler.scale(loss).backward()
        return scores, loss

    @torch.no_grad()
    def _climb(self, length: float) -> list[Tensor]:
        """Moves the weights by `length` along their gradients, which it forgets; gives the weights of before."""
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        factor = length / (nn.utils.get_total_norm(gradients) + 1e-12)
        before = [weight.clone() for weight in weights]
        climb = torch._foreach_mul(gradients, factor)
        for part in climb:  # a step that overflows is left out, but batch norm would keep its nan
            part.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_add_(weights, climb)
        self.optimiser.zero_grad(set_to_none=True)
        return before

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on augmented images float (B, 3, H, W): loss and hits, each summed over the batch, float (2,)."""
        c = self.config
        scores, loss = self._backward(x, y)
        if c.sharpness:
            before = self._climb(c.sharpness)
            self._backward(x, y)
            with torch.no_grad():
                torch._foreach_copy_([weight for weight in self.model.parameters() if weight.grad is not None], before)
        if c.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        # What an image may be is all of one class; as scores it adds up to that class, without a table on the device.
        # Of shares of classes, the largest is meant.
        labels = y if y.dim() == 1 else self.model.add_up(100.0 * y).argmax(1)
        right = (self.model.add_up(scores.detach()).argmax(1) == labels).sum()
        return torch.stack([loss.detach().float() * len(y), right])

    def _epoch(self, images: Tensor, targets: Tensor, bar: tqdm) -> dict[str, float]:
        """One pass over all images in a fresh order; sums stay on the device until the end."""
        c, n = self.config, len(targets)
        began = time.perf_counter()
        self.model.train()
        order = torch.randperm(n, generator=self.generator, device=self.device)
        # Batches as even as can be, so that none holds a single image, which batch norm could not standardise.
        batches = torch.tensor_split(order, max(1, math.ceil(n / c.batch_size)))
        size = side(c, images.shape[-1], len(self.history))
        total = torch.zeros(2, device=self.device)  # loss and hits, summed over images
        for i, batch in enumerate(batches):
            rate = learning_rate(c, len(self.history) + i / len(batches))
            self._set_rate(rate)
            x, y = self.augment(images[batch], self.generator), targets[batch]
            if size != images.shape[-1]:
                x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
            if c.mixup or c.cutmix:
                x, y = mixing.mix(x, y, models.CLASSES, c.mixup, c.cutmix)
            total += self._step(x, y) if self.graphs is None else self.graphs.run(self._step, x, y, self._recover)
            if self.average is not None:
                self.average.update_parameters(self.model)
            bar.update(len(batch))
        loss_sum, right = total.tolist()
        seconds = time.perf_counter() - began
        return {
            "train_loss": loss_sum / n,
            "train_accuracy": right / n,
            "learning_rate": rate,
            "images_per_second": n / seconds,
        }

    def _check_finite(self, row: dict[str, float]) -> None:
        """Raises BloodcellError before a broken network is kept; its last step shows in no loss, so weights count."""
        losses = (row["train_loss"], row["validation_loss"] or 0.0)
        weights = [value.isfinite().all() for value in self.model.state_dict().values()]
        if all(map(math.isfinite, losses)) and torch.stack(weights).all():
            return
        kept = f"; the last good epoch is in {self.checkpoint}" if self.checkpoint and self.history else ""
        raise BloodcellError(
            f"A loss or a weight of {self.label} is no longer a finite number in epoch {row['epoch']}{kept}: "
            f"lower the learning rate (it is {self.config.learning_rate:g})."
        )

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor, batch_size: int = 128) -> tuple[float, float, Tensor]:
        """Cross entropy without smoothing, accuracy and probabilities float32 (n, 8), without augmentation."""
        model = self.evaluated.eval()
        logits = []
        for x in images.split(batch_size):
            with self._autocast():
                logits.append(model((x / 255).contiguous(memory_format=torch.channels_last)).float())
        together = torch.cat(logits)
        loss = F.cross_entropy(together, labels).item()
        accuracy = (together.argmax(1) == labels).float().mean().item()
        return loss, accuracy, together.softmax(1).cpu()

    def _identity(self) -> str:
        """What a checkpoint must share with the run that takes it up."""
        parts = (self.model_config, self.config, self.augment_config)
        # The mean tells other crops and sizes of the same files apart.
        seen = {"images": self.fingerprint, "mean colour": self.model.standardise.mean.tolist()}
        if self.config.distil:  # as the mean colour does, of what was taught
            seen["taught"] = self.taught
        if self.config.after:
            seen["start"] = self.start
        return json.dumps([asdict(part) for part in parts] + [{"device": self.device.type, **seen}])

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds, besides the random states."""
        return {
            "model": self.model,
            "optimiser": self.optimiser,
            "scaler": self.scaler,
            **({"average": self.average} if self.average is not None else {}),
        }

    def _save(self, seconds: float) -> None:
        assert self.checkpoint is not None
        checkpoints.save(self.checkpoint, self._identity(), self._state(), self.generator, self.history, seconds)

    def _restore(self) -> None:
        assert self.checkpoint is not None
        given = self.checkpoint, self._identity(), self._state(), self.generator
        self.history, self.seconds_before = checkpoints.restore(*given)
        self._fit_optimiser()  # the checkpoint may come from a run with a graph, or without


def sha256(weights: dict[str, Tensor]) -> str:
    """A hash of weights, in the order of their names."""
    whole = hashlib.sha256()
    for _, value in sorted(weights.items()):
        whole.update(value.contiguous().numpy().tobytes())
    return whole.hexdigest()


@torch.no_grad()
def blend(decay: float, averages: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
    """Moves averages, which hold `steps` steps already, towards the newest values: the kept share is `decay`, and less
    in the beginning, (1 + steps) / (10 + steps), since weights of the first steps would stay in the average of a
    short training (as TensorFlow's ExponentialMovingAverage with num_updates)."""
    new = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)
    for average, value in zip(averages, values):
        average.lerp_(value, new.to(value.dtype)) if value.is_floating_point() else average.copy_(value)
