from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fake_records import write_records
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from bloodcell_lib import compare
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.evaluate import by_image
from bloodcell_lib.plans import EXPERIMENTS, FOLDS
from bloodcell_lib.records import Record, load_records


@pytest.fixture
def record(tmp_path):
    """Makes a record of a run that was right where `right` (bool) says so."""

    def make(experiment, seed, right, names=None, group="attention"):
        n = len(right)
        labels = np.arange(n) % 8
        folder = tmp_path / experiment / f"seed{seed}"
        folder.mkdir(parents=True)
        probabilities = np.eye(8)[np.where(right, labels, (labels + 1) % 8)]
        names = np.array([f"{i}.jpg" for i in range(n)] if names is None else names)
        np.savez(folder / "validation.npz", names=names, labels=labels, probabilities=probabilities)
        share = float(np.mean(right))
        info = {
            "title": experiment.partition("+")[0],
            "group": group,
            "seed": seed,
            "data": {"course": True, "validation": n},
            "model": {"parameters": 10, "macs": 20},
            "final_validation_accuracy": share,
            "best_validation_accuracy": share,
        }
        return Record(folder, experiment, seed, "cpu", info)

    return make


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_records(folder, list(EXPERIMENTS), images=320, profile="full")
    return load_records(folder)


def flags(n, wrong, first=0):
    right = np.ones(n, dtype=bool)
    right[first : first + wrong] = False
    return right


def test_identical_predictions_do_not_differ(record):
    ours = [record("a", seed, flags(200, 9, seed)) for seed in range(3)]
    theirs = [record("b", seed, flags(200, 9, seed)) for seed in range(3)]
    assert compare.difference(by_image(ours), by_image(theirs)) == (0, 0, 0, 0, 1, 3)


def test_as_many_mistakes_on_other_images_include_zero(record):
    gain = compare.difference(by_image([record("a", 0, flags(200, 9))]), by_image([record("b", 0, flags(200, 9, 50))]))
    assert gain.mean == 0
    assert gain.low < 0 < gain.high
    assert gain.p == 1
    assert np.isnan(gain.std)


def test_a_much_better_model_excludes_zero(record):
    ours = [record("a", seed, flags(400, 4 + seed)) for seed in range(3)]
    theirs = [record("b", seed, flags(400, 60 + seed)) for seed in range(3)]
    gain = compare.difference(by_image(ours), by_image(theirs))
    assert gain.mean == pytest.approx(14)
    assert 8 < gain.low < 14 < gain.high < 20
    assert gain.p < 1e-20
    assert gain.std == pytest.approx(0)
    back = compare.difference(by_image(theirs), by_image(ours))
    assert (back.mean, back.p) == (-gain.mean, gain.p)
    assert (back.low, back.high) == pytest.approx((-gain.high, -gain.low))


def test_mcnemar_agrees_with_statsmodels(record):
    ours, theirs = record("a", 0, flags(300, 12)), record("b", 0, flags(300, 10, 9))
    # Wrong: images 0 to 11 for ours, 9 to 18 for theirs, so that 9 and 7 are discordant.
    expected = mcnemar([[281, 7], [9, 3]], exact=True).pvalue
    assert compare.difference(by_image([ours]), by_image([theirs])).p == pytest.approx(expected)


def test_disagreements_are_what_mcnemar_counts(record):
    ours, theirs = by_image([record("a", 0, flags(20, 5))]), by_image([record("b", 0, flags(20, 4, first=3))])
    counts = compare.disagreements(ours, theirs)
    assert counts.loc["wrong"].tolist() == [3, 2] and counts.loc["right"].tolist() == [13, 2]
    assert list(counts.columns) == list(counts.index) == ["right", "wrong"]
    other_seed = by_image([record("c", 1, flags(20, 4))])
    assert compare.disagreements(ours, other_seed).to_numpy().sum() == 0
    p = mcnemar(counts, exact=True).pvalue
    assert compare.difference(ours, theirs).p == pytest.approx(p)


