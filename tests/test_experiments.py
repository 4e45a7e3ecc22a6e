from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_records import write_records
from safetensors.torch import load_file

from bloodcell_lib import drawn_folder, experiments, models, paths, plans, shelf, views
from bloodcell_lib.cells import CLASS_MAP, NAMES
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import EXPERIMENTS, STUDY
from bloodcell_lib.reader import shrunk
from bloodcell_lib.records import Record, in_half, load_record, load_records
from bloodcell_lib.tasks import Task
from bloodcell_lib.trainer import Trainer, sha256

PROFILE = "demo/study"
ONCE = (("epochs", 1),)
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["bloodcell_lib.experiments"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return drawn_folder.write(tmp_path_factory.mktemp("drawn") / "cells", per_class=5, test=0)


@pytest.fixture(scope="module")
def cells(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        found = views.load_images(PROFILE, folder, progress=False)
    return replace(found, images=found.images.clone())


def lite(results: Path, **more) -> Task:
    return Task("efficientnet_lite", **{"seed": 0, "profile": PROFILE, "results": results, "changes": ONCE, **more})


@pytest.fixture(scope="module")
def made(cells, tmp_path_factory) -> tuple[Task, Record]:
    """One run of the main row, with its record: read by many tests, changed by none."""
    task = Task("main", 3, PROFILE, tmp_path_factory.mktemp("runs"), (("epochs", 2),), progress=False)
    return task, experiments.run(task, cells)


def strict(text: str):
    def refuse(word: str):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


# The study


def test_the_study_has_its_sixteen_rows_in_order():
    assert list(STUDY) == [
        *("main", "final", "simple_cnn", "resnet18", "efficientnet_lite", "no_se"),
        *("reg_none", "reg_dropout", "reg_label_smoothing", "reg_stochastic_depth", "reg_weight_decay"),
        *("lr_constant", "lr_step", "aug_none", "aug_flips", "aug_flips_rotation"),
    ]
    folds = [f"cv_fold{k}" for k in range(5)]
    extra = ["simple_cnn_full", "resnet18_full", "efficientnet_lite_full", "as_described", *folds]
    extra += ["growing_images", *(f"without_{name}" for name in NAMES), "with_turns", "with_slim_resnet"]
    best = ["best", "best_final", *(f"best_fold{k}" for k in range(1, 5)), "best_white_point"]
    best += ["best_remedies", "best_in_half", "best_warm", "magnified", *(f"magnified_fold{k}" for k in range(1, 5))]
    best += ["best_longer", "rotated", "hardy"]
    best += [*(f"hardy_fold{k}" for k in range(1, 5)), "hardy_final", *plans.FOLDS["seasoned"]]
    best += [*plans.FOLDS["travelled"], "magnified_final", "seasoned_final", "travelled_final"]
    best += [*(f"travelled_{name}" for name in ("in_half", "at_home", "unseasoned", "at_once"))]
    best += [*plans.FOLDS["patient"], "patient_final"]
    best += [f"patient_not_{lever}" for lever in ("longer", "magnified", "rotated", "scaled", "halved")]
    for name in ("patient_travelled", "well_travelled"):
        best += [*plans.FOLDS[name], f"{name}_final"]
    best += ["best_short"]
    tried = ["group_norm", "stain_jitter", "grey_world", "white_point"]
    tried += ["white_and_stain", "all_remedies", "finer_labels"]
    parts = [name for name, row in EXPERIMENTS.items() if row.group == "part"]
    assert len(parts) == 27 and all(name.startswith("short_") for name in parts)
    cleaning = [f"short_fold{k}" for k in range(1, 5)]
    cleaning += [f"cv_pair{j}{k}" for j in range(5) for k in range(j + 1, 5)]
    cleaning += ["short_distilled"]  # after its teachers
    cleaning += [f"cv_clean{k}" for k in range(5)]
    assert list(EXPERIMENTS) == [*STUDY, *extra, *best, *tried, *parts, *cleaning]
    assert all(row.name == name for name, row in EXPERIMENTS.items())


def test_each_ablation_changes_only_its_own_setting():
    def differs(name: str, base: str = "main") -> set[str]:
        main, row = asdict(EXPERIMENTS[base]), asdict(EXPERIMENTS[name])
        return {k for part in ("model", "train", "augment") for k in main[part] if main[part][k] != row[part][k]}

    alone = {"dropout": "dropout", "stochastic_depth": "stochastic_depth"}
    alone |= {"label_smoothing": "label_smoothing", "weight_decay": "weight_decay", "none": None}
    for name, kept in alone.items():
        assert differs(f"reg_{name}") == {v for v in alone.values() if v} - {kept}
    assert differs("no_se") == {"squeeze_excite"}
    assert differs("lr_constant") == differs("lr_step") == {"schedule"}
    everything = {"flips", "rotation", "scale", "translate", "brightness", "contrast", "saturation", "hue"}
    assert differs("aug_none") == everything
    assert differs("aug_flips") == everything - {"flips"}
    assert differs("aug_flips_rotation") == everything - {"flips", "rotation"}
    assert differs("travelled_in_half", "travelled") == {"precision"}
    assert differs("travelled_at_home", "travelled_in_half") == {"copies"}
    assert differs("travelled_unseasoned", "travelled_in_half") == {"after"}
    assert differs("travelled_at_once", "travelled_in_half") == {"after", "warmup"}
    cpu = plans.PROFILES["cpu"]
    shown = {}
    for name in ("seasoned", "travelled", *plans.variants("travelled", "stage")):
        row = EXPERIMENTS[name]
        shown[name] = round(cpu.epochs * row.length) * (1 + row.train.copies)
    last, before = shown.pop("travelled"), shown.pop("seasoned")
    assert shown["travelled_in_half"] == shown["travelled_at_home"] == last
    assert shown["travelled_unseasoned"] == pytest.approx(before + last, abs=1), "as many pictures"
    first = round(cpu.epochs * EXPERIMENTS["magnified"].length)
    assert shown["travelled_at_once"] == pytest.approx(first + before + last, abs=1)
    for name, changed in (
        *(("longer", set()), ("magnified", set())),
        *(("rotated", {"rotation"}), ("scaled", {"scale"}), ("halved", {"halved"})),
    ):
        row, patient, best = (EXPERIMENTS[row] for row in (f"patient_not_{name}", "patient", "best"))
        assert differs(row.name, "patient") == changed
        assert {k for k in differs("patient", "best") if k not in differs(row.name, "best")} == changed
        assert (row.length == best.length) == (name == "longer") and (row.crop == best.crop) == (name == "magnified")
        halved = 1 + row.model.halved
        assert row.size == halved * (best.size if name == "magnified" else patient.size / 2)
    for name in ("best_final", "best_fold1"):
        assert differs(name, "best") == set() and EXPERIMENTS[name].length == EXPERIMENTS["best"].length
    assert EXPERIMENTS["best_final"].part == "all" and plans.FOLDS["best"][0] == "best"
    assert differs("best_white_point", "best") == {"white_point"}
    assert differs("best_remedies", "best") == differs("all_remedies", "best_short")
    assert differs("best_warm", "best") == differs("short_warm", "best_short")
    assert differs("best_short", "best") == set() and EXPERIMENTS["best_short"].length == plans.SHORT
    colours = {"brightness", "contrast", "saturation", "hue"}
    wanted = {
        "group_norm": {"norm"},
        "stain_jitter": {"stain"},
        "grey_world": {"grey_world"},
        "white_point": {"white_point"},
        "white_and_stain": {"white_point", "stain"},
        "all_remedies": {"white_point", "stain", "scale", "blur"},
        "finer_labels": {"finer"},
        "short_main_network": {"name"},
        "short_broad": {"name"},
        "short_broad_kernel": {"name", "kernel"},
        "short_no_turns": {"turns"},
        "short_free_rotation": {"rotation"},
        "short_scale": {"scale"},
        "short_wide_scale": {"scale"},
        "short_colour": colours,
        "short_stain": {"stain"},
        "short_tint": {"tint"},
        "short_blur": {"blur"},
        "short_mixup": {"mixup"},
        "short_cutmix": {"cutmix"},
        "short_average": {"average"},
        "short_warm": {"learning_rate", "warmup", "weight_decay"},
        "short_sharpness": {"sharpness"},
        "short_small_batch": {"batch_size"},
        "short_growing": {"start_size"},
        "short_close_up": {"close_up"},
        "short_halved": {"halved"},
        "short_halved_rotation": {"halved", "rotation"},
        "short_halved_scale": {"halved", "scale"},
        "short_pretrained": {"pretrain"},
        "short_distilled": {"distil"},
    }
    assert {name: differs(name, "best_short") for name in wanted} == wanted
    # The rest change what is seen, or for how long, and nothing else.
    base, views = EXPERIMENTS["best_short"], {}
    for name in plans.variants("best_short", *plans.TRIED):
        row = EXPERIMENTS[name]
        if views_changed := {
            key for key in ("crop", "size", "length", "part") if getattr(row, key) != getattr(base, key)
        }:
            assert EXPERIMENTS[name].size == 2 or not differs(name, "best_short")
            views[name] = views_changed
    assert views == {
        "short_longer": {"length"},
        "short_close": {"crop"},
        "short_wide": {"crop"},
        "short_large": {"size"},
        "short_close_up": {"size"},
        "short_halved": {"size"},
        "short_halved_rotation": {"size"},
        "short_halved_scale": {"size"},
    }
    for name in plans.FOLDS["magnified"]:
        row = EXPERIMENTS[name]
        assert (row.crop, row.size, row.length) == (
            *(EXPERIMENTS["short_close"].crop, EXPERIMENTS["short_large"].size),
            EXPERIMENTS["best"].length,
        )
        assert not differs(name, "best") and row.part == EXPERIMENTS[name.replace("magnified", "best")].part
    hardened = differs("hardy", "best") | {"after", "warmup", "tint", "jpeg"}
    for name in (*plans.FOLDS["seasoned"], "seasoned_final"):
        row, earlier = EXPERIMENTS[name], EXPERIMENTS[name.replace("seasoned", "magnified")]
        assert differs(name, earlier.name) == hardened
        assert (row.crop, row.size, row.part) == (earlier.crop, 2 * earlier.size, earlier.part)
    for name in (*plans.FOLDS["travelled"], "travelled_final"):
        row, earlier = EXPERIMENTS[name], EXPERIMENTS[name.replace("travelled", "seasoned")]
        assert differs(name, earlier.name) == {"after", "copies", "stain", "blur", "tint", "jpeg"}
        assert (row.crop, row.size, row.part) == (earlier.crop, earlier.size, earlier.part)
    for name in (*plans.FOLDS["patient_travelled"], "patient_travelled_final"):
        row, earlier = EXPERIMENTS[name], EXPERIMENTS[name.replace("_travelled", "")]
        assert differs(name, earlier.name) == {"after", "warmup", "copies"} and row.train.after == "patient"
        assert (row.crop, row.size, row.part) == (earlier.crop, earlier.size, earlier.part)
    for name in (*plans.FOLDS["well_travelled"], "well_travelled_final"):
        row, earlier = EXPERIMENTS[name], EXPERIMENTS[name.replace("well", "patient")]
        assert differs(name, earlier.name) == {"after", "copies"} and row.train.after == "patient_travelled"
        assert (row.crop, row.size, row.part) == (earlier.crop, earlier.size, earlier.part)
        shown = [recipe.length * (1 + recipe.train.copies) for recipe in (row, earlier)]
        assert shown[0] == pytest.approx(shown[1])
    for k in range(1, 5):
        for name in (f"cv_clean{k}", f"short_fold{k}", f"cv_pair0{k}"):
            assert differs(name, "best_short") == set() and EXPERIMENTS[name].length == base.length
    assert differs("without_ig") == set() and EXPERIMENTS["without_ig"].epochs == 8
    assert differs("final") == set() and STUDY["final"].part == "all"


def test_variants_are_what_an_experiment_is_the_base_of():
    assert plans.variants("best_short", "labels") == ["finer_labels"]
    assert plans.variants("aug_flips", "lever", "part") == ["with_turns", "with_slim_resnet"]
    assert plans.variants("main", "robustness", "part") == plans.variants("main+epochs=1", "part") == []
    assert "main" not in plans.variants("main", "main", "baseline", "attention")


@pytest.mark.parametrize(
    "name",
    [
        *STUDY,
        "as_described",
        "finer_labels",
        "group_norm",
        "stain_jitter",
        "grey_world",
        "short_close_up",
        "short_halved",
    ],
)
def test_each_row_builds_and_trains_a_step(name, cells):
    plan = Task(name, 0, PROFILE, changes=ONCE).plan()
    few = cells.subset(range(0, 40, 4))
    few = replace(few, images=few.images[..., ::2, ::2])
    run = Trainer(plan.model, plan.train, plan.augment, device="cpu", progress=False).fit(few)
    assert len(run.history) == 1 and np.isfinite(run.history[0]["train_loss"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_plan_has_the_profiles_epochs_and_its_seed(name):
    for profile, budget in plans.PROFILES.items():
        plan = Task(name, 7, profile).plan()
        assert plan.train.seed == 7
        epochs = round(budget.epochs * EXPERIMENTS[name].length)
        assert plan.train.epochs == min(epochs, EXPERIMENTS[name].epochs or epochs)
        assert replace(plan.train, epochs=1, seed=0) == replace(EXPERIMENTS[name].train, epochs=1, seed=0)


def test_parts_of_the_images(cells):
    def sides(part: str) -> tuple[set[str], set[str]]:
        train, held_out = views.divide(cells, part)
        assert sorted(held_out.labels.tolist()) == list(range(8))
        return set(train.sha256), set(held_out.sha256)

    everything = set(cells.sha256)
    train, held_out = sides("split")
    assert len(train) == 32 and train | held_out == everything and not train & held_out
    folds = [sides(f"fold{k}")[1] for k in range(5)]
    assert set.union(*folds) == everything and sum(map(len, folds)) == 40
    assert folds[0] == held_out
    pair = [set(side.sha256) for side in views.divide(cells, "pair13")]
    assert pair[1] == folds[1] | folds[3] and pair[0] == everything - pair[1]
    assert sides("clean2") == sides("fold2")  # as long as no label is suspected
    fewer, _ = views.divide(cells, "clean2", without=[0, 39])
    assert set(fewer.sha256) == everything - folds[2] - {cells.sha256[0], cells.sha256[39]}
    train, held_out = views.divide(cells, "all")
    assert train is cells and held_out is None


def test_a_run_goes_on_after_the_one_that_had_the_same_images_and_seed(cells, tmp_path):
    def small(name: str, **changes) -> tuple[Task, CellImages]:
        task = Task(name, 3, PROFILE, tmp_path, (*ONCE, *changes.items()), progress=False)
        return task, replace(cells, images=shrunk(cells.images, task.view[0]))

    with pytest.raises(BloodcellError, match="`bloodcell study --experiments magnified_fold2 --profile demo` first"):
        experiments.run(*small("seasoned_fold2"))
    earlier = experiments.run(*small("magnified_fold2"))
    kept = load_file(earlier.folder / "weights.safetensors")
    record = experiments.run(*small("seasoned_fold2"))
    assert record.info["data"]["start_sha256"] == sha256(kept)
    assert record.validation().names == earlier.validation().names
    with pytest.raises(BloodcellError, match="no run on 'fold2'"):
        experiments.run(*small("seasoned_fold2", after="nobody"))
    # Pictures that are alike in one view and not in another can move the folds: its weights would have seen ours.
    shutil.rmtree(record.folder)
    path = earlier.folder / "record.json"
    path.write_text(path.read_text().replace(earlier.info["data"]["split_sha256"], "0" * 64))
    with pytest.raises(BloodcellError, match="seed3 trained on other of these images"):
        experiments.run(*small("seasoned_fold2"))


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_is_left_out_is_on_neither_side(cells, name):
    whole, without = (views.divide(cells, part) for part in ("split", f"without_{name}"))
    for side, all_classes in zip(without, whole):
        assert set(side.labels.tolist()) == set(range(8)) - {CLASS_MAP[name]}
        assert set(side.sha256) < set(all_classes.sha256)
        assert len(side) == (all_classes.labels != CLASS_MAP[name]).sum()


def test_a_profile_bounds_the_images_of_a_class(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setitem(plans.PROFILES, "few", replace(plans.PROFILES[PROFILE], name="few", per_class=2))
    few = views.load_images("few", folder, progress=False)
    assert sorted(few.labels.tolist()) == sorted([*range(8)] * 2)
    assert few.fingerprint == views.load_images("few", folder, progress=False).fingerprint


def test_a_study_needs_real_images_the_demo_draws_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("BLOODCELL_DATA", raising=False)
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    with pytest.raises(BloodcellError, match="Profile cpu needs real images: give --data"):
        views.image_folder(None, "cpu")
    assert views.image_folder(tmp_path, "cpu") == tmp_path
    monkeypatch.setenv("BLOODCELL_DATA", str(tmp_path / "mine"))
    assert views.image_folder(None, "demo") == tmp_path / "mine"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task("mian", 0, "cpu"), "Unknown experiment 'mian': choose one of main, final"),
        (Task("main", 0, "gpu"), "Unknown profile 'gpu': choose one of demo"),
        (Task("main", 0, "cpu", changes=(("epoch", 3),)), "Unknown change to a recipe: .*epoch"),
        (Task("main", 0, "cpu", changes=(("epochs", -3),)), "epochs is -3"),
        (Task("main", -1, "cpu"), "seed is -1"),
    ],
)
def test_a_task_that_cannot_be_is_told_before_it_runs(task, said):
    with pytest.raises(BloodcellError, match=said):
        task.plan()


# A run and its record


def test_a_record_says_everything(made, cells):
    task, record = made
    assert sorted(p.name for p in task.folder.iterdir()) == ["record.json", "validation.npz", "weights.safetensors"]
    info = strict((task.folder / "record.json").read_text(encoding="utf-8"))
    assert record.info == info == load_record(task.folder).info
    assert (record.experiment, record.seed, record.profile) == ("main+epochs=2", 3, PROFILE)
    plan, budget = task.plan(), plans.profile(PROFILE)
    config = {"model": asdict(plan.model), "train": asdict(plan.train), "augment": asdict(plan.augment)}
    config |= {"pixels": budget.pixels, "crop": budget.crop, "per_class": budget.per_class, "part": "split"}
    assert info["config"] == json.loads(json.dumps(config))
    assert info["config"]["train"]["epochs"] == 2 and info["config"]["train"]["seed"] == 3
    assert info["format"] == 1 and info["title"] == "DeepEfficientNet" and info["group"] == "main"
    model = models.build(plan.model)
    assert info["model"] == {"parameters": models.parameters(model), "macs": models.macs(model, budget.pixels)}
    train, held_out = views.divide(cells, "split")
    sha256 = views.split_sha256(train, held_out)
    counts = {"train": 32, "validation": 8, "left_out": 0, "course": False, "source": "synthetic cells"}
    assert info["data"] == {**counts, "fingerprint": cells.fingerprint, "split_sha256": sha256}
    assert [row["epoch"] for row in info["history"]] == [1, 2]
    accuracies = [row["validation_accuracy"] for row in info["history"]]
    assert info["final_validation_accuracy"] == accuracies[-1]
    assert info["best_validation_accuracy"] == max(accuracies) == accuracies[info["best_epoch"] - 1]
    assert info["started"] <= info["ended"] and info["started"].endswith("+00:00")
    assert info["wall_seconds"] > 0 and info["peak_memory_bytes"] > 0 and info["machine"]["numpy"] == np.__version__


def test_predictions_are_those_of_the_final_epoch(made, cells):
    task, record = made
    found, held_out = record.validation(), views.divide(cells, "split")[1]
    assert found.names == held_out.names and found.labels.tolist() == held_out.labels.tolist()
    assert found.labels.dtype == np.int64 and found.probabilities.dtype == np.float32
    assert (found.predicted == found.labels).mean() == record.info["final_validation_accuracy"]
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=5e-3)
    model = models.build(ModelConfig(**record.info["config"]["model"]))
    model.load_state_dict(load_file(task.folder / "weights.safetensors"))
    with torch.no_grad():
        out = model.eval()(held_out.images / 255).softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, out, atol=1e-3)


