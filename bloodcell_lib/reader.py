"""How a photograph was taken, read from the photograph alone, by a small network that teaches itself.

It needs no other site's images: each training image is shown as another microscope, camera or stain would have given
it (`camera`), and what was done to it is what is to be read. What it learns is therefore how far a picture is from
ours, along changes that were thought of; `microscope` undoes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bloodcell_lib import camera, corrupt, machine, paths, plans
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.layers import Standardise, conv_norm
from bloodcell_lib.microscope import LOOK, READ, look

SPREAD = (0.3, 0.15, 0.15, 0.15, 0.4, 0.4, 0.3)  # errors are measured in these, which says what counts more
OURS = 0.99  # of our photographs, so many are left alone in each thing that is read
WIDTHS = (16, 32, 32, 64, 64, 128, 128, 128)
CAMERA = 2 * LOOK  # pixels of a side at which a photograph is changed, before it is read
BATCH, RATE, DECAY, DELTA = 32, 2e-3, 1e-3, 0.3
DEMO_EPOCHS = 8
VERSION = "4"  # raise it when another reader comes out of the same images


class Reader(nn.Module):
    """Whole photographs, float (B, 3, LOOK, LOOK) in [0, 1] -> what is read of each, float (B, 7), in READ's order.

    What is no farther from ours than `steady`, float (7,), is read as ours, 0; in training nothing is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise()
        before = (3, *WIDTHS)
        self.net = nn.Sequential(*(conv_norm(a, b, 3, 1 + (a != b)) for a, b in zip(before, WIDTHS)))
        self.head = nn.Linear(WIDTHS[-1], len(READ))
        self.register_buffer("spread", torch.tensor(SPREAD))
        self.register_buffer("steady", torch.zeros(len(READ)))

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(self.net(self.standardise(x)).mean((2, 3))) * self.spread
        return found if self.training else torch.where(found.abs() > self.steady, found, 0.0)


def elsewhere(photographs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Photographs, uint8 (B, 3, S, S), as they may look elsewhere, float (B, 3, LOOK, LOOK), and what is to be read."""
    how = camera.drawn(len(photographs), generator)
    truth = torch.column_stack([how.zoom.log(), how.light.log(), how.dyes.log(), 100 * how.blur])
    x = camera.photographed(photographs, how.to(photographs.device), CAMERA)
    return F.interpolate(x, (LOOK, LOOK), mode="bilinear", antialias=True).clamp(0, 1), truth.to(x.device)


def learn(photographs: Tensor, epochs: int, seed: int = 0, device: torch.device | str = "cpu") -> Reader:
    """A reader that has learnt from whole photographs, uint8 (n, 3, S, S), for so many passes over them.

    S is best that of the files: what is shrunk before it is enlarged shows less than an enlarged photograph does.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    looks = torch.cat([shrunk(x, LOOK) for x in photographs.split(corrupt.BATCH)])
    reader = Reader()
    reader.standardise.fit(looks)
    reader.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=DECAY, fused=True)
    steps = epochs * math.ceil(len(photographs) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.15)
    for batch in _batches(len(photographs), epochs, generator):
        x, truth = elsewhere(_turned(photographs[batch].to(device), generator), generator)
        x = x.contiguous(memory_format=torch.channels_last)
        F.huber_loss(reader(x) / reader.spread, truth / reader.spread, delta=DELTA).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    ours = np.abs(read(reader.eval(), looks.permute(0, 2, 3, 1).numpy()))
    reader.steady.copy_(torch.from_numpy(np.quantile(ours, OURS, axis=0)))
    return reader


def shrunk(images: Tensor, pixels: int) -> Tensor:
    """uint8 (n, 3, S, S) -> uint8 (n, 3, pixels, pixels), as a mean over what a pixel covers."""
    x = F.interpolate(images.float(), (pixels, pixels), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).byte()


def _batches(n: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).tensor_split(math.ceil(n / BATCH))


def _turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch in one of the eight ways in which a square lies."""
    turns, mirrored = torch.randint(0, 4, (), generator=generator), torch.rand((), generator=generator) < 0.5
    x = x.rot90(int(turns), (2, 3))
    return x.flip(3) if mirrored else x


@torch.no_grad()
def read(reader: Reader, looks: np.ndarray) -> np.ndarray:
    """What is read of looks, uint8 (n, LOOK, LOOK, 3): float32 (n, 7)."""
    device = reader.head.weight.device
    parts = torch.from_numpy(looks).permute(0, 3, 1, 2).split(corrupt.BATCH)
    return torch.cat([reader(x.to(device, torch.float32) / 255).cpu() for x in parts]).numpy()


def pictured(reader: Reader, photographs: Tensor) -> tuple[list[Image.Image], np.ndarray]:
    """Whole photographs, uint8 (n, 3, S, S), as pictures, and what is read of each: float32 (n, 7)."""
    pictures = [Image.fromarray(one) for one in photographs.permute(0, 2, 3, 1).contiguous().numpy()]
    return pictures, read(reader, np.stack([look(one) for one in pictures]))


@dataclass(frozen=True)
class Lesson:
    """What a reader is made of: whole photographs of one part of the images of a profile, and how long it learns."""

    profile: str
    part: str
    photographs: CellImages
    device: str = "cpu"
    runs: Path | None = None

    @property
    def epochs(self) -> int:
        """As many passes as the best recipe makes under the profile; a demo makes `DEMO_EPOCHS`."""
        profile = plans.profile(self.profile)
        return DEMO_EPOCHS if profile.disposable else round(profile.epochs * plans.experiment("best").length)

    @property
    def file(self) -> Path:
        """Where the weights are kept."""
        return (self.runs or paths.RUNS) / self.profile / "readers" / f"{self.part}.safetensors"

    @property
    def about(self) -> dict[str, str]:
        """What tells this reader from others."""
        return {
            "images": self.photographs.fingerprint,
            "part": self.part,
            "epochs": str(self.epochs),
            "version": VERSION,
        }

    def taught(self) -> Reader:
        """The reader: the one that is kept, else a new one, which is kept."""
        if self.file.exists() and about(self.file).items() >= self.about.items():
            return load(self.file).to(self.device)
        with paths.write_whole(self.file) as temporary:  # before it learns, so that what cannot be kept is told at once
            reader = learn(self.photographs.images, self.epochs, device=self.device)
            state = {name: value.cpu().contiguous() for name, value in reader.state_dict().items()}
            safetensors.torch.save_file(state, temporary, {**self.about, "commit": machine.commit() or ""})
        return reader


def about(file: Path) -> dict[str, str]:
    """What is said of a kept reader. Raises BloodcellError if the file is damaged."""
    try:
        with safetensors.safe_open(file, "pt") as kept:
            return kept.metadata() or {}
    except Exception as error:  # safetensors raises kinds of its own
        raise BloodcellError(f"{file} is damaged: remove it, and it is made again.") from error


def load(file: Path) -> Reader:
    """A kept reader, ready to read. Raises BloodcellError if it is damaged."""
    reader = Reader()
    try:
        reader.load_state_dict(safetensors.torch.load_file(file))
    except Exception as error:  # of torch or safetensors, for a damaged or foreign file
        raise BloodcellError(f"{file} is damaged: remove it, and it is made again.") from error
    return reader.eval()