def test_the_interval_is_that_of_a_plain_bootstrap(record):
    rng = np.random.default_rng(1)
    rows = [[rng.random(120) < share for _ in range(3)] for share in (0.9, 0.8)]
    ours, theirs = ([record(f"e{k}", seed, right) for seed, right in enumerate(row)] for k, row in enumerate(rows))
    gain = compare.difference(by_image(ours), by_image(theirs))
    change = 100 * (np.array(rows[0], dtype=float) - np.array(rows[1]))  # (seeds, images)
    means = []
    for _ in range(4000):
        seeds, images = rng.integers(0, 3, 3), rng.integers(0, 120, 120)
        means.append(change[np.ix_(seeds, images)].mean())
    assert [gain.low, gain.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.6)


def test_images_are_paired_by_name_and_runs_by_seed(record):
    ours = by_image([record("a", 0, flags(80, 8)), record("a", 1, flags(80, 16))])
    shuffled = by_image([record("b", 1, flags(80, 16)), record("b", 2, flags(80, 0))]).sample(frac=1, random_state=0)
    assert compare.difference(ours, shuffled) == pytest.approx((0, np.nan, 0, 0, 1, 1), nan_ok=True)


def test_nothing_in_common_is_nan(record):
    ours = by_image([record("a", 0, flags(16, 2))])
    other_seed = by_image([record("b", 1, flags(16, 2))])
    other_images = by_image([record("c", 0, flags(16, 2), names=[f"x{i}.jpg" for i in range(16)])])
    for theirs in (other_seed, other_images):
        assert compare.difference(ours, theirs).seeds == 0
        assert np.isnan(compare.difference(ours, theirs)[:5]).all()


def test_study_table_reads_the_records(study):
    table = compare.study_table(study, resamples=500)
    validated = [name for name, row in EXPERIMENTS.items() if row.part != "all"]
    assert list(table.index) == validated
    assert tuple(table.columns) == compare.COLUMNS
    finals = [r.info["final_validation_accuracy"] for r in study if r.experiment == "no_se"]
    mains = [r.info["final_validation_accuracy"] for r in study if r.experiment == "main"]
    row = table.loc["no_se"]
    assert row["mean"] == pytest.approx(np.mean(finals))
    assert row["std"] == pytest.approx(np.std(finals, ddof=1))
    assert row["mean_low"] <= row["mean"] <= row["mean_high"]
    assert row["difference"] == pytest.approx(100 * (np.mean(finals) - np.mean(mains)))
    assert row["low"] <= row["difference"] <= row["high"]
    assert (row["seeds"], row["common_seeds"], row["images"], row["profile"]) == (3, 3, 320, "full")
    assert table.loc["simple_cnn", "high"] < -5
    alone = ["main", *(f"cv_fold{k}" for k in range(5)), *(f"best_fold{k}" for k in range(1, 5))]
    assert table.loc[alone, ["difference", "low", "high", "p", "p_holm"]].isna().all(axis=None)


def test_holm_runs_over_each_family(study):
    table = compare.study_table(study, resamples=100)
    tested = table[table["p"].notna()]
    beyond = tested["group"].isin(compare.BEYOND)
    assert (~beyond).sum() == 18  # without main and final, folds, and networks that miss a class
    wanted = {name for name, row in EXPERIMENTS.items() if row.group in compare.BEYOND}
    assert {"finer_labels", "group_norm", "growing_images", "with_turns", "short_scale"} < wanted
    # What others are set against is itself set against main; all images leave none to compare on.
    assert set(tested.index[beyond]) == {name for name in wanted if EXPERIMENTS[name].part != "all"}
    for family in (tested[~beyond], tested[tested["group"] == "robustness"]):
        theirs = multipletests(family["p"], method="holm")[1]
        assert family["p_holm"].to_numpy() == pytest.approx(theirs)


def test_a_lever_is_compared_with_what_it_is_added_to(study):
    means = {
        name: np.mean([r.info["final_validation_accuracy"] for r in study if r.experiment == name])
        for name in ("with_turns", "aug_flips")
    }
    table = compare.study_table(study, resamples=100)
    assert table.loc["with_turns", "difference"] == pytest.approx(100 * (means["with_turns"] - means["aug_flips"]))


