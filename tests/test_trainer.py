from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import resource
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bloodcell_lib import graphs, machine, models
from bloodcell_lib import trainer as training
from bloodcell_lib.augment import NONE, AugmentConfig
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.models import Classifier, ModelConfig
from bloodcell_lib.recipe import TrainConfig, learning_rate
from bloodcell_lib.trainer import Trainer

LITE = ModelConfig("efficientnet_lite", dropout=0.2, stochastic_depth=0.2)
BARE = ModelConfig("efficientnet_lite", dropout=0.0, stochastic_depth=0.0)
QUICK = TrainConfig(epochs=2, batch_size=16)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# A server that has imported torch but never used it: its forks are real processes that start at once.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["bloodcell_lib.experiments"])


def pictures(n: int = 40, pixels: int = 32, seed: int = 0) -> CellImages:
    """Noise with a bright bar whose place and colour name the class; the mark of image i is its first pixel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (n, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 8
    for i, label in enumerate(labels.tolist()):
        images[i, label % 3, pixels // 8 * label : pixels // 8 * (label + 1)] = 255
        images[i, :, 0, 0] = i
    names = tuple(f"P_{i:06d}.jpg" for i in range(n))
    return CellImages(images, labels, names, tuple(f"{seed}-{i}" for i in range(n)), "drawn bars")


def trainer(train: TrainConfig = QUICK, model: ModelConfig = LITE, augment: AugmentConfig = NONE, **more) -> Trainer:
    return Trainer(model, train, augment, **{"device": "cpu", "progress": False, **more})


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_times(history: list[dict]) -> list[dict]:
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in history]


@contextlib.contextmanager
def watching(register, hook):
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def passes():
    """Lists to fill: (marks of the images, logits) of each training pass, and a context that fills them."""
    seen: list[tuple[list[int], torch.Tensor]] = []

    def hook(module, inputs, output):
        if isinstance(module, Classifier) and module.training:
            marks = (inputs[0][:, 0, 0, 0] * 255).round().int().tolist()
            seen.append((marks, output.detach().clone()))

    return seen, watching(register_module_forward_hook, hook)


def test_the_loss_falls_and_unseen_images_are_told_apart():
    config = TrainConfig(epochs=8, batch_size=16, learning_rate=3e-3)
    run = trainer(config).fit(pictures(64), pictures(32, seed=1))
    losses = [row["train_loss"] for row in run.history]
    assert losses[-1] < 0.6 * losses[0] and run.history[-1]["train_accuracy"] > 0.8
    assert run.history[-1]["validation_accuracy"] > 0.8
    assert [row["epoch"] for row in run.history] == list(range(1, 9))
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 for row in run.history)
    assert run.peak_memory_bytes > 2**24 and run.wall_seconds > 0 and run.machine["torch"] == torch.__version__


def test_a_seed_gives_the_same_weights_bit_for_bit():
    one, same = (trainer(augment=AugmentConfig(), model=LITE).fit(pictures(), pictures(16)) for _ in range(2))
    assert equal(one.weights, same.weights) and without_times(one.history) == without_times(same.history)
    assert torch.equal(one.probabilities, same.probabilities)
    other = trainer(replace(QUICK, seed=1), augment=AugmentConfig()).fit(pictures())
    assert not equal(one.weights, other.weights)


def test_batches_are_even_none_is_single_and_every_image_comes_once_an_epoch():
    for n, size, sizes in ((33, 32, [17, 16]), (10, 4, [4, 3, 3]), (5, 8, [5])):
        seen, watch = passes()
        with watch:
            trainer(TrainConfig(epochs=2, batch_size=size), BARE).fit(pictures(n))
        assert [len(marks) for marks, _ in seen] == sizes * 2
        marks = [mark for part, _ in seen for mark in part]
        epochs = [marks[:n], marks[n:]]
        assert all(Counter(epoch) == Counter(range(n)) for epoch in epochs)
        assert epochs[0] != epochs[1]
    for n in range(2, 70):
        for size in range(3, 40):
            assert min(map(len, torch.tensor_split(torch.arange(n), max(1, math.ceil(n / size))))) > 1


def test_history_is_weighted_by_images_and_only_the_training_loss_is_smoothed():
    images, held_out = pictures(10), pictures(13, seed=1)
    for smoothing in (0.0, 0.3):
        config = TrainConfig(epochs=1, batch_size=4, label_smoothing=smoothing)
        seen, watch = passes()
        with watch:
            run = trainer(config).fit(images, held_out)
        order = [mark for marks, _ in seen for mark in marks]
        logits, labels = torch.cat([out for _, out in seen]), images.labels[order]
        row = run.history[0]
        one_hot = F.one_hot(labels, 8) * (1 - smoothing) + smoothing / 8
        assert row["train_loss"] == pytest.approx(-(one_hot * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
        assert row["train_accuracy"] == pytest.approx((logits.argmax(1) == labels).sum().item() / 10)
        chosen = run.probabilities[torch.arange(13), held_out.labels]
        assert row["validation_loss"] == pytest.approx(-chosen.log().mean().item(), rel=1e-4)
        hits = (run.probabilities.argmax(1) == held_out.labels).sum().item()
        assert row["validation_accuracy"] == pytest.approx(hits / 13)


def test_the_returned_weights_gave_the_probabilities():
    run = trainer().fit(pictures(), pictures(16))
    model = models.build(LITE)
    model.load_state_dict(run.weights)
    with torch.no_grad():
        out = model.eval()(pictures(16).images / 255).softmax(1)
    torch.testing.assert_close(out, run.probabilities, atol=1e-5, rtol=1e-4)


def test_images_grow_during_training_and_are_measured_whole():
    config = TrainConfig(epochs=4, batch_size=20, start_size=0.5)
    sizes = []

    def hook(module, inputs, output):
        if isinstance(module, Classifier):
            sizes.append((module.training, inputs[0].shape[-1]))

    with watching(register_module_forward_hook, hook):
        grown = trainer(config).fit(pictures(pixels=64), pictures(8, 64, seed=1))
    trained = [size for training, size in sizes if training]
    assert trained == [32, 32, 48, 48, 48, 48, 64, 64]
    assert {size for training, size in sizes if not training} == {64}
    assert not equal(grown.weights, trainer(replace(config, start_size=1.0)).fit(pictures(pixels=64)).weights)


def test_every_step_has_its_own_rate():
    config = TrainConfig(epochs=2, batch_size=8, warmup=1)
    rates = []
    with watching(register_optimizer_step_pre_hook, lambda o, a, k: rates.append(o.param_groups[0]["lr"])):
        run = trainer(config).fit(pictures(32))
    assert rates == [learning_rate(config, i / 4) for i in range(8)]
    assert [row["learning_rate"] for row in run.history] == [rates[3], rates[7]]


def one_step(**changes) -> dict[str, torch.Tensor]:
    config = {"epochs": 1, "batch_size": 8, "schedule": "constant", "learning_rate": 0.01, "clip": 0.0, **changes}
    return trainer(TrainConfig(**config)).fit(pictures(8)).weights


def test_weight_decay_is_decoupled_and_adamws_alone():
    plain = one_step(weight_decay=0.0)
    torch.manual_seed(0)
    start = models.build(LITE).state_dict()
    decayed = one_step(weight_decay=0.5)
    for name in ("net.head.weight", "net.stem.0.weight", "net.stages.0.0.depthwise.0.weight"):
        torch.testing.assert_close(decayed[name] - plain[name], -0.01 * 0.5 * start[name], atol=1e-6, rtol=1e-3)
        assert (plain[name] - start[name]).abs().max() == pytest.approx(0.01, rel=1e-2)  # Adam's first step
    assert equal(one_step(optimiser="adam", weight_decay=0.5), one_step(optimiser="adam", weight_decay=0.0))
    for name, value in one_step(optimiser="adam").items():
        torch.testing.assert_close(value, plain[name])


def test_clipping_bounds_the_gradient():
    norms = []

    def hook(optimiser, args, kwargs):
        grads = [p.grad for group in optimiser.param_groups for p in group["params"]]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item())

    with watching(register_optimizer_step_pre_hook, hook):
        trainer(replace(QUICK, clip=0.0)).fit(pictures())
        free, norms[:] = list(norms), []
        trainer(replace(QUICK, clip=0.05)).fit(pictures())
    assert min(free) > 0.05 and max(norms) <= 0.05 * 1.001 and min(norms) > 0.049


def test_a_sharpness_aware_step_takes_the_gradient_uphill_and_starts_from_below(monkeypatch):
    """One step of plain descent, checked against the two gradients of Foret et al. 2021 taken by hand."""
    rho = 0.05
    wants = trainer(TrainConfig(epochs=1, batch_size=40, sharpness=rho, clip=0.0), BARE)
    cells = pictures()
    wants._build(cells)
    wants.optimiser = torch.optim.SGD(wants.model.parameters(), 1.0)
    wants.model.train()
    x, y = cells.images / 255, cells.labels
    before = [weight.detach().clone() for weight in wants.model.parameters()]

    def gradient() -> list[torch.Tensor]:
        loss = wants._loss(wants.model(x, added=False), y)
        return torch.autograd.grad(loss, list(wants.model.parameters()))

    first = gradient()
    norm = torch.sqrt(sum((g**2).sum() for g in first))
    with torch.no_grad():
        for weight, g in zip(wants.model.parameters(), first):
            weight += rho * g / norm
    uphill = gradient()
    with torch.no_grad():
        for weight, start in zip(wants.model.parameters(), before):
            weight.copy_(start)
    wants._step(x, y)
    for weight, start, g in zip(wants.model.parameters(), before, uphill):
        torch.testing.assert_close(weight.detach(), start - g, atol=1e-5, rtol=1e-4)


def test_a_sharpness_aware_step_that_overflows_leaves_no_trace():
    wants = trainer(TrainConfig(epochs=1, batch_size=40, sharpness=0.05), BARE)
    cells = pictures()
    wants._build(cells)
    wants.dtype, wants.scaler = torch.float16, torch.amp.GradScaler("cpu", init_scale=2.0**30)
    wants.model.train()
    before = [weight.detach().clone() for weight in wants.model.parameters()]
    wants._step(cells.images / 255, cells.labels)
    assert wants.scaler.get_scale() < 2.0**30, "it did overflow"
    assert all(torch.equal(weight, old) for weight, old in zip(wants.model.parameters(), before))
    assert all(value.isfinite().all() for value in wants.model.state_dict().values())


@pytest.mark.parametrize("way", [{"mixup": 0.4}, {"cutmix": 1.0}, {"sharpness": 0.05}])
def test_it_learns_in_every_way(way):
    run = trainer(TrainConfig(epochs=14, batch_size=16, learning_rate=3e-3, **way), BARE).fit(pictures(160))
    losses = [row["train_loss"] for row in run.history]
    assert losses[-1] < 0.8 * losses[0]
    assert run.history[-1]["train_accuracy"] > 0.5


def test_distilling_mixes_what_teachers_say_into_each_images_label(monkeypatch):
    images = pictures()
    taught = torch.rand(40, 8, generator=torch.Generator().manual_seed(3))
    taught /= taught.sum(1, keepdim=True)
    t, seen = trainer(replace(QUICK, epochs=1, distil=0.25), BARE), []

    def watched(scores, targets, **more):
        seen.append(targets)
        return cross_entropy(scores, targets, **more)

    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", watched)
    row = t.fit(images, taught=taught).history[0]
    targets = torch.cat(seen)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))  # the training's own draw
    expected = 0.75 * F.one_hot(images.labels, 8) + 0.25 * taught
    torch.testing.assert_close(targets, expected[order])
    assert 0 <= row["train_accuracy"] <= 1
    unheard = trainer(QUICK, BARE).fit(images, taught=taught).weights
    assert equal(unheard, trainer(QUICK, BARE).fit(images).weights)


def test_a_recipe_that_goes_on_after_another_starts_from_its_weights(tmp_path):
    images, checkpoint = pictures(), tmp_path / "run.pt"
    start = trainer(QUICK, BARE).fit(images).weights
    config = replace(QUICK, after="main")
    whole = trainer(config, BARE).fit(images, start=start)
    assert whole.history[0]["train_loss"] < trainer(QUICK, BARE).fit(images).history[0]["train_loss"]
    cut = trainer(config, BARE, checkpoint=checkpoint).epochs(images, start=start)
    next(cut)
    cut.close()
    with pytest.raises(OtherRun, match="start"):
        trainer(config, BARE, checkpoint=checkpoint).fit(images, start=whole.weights)
    assert equal(trainer(config, BARE, checkpoint=checkpoint).fit(images, start=start).weights, whole.weights)
    for recipe, given in ((config, None), (QUICK, start)):
        with pytest.raises(BloodcellError, match="exactly where weights are given"):
            trainer(recipe, BARE).fit(images, start=given)
    with pytest.raises(BloodcellError, match="of another network"):
        trainer(config, BARE).fit(images, start={"weight": torch.zeros(3)})


def test_a_training_goes_on_with_the_same_teachers_alone(tmp_path):
    teachers = torch.rand(2, 40, 8, generator=torch.Generator().manual_seed(3))
    mine, other = teachers / teachers.sum(2, keepdim=True)
    config, checkpoint = replace(QUICK, distil=0.5), tmp_path / "run.pt"
    whole = trainer(config, BARE).fit(pictures(), taught=mine)
    cut = trainer(config, BARE, checkpoint=checkpoint).epochs(pictures(), taught=mine)
    next(cut)
    cut.close()
    with pytest.raises(OtherRun, match="taught"):
        trainer(config, BARE, checkpoint=checkpoint).fit(pictures(), taught=other)
    assert equal(trainer(config, BARE, checkpoint=checkpoint).fit(pictures(), taught=mine).weights, whole.weights)


def test_weight_averaging_is_the_exponential_average_of_every_step_buffers_too():
    decay, held_out = 0.7, pictures(16, seed=1)
    t = trainer(replace(QUICK, average=decay))
    mean: dict[str, torch.Tensor] = {}
    steps: list[float] = []

    def hook(optimiser, args, kwargs):
        kept = min(decay, (1 + len(steps)) / (10 + len(steps)))  # less in the beginning
        for name, value in t.model.state_dict().items():
            value = value.double()
            mean[name] = mean[name] * kept + value * (1 - kept) if name in mean else value.clone()
        steps.append(kept)

    with watching(register_optimizer_step_post_hook, hook):
        run = t.fit(pictures(), held_out)
    assert min(steps) < decay, "too few steps to see the beginning"
    assert run.weights.keys() == t.model.state_dict().keys()
    floats = [name for name, value in run.weights.items() if value.is_floating_point()]
    assert any("running_var" in name for name in floats)
    for name in floats:
        torch.testing.assert_close(run.weights[name].double(), mean[name], atol=1e-5, rtol=1e-4)
    assert not equal(run.weights, t.model.state_dict())
    assert torch.equal(t.measure(held_out.images, held_out.labels)[2], run.probabilities)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_runs_the_same_lines_on_a_cpu(precision):
    t = trainer(replace(QUICK, precision=precision))
    run = t.fit(pictures(), pictures(16))
    assert t.dtype is getattr(torch, precision) and not t.scaler.is_enabled()
    assert run.probabilities.dtype == torch.float32 and run.probabilities.isfinite().all()
    assert all(value.dtype != t.dtype for value in run.weights.values())
    assert not equal(run.weights, trainer().fit(pictures()).weights)


# Resuming


def train_here(folder: Path, average: float, steps=None, limit: int | None = None) -> None:
    """What a process of its own does: trains with a checkpoint, tells each step, leaves `result.pt`."""
    torch.set_num_threads(1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if steps is not None:
        register_optimizer_step_post_hook(lambda *_: steps.send("step"))
    config = TrainConfig(epochs=6, batch_size=16, average=average, learning_rate=3e-3)
    t = trainer(config, augment=AugmentConfig(), checkpoint=folder / "run.pt")
    try:
        run = t.fit(pictures(), pictures(16, seed=1))
    except BloodcellError as error:
        steps.send(str(error))
        return
    torch.save({"history": run.history, "weights": run.weights, "probabilities": run.probabilities}, folder / "new.pt")
    os.replace(folder / "new.pt", folder / "result.pt")


def in_a_process(folder: Path, average: float, until=None, limit: int | None = None) -> list[str]:
    """Trains in a process, which is killed with SIGKILL once `until(messages)` says so; gives the messages."""
    folder.mkdir(exist_ok=True)
    receive, send = processes.Pipe(duplex=False)
    process = processes.Process(target=train_here, args=(folder, average, send, limit))
    process.start()
    send.close()
    messages: list[str] = []
    try:
        while True:
            with contextlib.suppress(EOFError):
                while receive.poll(0):
                    messages.append(receive.recv())
            if until is not None and until(messages):
                process.kill()
            if not process.is_alive():
                break
            time.sleep(0.001)
    finally:
        process.kill()
        process.join()
    return messages


@pytest.mark.parametrize("average", [0.0, 0.8])
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, average):
    in_a_process(tmp_path / "whole", average)
    folder, rng = tmp_path / "cut", random.Random(average)

    def while_writing(messages):
        return (len(messages) >= 3 and any(folder.glob(".run.pt.*"))) or len(messages) >= 7

    in_a_process(folder, average, lambda messages: len(messages) >= 2)  # before there is a checkpoint
    assert not (folder / "run.pt").exists() and not (folder / "result.pt").exists()
    in_a_process(folder, average, while_writing)
    in_a_process(folder, average, lambda messages: len(messages) >= 4 and rng.random() < 0.1)
    kept = torch.load(folder / "run.pt", weights_only=True)["history"]
    assert 1 <= len(kept) < 6
    messages = in_a_process(folder, average)
    assert len(messages) == 3 * (6 - len(kept))  # it went on, and did not start afresh
    whole, cut = (torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("whole", "cut"))
    assert equal(whole["weights"], cut["weights"])
    assert torch.equal(whole["probabilities"], cut["probabilities"])
    assert without_times(whole["history"]) == without_times(cut["history"])


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    trainer(checkpoint=path).fit(pictures())
    return path


def test_a_finished_checkpoint_is_measured_not_trained(checkpoint):
    with watching(register_optimizer_step_pre_hook, lambda *_: pytest.fail("trained again")):
        run = trainer(checkpoint=checkpoint).fit(pictures(), pictures(16))
    fresh = trainer().fit(pictures(), pictures(16))
    assert equal(run.weights, fresh.weights) and torch.equal(run.probabilities, fresh.probabilities)
    afresh = trainer(checkpoint=checkpoint, resume=False).fit(pictures())
    assert equal(afresh.weights, fresh.weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": replace(QUICK, learning_rate=0.5)}, r"learning_rate 0.001, not 0.5"),
        ({"train": replace(QUICK, epochs=3)}, r"epochs 2, not 3"),
        ({"train": replace(QUICK, seed=1)}, r"seed 0, not 1"),
        ({"model": replace(LITE, dropout=0.1)}, r"dropout 0.2, not 0.1"),
        ({"augment": replace(NONE, rotation=5.0)}, r"rotation 0.0, not 5.0"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(checkpoint, changes, said):
    with pytest.raises(BloodcellError, match=f"another configuration .{said}"):
        trainer(checkpoint=checkpoint, **changes).fit(pictures())


def test_a_checkpoint_older_than_a_setting_goes_on(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    model, train, augment, seen = json.loads(saved["identity"])
    del model["norm"], model["grey_world"], augment["stain"]
    torch.save(saved | {"identity": json.dumps([model, train, augment, seen])}, checkpoint)
    with watching(register_optimizer_step_pre_hook, lambda *_: pytest.fail("trained again")):
        run = trainer(checkpoint=checkpoint).fit(pictures())
    assert len(run.history) == QUICK.epochs
    with pytest.raises(BloodcellError, match="norm batch, not group"):
        trainer(checkpoint=checkpoint, model=replace(LITE, norm="group")).fit(pictures())


def test_a_checkpoint_of_other_images_is_refused(checkpoint):
    with pytest.raises(BloodcellError, match=r"another configuration .images"):
        trainer(checkpoint=checkpoint).fit(pictures(seed=1))
    files = pictures()
    cropped = replace(files, images=files.images[..., 2:-2, 2:-2])  # the same files, seen otherwise
    with pytest.raises(BloodcellError, match=r"another configuration .mean colour"):
        trainer(checkpoint=checkpoint).fit(cropped)


def test_a_damaged_checkpoint_is_refused_and_left(checkpoint):
    whole = checkpoint.read_bytes()
    saved = torch.load(checkpoint, weights_only=True)
    other_network = models.build(ModelConfig("resnet18")).state_dict()
    damages = [b"", b"no checkpoint", whole[: len(whole) // 2], whole[:-100]]
    for i, damage in enumerate([*damages, {"a": 1}, saved | {"state": saved["state"] | {"model": other_network}}]):
        if isinstance(damage, bytes):
            checkpoint.write_bytes(damage)
        else:
            torch.save(damage, checkpoint)
        before = checkpoint.read_bytes()
        with pytest.raises(BloodcellError, match=r"run\.pt is not a whole checkpoint: remove it"):
            trainer(checkpoint=checkpoint).fit(pictures())
        assert checkpoint.read_bytes() == before, i


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    path = tmp_path / "run.pt"
    for batch in (8, 40):  # broken within the epoch, and by its last step, which the training loss does not show
        config = TrainConfig(epochs=3, batch_size=batch, learning_rate=1e30, clip=0.0)
        with pytest.raises(BloodcellError, match=r"finite number in epoch 1: lower the learning rate .it is 1e\+30"):
            trainer(config, checkpoint=path).fit(pictures(), pictures(16))
        assert list(tmp_path.iterdir()) == []


def test_the_last_good_epoch_is_kept_when_a_later_one_breaks(tmp_path):
    path, config, steps = tmp_path / "run.pt", replace(QUICK, epochs=3), []

    def poison(optimiser, args, kwargs):
        steps.append(1)
        if len(steps) == 9:  # the last of epoch 3
            optimiser.param_groups[0]["params"][0].data[0] = float("inf")

    with (
        watching(register_optimizer_step_post_hook, poison),
        pytest.raises(BloodcellError, match=r"epoch 3; the last good epoch is in .*run\.pt: lower"),
    ):
        trainer(config, checkpoint=path).fit(pictures())
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    resumed, whole = trainer(config, checkpoint=path).fit(pictures()), trainer(config).fit(pictures())
    assert equal(resumed.weights, whole.weights)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    messages = in_a_process(tmp_path / "full", 0.0, limit=200_000)
    assert "Cannot write" in messages[-1] and "Free some space" in messages[-1]
    assert list((tmp_path / "full").iterdir()) == []


# Bad input, and the machine


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start_size": 0.0}, "start_size is 0.0: give more than 0 and at most 1"),
        ({"optimiser": "sgd"}, "Unknown optimiser 'sgd': choose one of adamw, adam"),
        ({"schedule": "linear"}, "Unknown schedule 'linear': choose one of cosine, step, constant"),
        ({"precision": "float8"}, "Unknown precision 'float8': choose one of float32, float16, bfloat16"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"average": -0.5}, "average is -0.5"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"warmup": -1}, "warmup is -1"),
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"sharpness": float("nan")}, "sharpness is nan"),
        ({"pretrain": -1}, "pretrain is -1"),
        ({"distil": 1.5}, "distil is 1.5: give a share from 0 to 1"),
        ({"seed": 2**70}, "seed is "),
    ],
)
def test_values_that_no_run_can_have_are_told(changes, said):
    with pytest.raises(BloodcellError, match=said):
        trainer(TrainConfig(**changes))


@pytest.mark.parametrize(
    ("train", "finer"), [({"cutmix": 1.0}, True), ({"distil": 0.5}, True), ({"distil": 0.5, "mixup": 0.2}, False)]
)
def test_two_ways_to_change_a_label_are_refused(train, finer):
    with pytest.raises(BloodcellError, match="choose one of finer, mixup with cutmix, and distil"):
        trainer(TrainConfig(**train), ModelConfig("efficientnet_lite", finer=finer))


@pytest.mark.parametrize(
    "taught",
    [
        None,
        torch.full((3, 8), 1 / 8),
        torch.full((40,), 1.0),
        torch.full((40, 3), 1 / 3),
        torch.full((40, 8), 0.5),
        torch.full((40, 8), float("nan")),
    ],
)
def test_distilling_without_probabilities_for_each_image_is_refused(taught):
    with pytest.raises(BloodcellError, match="give `taught`"):
        trainer(replace(QUICK, distil=0.5)).fit(pictures(), taught=taught)


def test_too_few_images_and_unknown_devices_are_told():
    with pytest.raises(BloodcellError, match="1 training images are too few"):
        trainer().fit(pictures(1))
    with pytest.raises(BloodcellError, match="No device 'toaster' here"):
        trainer(device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(BloodcellError, match="No device 'cuda' here"):
            trainer(device="cuda")


def test_peak_memory_counts_from_its_reset():
    cpu = torch.device("cpu")
    before = machine.peak_memory(cpu)
    torch.ones(100_000_000)
    high = machine.peak_memory(cpu)
    assert high >= before and high > 400_000_000
    machine.reset_peak_memory(cpu)
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert machine.peak_memory(cpu) < high - 200_000_000


@cuda
@pytest.mark.parametrize("precision", [None, "bfloat16", "float32"])
def test_a_gpu_learns_and_repeats_itself(precision, tmp_path):
    config = TrainConfig(epochs=8, batch_size=16, learning_rate=3e-3, precision=precision)
    t = trainer(config, augment=AugmentConfig(), device="cuda")
    one = t.fit(pictures(64), pictures(32, seed=1))
    assert t.scaler.is_enabled() == (precision is None)
    assert one.history[-1]["train_loss"] < one.history[0]["train_loss"]
    same = trainer(config, augment=AugmentConfig(), device="cuda").fit(pictures(64), pictures(32, seed=1))
    assert equal(one.weights, same.weights)


def test_without_cuda_a_graph_gives_way_to_plain_steps(monkeypatch, capsys):
    """What a GPU on which recording fails does, as far as a CPU can tell: same numbers, one sentence."""
    if torch.cuda.is_available():
        pytest.skip("a graph would be recorded")
    # A graph's rate is a float32 tensor; the plain run gets the same number.
    monkeypatch.setattr(training, "learning_rate", lambda *given: float(torch.tensor(learning_rate(*given))))
    plain = trainer().fit(pictures(), pictures(16))
    monkeypatch.setattr(graphs, "wanted", lambda device: True)
    t = trainer()
    graphed = t.fit(pictures(), pictures(16))
    assert t.graphs.failed
    assert isinstance(t.optimiser.param_groups[0]["lr"], torch.Tensor) and t.optimiser.param_groups[0]["capturable"]
    assert capsys.readouterr().out.count("Training goes on without a CUDA graph") == 1
    assert equal(graphed.weights, plain.weights)
    assert without_times(graphed.history) == without_times(plain.history)


def test_a_checkpoint_goes_on_with_a_graph_or_without(tmp_path, monkeypatch):
    path, config = tmp_path / "run.pt", replace(QUICK, epochs=4)
    whole = trainer(config).fit(pictures())
    begun = trainer(config, checkpoint=path).epochs(pictures())
    for asked in (False, True, False):
        monkeypatch.setattr(graphs, "wanted", lambda device, asked=asked: asked)
        begun = trainer(config, checkpoint=path).epochs(pictures())
        next(begun)
        begun.close()
    run = trainer(config, checkpoint=path).fit(pictures())
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    for name, value in run.weights.items():
        torch.testing.assert_close(value, whole.weights[name], atol=1e-5, rtol=1e-4)


def test_graphs_are_for_cuda_and_can_be_switched_off(monkeypatch):
    assert graphs.wanted(torch.device("cuda")) and not graphs.wanted(torch.device("cpu"))
    monkeypatch.setenv("BLOODCELL_GRAPHS", "0")
    assert not graphs.wanted(torch.device("cuda"))


@cuda
@pytest.mark.parametrize("n", [64, 72])  # batches of one size, and of two
def test_a_graph_trains_as_plain_steps_do(n, monkeypatch):
    config = TrainConfig(epochs=8, batch_size=16)
    t = trainer(config, augment=AugmentConfig(), device="cuda")
    graphed = t.fit(pictures(n), pictures(32, seed=1))
    assert not t.graphs.failed and len(t.graphs.recordings) == (1 if n == 64 else 2)
    monkeypatch.setenv("BLOODCELL_GRAPHS", "0")
    plain = trainer(config, augment=AugmentConfig(), device="cuda").fit(pictures(n), pictures(32, seed=1))
    for a, b in zip(graphed.history, plain.history):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.05)


@cuda
def test_a_gpu_resumes_with_a_graph(tmp_path):
    path, config = tmp_path / "run.pt", TrainConfig(epochs=6, batch_size=16)
    begun = trainer(config, augment=AugmentConfig(), device="cuda", checkpoint=path).epochs(pictures(64))
    for _ in range(3):
        next(begun)
    begun.close()
    cut, whole = (
        trainer(config, augment=AugmentConfig(), device="cuda", checkpoint=p).fit(pictures(64)) for p in (path, None)
    )
    assert equal(cut.weights, whole.weights)


@cuda
def test_an_epoch_never_waits_for_a_gpu(monkeypatch):
    t = trainer(TrainConfig(epochs=3, batch_size=16), augment=AugmentConfig(blur=1.0), device="cuda")
    begun = t.epochs(pictures(64))
    next(begun)
    next(begun)
    waits, augment = [], t.augment

    def watched(batch, generator):
        torch.cuda.set_sync_debug_mode("error")
        return augment(batch, generator)

    t.augment = watched
    tolist = torch.Tensor.tolist

    def ended(self):
        torch.cuda.set_sync_debug_mode("default")
        waits.append(1)
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "tolist", ended)
    try:
        next(begun)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits  # the sums, once at the end


@cuda
def test_a_gpu_resumes_with_its_scaler(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOODCELL_GRAPHS", "0")  # a replayed step calls no hook
    path, config = tmp_path / "run.pt", TrainConfig(epochs=4, batch_size=16, precision="float16")
    rows = []

    def stop(optimiser, args, kwargs):
        rows.append(1)
        if len(rows) == 8:
            raise KeyboardInterrupt

    with watching(register_optimizer_step_pre_hook, stop), pytest.raises(KeyboardInterrupt):
        trainer(config, device="cuda", checkpoint=path).fit(pictures())
    assert "scale" in torch.load(path, weights_only=True)["state"]["scaler"]
    cut, whole = (trainer(config, device="cuda", checkpoint=p).fit(pictures()) for p in (path, None))
    assert equal(cut.weights, whole.weights)