def test_a_record_without_its_weights_is_small(made):
    sizes = {path.name: path.stat().st_size for path in made[0].folder.iterdir()}
    assert sizes["record.json"] + sizes["validation.npz"] < 100_000
    rng = np.random.default_rng(0)  # and a full one: 50 epochs, 640 images
    info = made[1].info | {"history": [made[1].info["history"][0]] * 50}
    names = np.array([f"SNE_{i:06d}.jpg" for i in range(640)])
    target = made[0].results / "full.npz"
    half = rng.dirichlet(np.ones(8), 640).astype(np.float16)
    np.savez_compressed(target, names=names, labels=np.arange(640) % 8, probabilities=half)
    assert target.stat().st_size + len(json.dumps(info, indent=1)) < 100_000


def test_nothing_is_left_beside_a_record(made):
    task, _ = made
    left = {path.relative_to(task.results).as_posix() for path in task.results.rglob("*") if path.is_file()}
    inside = {
        f"{PROFILE}/{task.name}/seed3/{name}" for name in ("record.json", "validation.npz", "weights.safetensors")
    }
    assert left - inside - {"full.npz"} <= {f"{PROFILE}/.checkpoints/{task.name}-seed3.lock"}


def test_what_is_recorded_is_not_run_again(made, cells):
    task, record = made
    before = {path: path.stat().st_mtime_ns for path in task.folder.iterdir()}
    again = experiments.run(replace(task, device="no such device"), cells)  # it would fail if it trained
    assert again.info == record.info
    assert {path: path.stat().st_mtime_ns for path in task.folder.iterdir()} == before