def test_the_best_recipe_is_compared_with_main_and_what_is_tried_on_it_with_its_short_form(study):
    finals = {
        name: np.mean([r.info["final_validation_accuracy"] for r in study if r.experiment == name])
        for name in ("main", "best", "best_short", "short_no_turns", "group_norm")
    }
    table = compare.study_table(study, resamples=100)
    assert table.loc["best", "difference"] == pytest.approx(100 * (finals["best"] - finals["main"]))
    for name, base in (("best_short", "main"), ("short_no_turns", "best_short"), ("group_norm", "best_short")):
        assert table.loc[name, "difference"] == pytest.approx(100 * (finals[name] - finals[base]))


def test_folds_together_hold_each_image_once(study):
    parts = [[r for r in study if r.experiment == name] for name in FOLDS["main"]]
    frame = compare.out_of_fold(parts)
    assert len(frame) == sum(part[0].info["data"]["validation"] for part in parts)
    assert frame.index.is_unique and list(frame.columns) == [0, 1, 2]
    assert list(compare.out_of_fold([parts[0][:1], *parts[1:]]).columns) == [0]
    assert compare.out_of_fold([parts[0], []]).empty


def test_averaged_recipes_call_an_image_what_their_probabilities_together_do(study):
    recipes = [[[r for r in study if r.experiment == name] for name in FOLDS[recipe]] for recipe in ("best", "hardy")]
    alone, turned = compare.averaged(recipes[:1]), [recipes[1][::-1], recipes[0]]
    pd.testing.assert_frame_equal(alone, compare.out_of_fold(recipes[0])[[0]], check_dtype=False)
    both = compare.averaged(turned)
    assert len(both) == len(alone) and not both[0].reindex(alone.index).equals(alone[0])
    runs = [part[0].validation() for recipe in recipes for part in recipe]
    for (label, name), called in both[0].items():
        given = [run.probabilities[run.names.index(name)] for run in runs if name in run.names]
        assert called == np.mean(given, axis=0).argmax(), (label, name)


def test_another_reference_and_a_missing_one(study):
    few = [r for r in study if r.experiment in ("reg_none", "reg_dropout")]
    table = compare.study_table(few, reference="reg_none", resamples=100)
    assert np.isnan(table.loc["reg_none", "difference"])
    assert table.loc["reg_dropout", "common_seeds"] == 3
    alone = compare.study_table(few, resamples=100)
    assert alone[["difference", "p", "p_holm"]].isna().all(axis=None)
    assert alone["mean"].notna().all()
    assert tuple(compare.study_table([]).columns) == compare.COLUMNS


def test_two_records_of_one_run_are_refused(study):
    with pytest.raises(BloodcellError, match="Two records of main, seed 0"):
        compare.study_table([study[0], study[0]], resamples=10)


def test_a_run_by_hand_says_what_was_changed(record):
    table = compare.study_table([record("main+batch_size=64", 0, flags(16, 2))], resamples=10)
    assert table["title"].tolist() == ["DeepEfficientNet, batch_size=64"]


@pytest.mark.parametrize(
    ("title", "inside"),
    [
        ("A slim ResNet-18", "a slim ResNet-18"),
        ("ResNet-18, main recipe", "ResNet-18, main recipe"),
        ("CutMix", "CutMix"),
        ("Mixup", "mixup"),
    ],
)
def test_a_proper_name_keeps_its_capital_inside_of_a_sentence(title, inside):
    assert compare.in_sentence(title) == inside


def test_seeds_stay_in_order_though_a_row_moved_in_the_table_between_them(tmp_path):
    write_records(tmp_path, ["best", "main"], seeds=(0, 1))
    path = tmp_path / "best" / "seed1" / "record.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"order": info["order"] - 1}))
    found = [(record.experiment, record.seed) for record in load_records(tmp_path)]
    assert found == [("main", 0), ("main", 1), ("best", 0), ("best", 1)]
