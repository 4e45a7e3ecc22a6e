"""How fast training is: our loop against its own bare step, against other input pipelines, and switch by switch."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bloodcell_lib import bench_loaders, data, graphs, machine, models, plans
from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.cells import CELL_TYPES
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.recipe import PRECISIONS, TrainConfig
from bloodcell_lib.timings import Comparison, Lane, Work, lanes, race
from bloodcell_lib.trainer import Trainer

MAIN = "deep_efficientnet"
RECIPE = TrainConfig()
Say = Callable[[str], None]


@dataclass(frozen=True)
class Switches:
    """What a training step can be given that leaves the recipe alone; the defaults are a plain PyTorch loop.

    keep_memory: `machine.keep_memory`. precision: as in TrainConfig. compiled: `torch.compile`.
    graphed: `graphs.Graphs`, on CUDA.
    """

    channels_last: bool = False
    keep_memory: bool = False
    fused: bool = False
    precision: str = "float32"
    compiled: bool = False
    graphed: bool = False


def bare_step(network: str, switches: Switches, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Forward, loss, backward, clip and optimiser step of the main recipe, and nothing else, on a fresh network."""
    torch.manual_seed(0)
    # The trainer's settings for every contender, so that all run the same kernels.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if switches.keep_memory:
        machine.keep_memory()
    layout = torch.channels_last if switches.channels_last else torch.contiguous_format
    model = models.build(ModelConfig(network)).to(device, memory_format=layout).train()
    rate = torch.tensor(RECIPE.learning_rate, device=device) if switches.graphed else RECIPE.learning_rate
    more = {"capturable": True} if switches.graphed else {}
    optimiser = torch.optim.AdamW(model.parameters(), rate, fused=switches.fused or None, **more)
    dtype = PRECISIONS[switches.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    forward = torch.compile(model) if switches.compiled else model

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=not switches.graphed):
            loss = F.cross_entropy(forward(x.contiguous(memory_format=layout)), y, label_smoothing=0.1)
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def give_up() -> None:
        raise BloodcellError("no CUDA graph could be recorded")

    recorded = graphs.Graphs()
    return (lambda x, y: recorded.run(step, x, y, give_up)) if switches.graphed else step


def bare_work(network: str, pixels: int, steps: int, switches: Switches, device: str) -> Work:
    """`steps` bare steps on random images that lie on the device."""
    where = torch.device(device)
    step = bare_step(network, switches, where)
    n = RECIPE.batch_size
    layout = torch.channels_last if switches.channels_last else torch.contiguous_format
    x = torch.rand(n, 3, pixels, pixels, device=where).contiguous(memory_format=layout)
    y = torch.randint(len(CELL_TYPES), (n,), device=where)

    def work() -> int:
        for _ in range(steps):
            step(x, y)
        return n * steps

    return work