def test_a_record_of_other_images_or_another_configuration_is_refused(cells, tmp_path, small):
    task = replace(lite(tmp_path), profile=small(64))
    experiments.run(task, cells)
    with pytest.raises(BloodcellError, match=r"seed0 was recorded on other images: move it away"):
        experiments.run(task, cells.subset(range(39)))
    path = task.folder / "record.json"
    info = json.loads(path.read_text())
    info["config"]["pixels"] += 1
    path.write_text(json.dumps(info))
    with pytest.raises(BloodcellError, match=r"seed0 was recorded with another configuration: move it away"):
        experiments.run(task, cells)


def test_a_record_older_than_a_setting_is_of_the_same_configuration(cells, tmp_path, small):
    """Whether a setting is new is told by its absence; its default is what was done before there was one."""
    task = replace(lite(tmp_path), profile=small(64))
    made = experiments.run(task, cells)
    path = task.folder / "record.json"
    older = json.loads(path.read_text())
    for part, setting in (("model", "norm"), ("model", "grey_world"), ("augment", "stain")):
        del older["config"][part][setting]
    path.write_text(json.dumps(older))
    again = experiments.run(replace(task, device="no such device"), cells)  # it would fail if it trained
    assert again.info["ended"] == made.info["ended"]
    older["config"]["model"]["norm"] = "group"
    path.write_text(json.dumps(older))
    with pytest.raises(BloodcellError, match="another configuration"):
        experiments.run(task, cells)
    older["config"]["model"] |= {"norm": "batch", "unheard_of": 1}
    path.write_text(json.dumps(older))
    with pytest.raises(BloodcellError, match="another configuration"):
        experiments.run(task, cells)


