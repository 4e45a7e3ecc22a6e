from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from fake_records import write_records
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from bloodcell_lib import compare, models
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.evaluate import by_image, wilson
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import EXPERIMENTS, FOLDS
from bloodcell_lib.records import Record, load_records
from bloodcell_lib.reference import CLAIMS


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


def test_each_claim_states_its_number_and_its_source():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        number = re.match(r"[+\d.,]+", claim.stated)[0].replace(",", "")
        scale = 1e6 if claim.stated.endswith(" M") else 1
        assert float(number) * scale == pytest.approx(claim.value), claim.key
        assert claim.source
        assert claim.elsewhere
        assert {claim.experiment, claim.against} <= {*EXPERIMENTS, ""}


def test_claims_follow_the_rule(study):
    table = compare.claims_table(study)
    assert list(table.index) == [claim.key for claim in CLAIMS]
    for claim in CLAIMS:
        row = table.loc[claim.key]
        if row["verdict"] == compare.UNTESTED:
            assert not claim.kind or claim.kind == "memory"
            assert row["measured"] == ""
            assert np.isnan(row["low"])
        else:
            inside = row["low"] - claim.rounding <= claim.value <= row["high"] + claim.rounding
            assert row["verdict"] == (compare.AGREES if inside else compare.DIFFERS)
    untested = set(table.index[table["verdict"] == compare.UNTESTED])
    assert untested == {
        *("test_accuracy", "training_time", "inference_time", "memory"),
        *("mixed_precision", "learning_rate", "se_reduction", "efficientnet_lite_parameters"),
    }


def test_claims_are_measured_as_they_were_made(study):
    table = compare.claims_table(study)
    best = np.array([r.info["best_validation_accuracy"] for r in study if r.experiment == "resnet18"])
    row = table.loc["resnet18_accuracy"]
    assert row["measured"] == f"{100 * best.mean():.2f} ± {100 * best.std(ddof=1):.2f} % (n = 3)"
    of_seeds = 4.303 * best.std(ddof=1) / np.sqrt(3)  # Student's t of three
    wider = [np.hypot(end - best.mean(), of_seeds) for end in wilson(best.mean() * 320, 320)]
    assert [row["low"], row["high"]] == pytest.approx(
        [100 * (best.mean() - wider[0]), 100 * (best.mean() + wider[1])], abs=0.01
    )
    one = compare.claims_table([r for r in study if r.seed == 0]).loc["resnet18_accuracy"]
    assert [one["low"], one["high"]] == pytest.approx(100 * np.array(wilson(best[0] * 320, 320)))
    gain = compare.study_table(study).loc["no_se"]
    row = table.loc["se_gain"]
    assert row["measured"].startswith(f"{-gain['difference']:+.2f} ± ")
    assert [row["low"], row["high"]] == pytest.approx([-gain["high"], -gain["low"]])
    f1 = table.loc["main_f1"]
    assert 0.8 < f1["low"] < f1["high"] <= 1


def test_parameters_are_counted_not_recorded():
    state = torch.random.get_rng_state()
    table = compare.claims_table([])
    assert (torch.random.get_rng_state() == state).all()
    tested = table[table["verdict"] != compare.UNTESTED]
    assert set(tested.index) == {f"{name}_parameters" for name in ("main", "simple_cnn", "resnet18")}
    assert tested["low"].tolist() == [
        models.parameters(models.build(ModelConfig(name))) for name in ("as_described", "simple_cnn", "resnet18")
    ]
    assert tested.loc["simple_cnn_parameters", "verdict"] == compare.AGREES
    assert tested.loc["main_parameters", "verdict"] == compare.DIFFERS


@pytest.mark.parametrize(("profile", "course"), [("demo", True), ("demo/study", True), ("full", False)])
def test_other_images_and_small_budgets_test_no_claim(tmp_path, profile, course):
    write_records(tmp_path, ["main", "no_se"], seeds=(0,), images=64, profile=profile)
    records = load_records(tmp_path)
    for record in records:
        record.info["data"]["course"] = course
    table = compare.claims_table(records)
    assert set(table.loc[["main_accuracy", "se_gain", "main_f1"], "verdict"]) == {compare.UNTESTED}


def test_a_smaller_budget_tests_gains_and_no_accuracy(tmp_path):
    write_records(tmp_path, ["main", "no_se"], seeds=(0, 1), images=64, profile="cpu")
    table = compare.claims_table(load_records(tmp_path))
    for key in ("main_accuracy", "main_f1"):
        assert table.loc[key, "measured"] and table.loc[key, "verdict"] == compare.UNTESTED
    assert table.loc["se_gain", "verdict"] in (compare.AGREES, compare.DIFFERS)


def test_an_accuracy_is_measured_under_full_where_that_has_it_and_a_gain_where_the_study_is(tmp_path):
    write_records(tmp_path / "cpu", ["main", "no_se", "resnet18"], images=64)
    write_records(tmp_path / "full", ["main", "no_se"], seeds=(0,), profile="full", images=64)
    cpu, full = (load_records(tmp_path / name) for name in ("cpu", "full"))
    table, alone = compare.claims_table(cpu, full), compare.claims_table(full)
    for key in ("main_accuracy", "main_f1"):
        assert table.loc[key].equals(alone.loc[key]) and table.loc[key, "verdict"] != compare.UNTESTED
    untouched = ["resnet18_accuracy", "se_gain"]
    assert table.loc[untouched].equals(compare.claims_table(cpu).loc[untouched])
    profiles = ["full", "full", "cpu", "cpu", ""]
    assert table.loc[["main_accuracy", "main_f1", *untouched, "memory"], "profile"].tolist() == profiles


def test_memory_is_told_at_the_size_it_was_claimed_at_and_judges_nothing(tmp_path):
    write_records(tmp_path, ["main"], seeds=(0, 1), images=64, profile="full")
    records = load_records(tmp_path)
    for record, peak in zip(records, (4.16e9, 4.18e9)):
        record.info["machine"]["device"] = "NVIDIA card"
        record.info["peak_memory_bytes"] = peak
    assert compare.claims_table(records).loc["memory", "measured"] == ""
    for record in records:
        record.info["config"]["pixels"] = 224
    row = compare.claims_table(records).loc["memory"]
    assert (row["measured"], row["low"], row["high"]) == ("4.17 ± 0.01 GB (n = 2)", 4.16, 4.18)
    assert row["verdict"] == compare.UNTESTED


@pytest.mark.parametrize(
    ("title", "inside"),
    [
        ("A slim ResNet-18", "a slim ResNet-18"),
        ("ResNet-18, full recipe", "ResNet-18, full recipe"),
        ("CutMix", "CutMix"),
        ("Mixup", "mixup"),
    ],
)
def test_a_proper_name_keeps_its_capital_inside_of_a_sentence(title, inside):
    assert compare.in_sentence(title) == inside