def random_cells(n: int, pixels: int) -> CellImages:
    """`n` pictures of noise, laid out as those of the cache are."""
    noise = torch.randint(256, (n, pixels, pixels, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = tuple(f"{i}.png" for i in range(n))
    return CellImages(noise.permute(0, 3, 1, 2), torch.arange(n) % len(CELL_TYPES), names, names, "noise")


class Watched(io.StringIO):
    """A terminal that nobody looks at, so that the progress bar costs what it costs a user."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def trainer_work(network: str, cells: CellImages, device: str, saves: bool) -> Work:
    """One epoch of the real trainer, without validation: augmentation, metrics, progress bar and, if asked, a
    checkpoint written to a temporary folder."""
    folder = tempfile.TemporaryDirectory(prefix="bloodcell-bench-")
    trainer = Trainer(
        ModelConfig(network),
        replace(RECIPE, epochs=1_000_000),  # a lap asks for the next one
        AugmentConfig(),
        device,
        checkpoint=Path(folder.name) / "run.pt" if saves else None,
    )
    epochs = trainer.epochs(cells)

    def work() -> int:
        assert Path(folder.name).is_dir()  # it lives as long as the work does
        with contextlib.redirect_stderr(Watched()):  # where the progress bar finds it when it starts
            next(epochs)
        return len(cells)

    return work


def loop_work(network: str, pixels: int, steps: int, device: str, saves: bool = False) -> Work:
    """`trainer_work` on pictures of noise, `steps` batches an epoch."""
    return trainer_work(network, random_cells(steps * RECIPE.batch_size, pixels), device, saves)


def against_bare_step(network: str, pixels: int, steps: int, repetitions: int, device: str, say: Say) -> Comparison:
    """The trainer's epoch against as many bare steps of the same precision and layout."""
    precision = "float16" if device == "cuda" else "float32"
    eager = Switches(True, True, True, precision)
    ours = replace(eager, graphed=graphs.wanted(torch.device(device)))
    threads = torch.get_num_threads()
    comparison = Comparison(
        f"{network}, {pixels} pixels, batch {RECIPE.batch_size}",
        "bare step",
    )
    contenders = {
        "bare step": [Lane(device, threads, bare_work, network, pixels, steps, ours, device)],
        "training": [Lane(device, threads, loop_work, network, pixels, steps, device)],
    }
    if network == MAIN:
        name = "training and checkpoint"
        contenders[name] = [Lane(device, threads, loop_work, network, pixels, steps, device, True)]
        comparison.notes[name] = f"one checkpoint every {steps} steps"
    if ours != eager:
        contenders["bare step, no graph"] = [Lane(device, threads, bare_work, network, pixels, steps, eager, device)]
    with lanes(contenders):
        return race(comparison, contenders, repetitions, say)


# Rival pipelines

PIPELINES = {"torchvision": bench_loaders.torchvision_batches, "timm": bench_loaders.timm_batches}


def pipeline_work(pipeline: str, folder: Path, pixels: int, workers: int, switches: Switches, device: str) -> Work:
    """One epoch of a plain training loop over another pipeline, without the sums that ours keeps."""
    where = torch.device(device)
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # how a script's loader starts its workers on Linux
    batches = PIPELINES[pipeline](folder, pixels, RECIPE.batch_size, workers, where, AugmentConfig())
    step = bare_step(MAIN, switches, where)

    def work() -> int:
        items = 0
        for x, y in batches:
            step(x.to(where, non_blocking=True), y.to(where, non_blocking=True))
            items += len(y)
        return items

    return work


def folder_work(folder: Path, pixels: int, cache: Path, device: str) -> Work:
    """One epoch of the real trainer over the files of `folder`, which are decoded once, before the first lap."""
    return trainer_work(MAIN, data.load(folder, pixels, cache=cache, progress=False), device, saves=False)


def growing_work(folder: Path, pixels: int, cache: Path, device: str) -> Work:
    """A whole training of 20 epochs as the experiment `growing_images` has it, on a CPU over two batches only."""
    cells = data.load(folder, pixels, cache=cache, progress=False)
    if device == "cpu":
        cells = cells.subset(range(min(len(cells), 2 * RECIPE.batch_size)))
    config = replace(plans.experiment("growing_images").train, epochs=20)
    trainer = Trainer(ModelConfig(MAIN), config, AugmentConfig(), device, progress=False)

    def work() -> int:
        trainer.fit(cells)
        return config.epochs * len(cells)

    return work


def against_pipelines(folder: Path, pixels: int, cache: Path, repetitions: int, device: str, say: Say) -> Comparison:
    """Our epoch over the files of `folder`/train against the same network fed by ImageFolder and by timm."""
    workers = os.cpu_count() or 1
    threads = torch.get_num_threads()
    half = "float16" if device == "cuda" else "float32"
    plain, ours = Switches(precision=half), Switches(True, True, True, half)

    def rival(name: str, switches: Switches) -> list[Lane]:
        return [Lane(device, threads, pipeline_work, name, folder / "train", pixels, workers, switches, device)]

    contenders = {
        "ImageFolder, DataLoader": rival("torchvision", plain),
        "ImageFolder, DataLoader, our step": rival("torchvision", ours),
        "timm's loader": rival("timm", plain),
        "this trainer": [Lane(device, threads, folder_work, folder, pixels, cache, device)],
        "this trainer, images that grow": [Lane(device, threads, growing_work, folder, pixels, cache, device)],
    }
    comparison = Comparison(
        f"{MAIN}, {pixels} pixels, JPEG files, {workers} workers",
        "ImageFolder, DataLoader",
        notes={
            "timm's loader": "it neither turns nor shifts pictures",
            "this trainer, images that grow": "from half the side to the whole; `growing_images` is its accuracy",
        },
    )
    with lanes(contenders):
        return race(comparison, contenders, repetitions, say)


# Switch by switch

NAIVE = "plain loop"


def switch_rows(device: str, compiled: bool, alone: bool) -> Iterator[tuple[str, Switches, int, int, str]]:
    """Name, switches, threads (0: all), processes and a note of each contender; the first is the base.

    alone: also each switch by itself, and the threads.
    """
    cuda = device == "cuda"
    plain, same = Switches(), "the same arithmetic"
    all_same = Switches(True, not cuda, True)
    yield NAIVE, plain, 0, 1, "float32, contiguous, default allocator and optimiser"
    if alone:
        yield "channels-last", replace(plain, channels_last=True), 0, 1, f"{same}, other kernels"
        yield "fused optimiser", replace(plain, fused=True), 0, 1, same
    if alone and not cuda:
        yield "kept memory", replace(plain, keep_memory=True), 0, 1, same
    yield "all of these", all_same, 0, 1, "what the trainer does in float32"
    for half in ("bfloat16", "float16") if cuda else ("bfloat16",):
        yield f"all of these, {half}", replace(all_same, precision=half), 0, 1, "other rounding"
    if alone and not cuda:
        yield "all of these, one thread", all_same, 1, 1, same
        if (os.cpu_count() or 1) > 1:
            yield "all of these, two processes of one thread", all_same, 1, 2, "two trainings side by side, summed"
    if cuda:
        yield (
            "all of these, float16, graph",
            replace(all_same, precision="float16", graphed=True),
            0,
            1,
            "the trainer's",
        )
    if compiled:
        yield "all of these, compiled", replace(all_same, compiled=True), 0, 1, "torch.compile; other rounding"


def switch_by_switch(
    pixels: int, steps: int, repetitions: int, device: str, compiled: bool, alone: bool, say: Say
) -> Comparison:
    """The main network's bare step under each switch against a plain PyTorch loop; `switch_rows` has the rows."""
    comparison = Comparison(f"{MAIN}, {pixels} pixels, batch {RECIPE.batch_size}", NAIVE)
    contenders = {}
    for name, switches, threads, processes, note in switch_rows(device, compiled, alone):
        arguments = (MAIN, pixels, steps, switches, device)
        threads = threads or torch.get_num_threads()
        contenders[name] = [Lane(device, threads, bare_work, *arguments) for _ in range(processes)]
        comparison.notes[name] = note
    with lanes(contenders):
        return race(comparison, contenders, repetitions, say)