def test_a_demos_run_makes_way_for_one_on_other_images(cells, tmp_path):
    task, others = lite(tmp_path), replace(cells, names=("renamed.jpg", *cells.names[1:]))
    first = experiments.run(task, cells)
    second = experiments.run(task, others)
    assert first.info["data"]["fingerprint"] != second.info["data"]["fingerprint"] == others.fingerprint
    # And so does what a demo that was cut off left behind.
    shutil.rmtree(task.folder)
    plan = task.plan()
    Trainer(plan.model, plan.train, plan.augment, checkpoint=task.checkpoint, progress=False).fit(cells)
    assert experiments.run(task, others).info["data"]["fingerprint"] == others.fingerprint


def test_changes_stand_in_the_folders_name(cells, tmp_path):
    plain, changed = lite(tmp_path), lite(tmp_path, changes=(("batch_size", 8), ("epochs", 1)))
    assert changed.name == "efficientnet_lite+batch_size=8+epochs=1"
    for task in (plain, changed):
        experiments.run(task, cells)
    assert {r.experiment for r in load_records(tmp_path / PROFILE)} == {plain.name, changed.name}
    assert load_record(changed.folder).info["config"]["train"]["batch_size"] == 8


def test_final_has_no_validation_images(cells, tmp_path):
    record = experiments.run(Task("final", 0, PROFILE, tmp_path, ONCE, progress=False), cells)
    assert not (record.folder / "validation.npz").exists()
    info = record.info
    assert info["data"]["train"] == 40 and info["data"]["validation"] == 0
    keys = ("final_validation_accuracy", "best_validation_accuracy", "best_epoch")
    assert [info[key] for key in keys] == [None] * 3
    assert info["history"][0]["validation_loss"] is info["history"][0]["validation_accuracy"] is None
    with pytest.raises(BloodcellError, match="held no images out"):
        record.validation()


def test_a_folder_that_is_no_record_is_told_before_training(cells, tmp_path):
    task = lite(tmp_path, device="no such device")
    task.folder.mkdir(parents=True)
    (task.folder / "notes.txt").write_text("mine")
    with pytest.raises(BloodcellError, match=r"record\.json is not a whole record: remove its folder"):
        experiments.run(task, cells)
    assert (task.folder / "notes.txt").read_text() == "mine"


def test_what_a_killed_process_left_is_swept(cells, tmp_path):
    task = lite(tmp_path)
    task.checkpoint.parent.mkdir(parents=True)
    torn = task.checkpoint.with_name(f".{task.checkpoint.name}.abc.pt")
    torn.write_bytes(b"half")
    half = task.folder.with_name(".seed0.abc")
    half.mkdir(parents=True)
    (half / "record.json").write_text("{")
    other = task.folder.with_name(".seed01.abc")  # of another seed, which may be under way
    other.mkdir()
    experiments.run(task, cells)
    assert not torn.exists() and not half.exists() and other.exists()


def run_in_process(task: Task, cells: CellImages, said, limit: int | None = None) -> None:
    torch.set_num_threads(1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        said.send(experiments.run(task, cells).info["ended"])
    except BloodcellError as error:
        said.send(str(error))


def start(task: Task, cells: CellImages, limit: int | None = None):
    receive, send = processes.Pipe(duplex=False)
    process = processes.Process(target=run_in_process, args=(task, cells, send, limit))
    process.start()
    send.close()
    return process, receive


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_a_second_process_is_refused_and_the_killed_run_goes_on(cells, tmp_path):
    task = lite(tmp_path, changes=(("epochs", 12),), progress=False)
    process, _ = start(task, cells)
    try:
        wait_for(task.checkpoint.exists)
        with pytest.raises(BloodcellError, match=r"Another process is making .*seed0: wait for it, or stop it"):
            experiments.run(task, cells)
    finally:
        process.kill()
        process.join()
    assert not task.folder.exists()
    done = len(torch.load(task.checkpoint, weights_only=True)["history"])
    record = experiments.run(task, cells)
    assert len(record.info["history"]) == 12 and done >= 1
    assert load_records(tmp_path / PROFILE) == [record] and not task.checkpoint.exists()


def test_two_processes_at_once_make_one_record(cells, tmp_path):
    task = lite(tmp_path, progress=False)
    both = [start(task, cells) for _ in range(2)]
    said = [receive.recv() for _, receive in both]
    for process, _ in both:
        process.join()
    ended = load_record(task.folder).info["ended"]
    assert ended in said
    assert all(word == ended or word.startswith("Another process is making") for word in said)
    assert len(load_records(tmp_path / PROFILE)) == 1


def test_a_full_disk_leaves_nothing_half_written(cells, tmp_path):
    process, receive = start(lite(tmp_path, progress=False), cells, limit=1_000_000)
    word = receive.recv()
    process.join()
    assert "Cannot write" in word and "Free some space" in word
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] in ([], [".lock"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(cells, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BloodcellError, match="Cannot write"):
        experiments.run(lite(tmp_path / "runs"), cells)
    tmp_path.chmod(0o700)


# Reading records


def test_records_come_in_the_studys_order(tmp_path):
    assert load_records(tmp_path / "nothing") == []
    names = ["aug_none", "cv_fold1", "main", "as_described", "final", "cv_fold0", "simple_cnn"]
    write_records(tmp_path, names, seeds=(2, 0), images=16)
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / "main" / ".seed1.abc").mkdir()
    found = [(record.experiment, record.seed) for record in load_records(tmp_path)]
    assert found == [(name, seed) for name in EXPERIMENTS if name in names for seed in (0, 2)]


def test_damaged_records_are_told(tmp_path):
    folder = write_records(tmp_path, ["main"], seeds=(0,), images=16)[0]
    path = folder / "record.json"
    whole = path.read_text()
    info = json.loads(whole)
    short = {key: value for key, value in info.items() if key != "config"}
    unordered, unread = json.dumps(info | {"order": None}), json.dumps(info | {"data": None})
    for damage in ("", whole[:300], "[]", "7", json.dumps(short), unordered, unread, "\ud800"):
        path.write_bytes(damage.encode("utf-8", "surrogatepass"))
        with pytest.raises(BloodcellError, match=r"record\.json is not a whole record: remove its folder"):
            load_records(tmp_path)
    path.write_text(json.dumps(info | {"format": 2}))
    with pytest.raises(BloodcellError, match="has format 2: this version reads format 1"):
        load_records(tmp_path)


def test_damaged_predictions_are_told(tmp_path):
    folder = write_records(tmp_path, ["main"], seeds=(0,), images=16)[0]
    record, path = load_record(folder), folder / "validation.npz"
    whole = path.read_bytes()
    assert len(record.validation().labels) == 16
    for damage in (b"", whole[:200], b"no archive", whole[:-30]):
        path.write_bytes(damage)
        with pytest.raises(BloodcellError, match=r"validation\.npz is missing or damaged"):
            record.validation()
    path.unlink()
    with pytest.raises(BloodcellError, match=r"validation\.npz is missing or damaged"):
        record.validation()


def test_half_precision_keeps_every_winner():
    rng = np.random.default_rng(0)
    even = rng.dirichlet(np.ones(8) * 50, 2000).astype(np.float32)
    close = np.full((3, 8), 0.01, np.float32)
    close[0, [2, 5]] = 0.4700, 0.4701
    close[1, [2, 5]] = 0.4701, 0.4700
    close[2, [0, 7]] = 0.47, np.nextafter(np.float32(0.47), np.float32(1))
    both = np.concatenate([even, close])
    assert (both.astype(np.float16).argmax(1) != both.argmax(1)).any()  # what rounding alone would do
    half = in_half(both)
    assert half.dtype == np.float16
    assert (half.argmax(1) == both.argmax(1)).all()
    np.testing.assert_allclose(half.astype(np.float32), both, atol=6e-4)


def test_publishing_copies_without_weights_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    with pytest.raises(BloodcellError, match="No records in"):
        shelf.publish("cpu")
    for folder in write_records(tmp_path / "runs" / "cpu", ["main", "final"], seeds=(0,), images=16):
        (folder / "weights.safetensors").write_bytes(b"weights")
    new = shelf.publish("cpu")
    assert [path.relative_to(tmp_path / "results" / "cpu").as_posix() for path in new] == ["main/seed0", "final/seed0"]
    assert sorted(p.name for p in new[0].iterdir()) == ["record.json", "validation.npz"]
    assert [p.name for p in new[1].iterdir()] == ["record.json"]
    for name in ("record.json", "validation.npz"):
        assert (new[0] / name).read_bytes() == (tmp_path / "runs" / "cpu" / "main" / "seed0" / name).read_bytes()
    (new[0] / "record.json").write_text("as it was published")
    write_records(tmp_path / "runs" / "cpu", ["no_se"], seeds=(0,), images=16)
    assert [path.parent.name for path in shelf.publish("cpu")] == ["no_se"]
    assert (new[0] / "record.json").read_text() == "as it was published"


@pytest.mark.parametrize("damaged", ["simple_cnn/seed0/validation.npz", "analyses/trust.json"])
def test_what_is_damaged_is_not_published_and_neither_is_the_rest(tmp_path, monkeypatch, damaged):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    write_records(tmp_path / "runs" / "cpu", ["main", "simple_cnn"], seeds=(0,), images=16)
    file = tmp_path / "runs" / "cpu" / damaged
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b'{"cut": ')
    with pytest.raises(BloodcellError, match=f"{file.name} is (missing or damaged|not a whole analysis): remove"):
        shelf.publish("cpu")
    assert not (tmp_path / "results").exists()
