from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from fake_records import write_records

from bloodcell_lib import claims, compare, models
from bloodcell_lib.evaluate import wilson
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import EXPERIMENTS
from bloodcell_lib.records import load_records
from bloodcell_lib.reference import CLAIMS


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_records(folder, list(EXPERIMENTS), images=320, profile="full")
    return load_records(folder)


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
    table = claims.claims_table(study)
    assert list(table.index) == [claim.key for claim in CLAIMS]
    for claim in CLAIMS:
        row = table.loc[claim.key]
        if row["verdict"] == claims.UNTESTED:
            assert not claim.kind or claim.kind == "memory"
            assert row["measured"] == ""
            assert np.isnan(row["low"])
        else:
            inside = row["low"] - claim.rounding <= claim.value <= row["high"] + claim.rounding
            assert row["verdict"] == (claims.AGREES if inside else claims.DIFFERS)
    untested = set(table.index[table["verdict"] == claims.UNTESTED])
    assert untested == {
        *("test_accuracy", "training_time", "inference_time", "memory"),
        *("mixed_precision", "learning_rate", "se_reduction", "efficientnet_lite_parameters"),
    }


def test_claims_are_measured_as_they_were_made(study):
    table = claims.claims_table(study)
    best = np.array([r.info["best_validation_accuracy"] for r in study if r.experiment == "resnet18"])
    row = table.loc["resnet18_accuracy"]
    assert row["measured"] == f"{100 * best.mean():.2f} ± {100 * best.std(ddof=1):.2f} % (n = 3)"
    of_seeds = 4.303 * best.std(ddof=1) / np.sqrt(3)  # Student's t of three
    wider = [np.hypot(end - best.mean(), of_seeds) for end in wilson(best.mean() * 320, 320)]
    assert [row["low"], row["high"]] == pytest.approx(
        [100 * (best.mean() - wider[0]), 100 * (best.mean() + wider[1])], abs=0.01
    )
    one = claims.claims_table([r for r in study if r.seed == 0]).loc["resnet18_accuracy"]
    assert [one["low"], one["high"]] == pytest.approx(100 * np.array(wilson(best[0] * 320, 320)))
    gain = compare.study_table(study).loc["no_se"]
    row = table.loc["se_gain"]
    assert row["measured"].startswith(f"{-gain['difference']:+.2f} ± ")
    assert [row["low"], row["high"]] == pytest.approx([-gain["high"], -gain["low"]])
    f1 = table.loc["main_f1"]
    assert 0.8 < f1["low"] < f1["high"] <= 1


def test_parameters_are_counted_not_recorded():
    state = torch.random.get_rng_state()
    table = claims.claims_table([])
    assert (torch.random.get_rng_state() == state).all()
    tested = table[table["verdict"] != claims.UNTESTED]
    assert set(tested.index) == {f"{name}_parameters" for name in ("main", "simple_cnn", "resnet18")}
    assert tested["low"].tolist() == [
        models.parameters(models.build(ModelConfig(name))) for name in ("as_described", "simple_cnn", "resnet18")
    ]
    assert tested.loc["simple_cnn_parameters", "verdict"] == claims.AGREES
    assert tested.loc["main_parameters", "verdict"] == claims.DIFFERS


@pytest.mark.parametrize(("profile", "course"), [("demo", True), ("demo/study", True), ("full", False)])
def test_other_images_and_small_budgets_test_no_claim(tmp_path, profile, course):
    write_records(tmp_path, ["main", "no_se"], seeds=(0,), images=64, profile=profile)
    records = load_records(tmp_path)
    for record in records:
        record.info["data"]["course"] = course
    table = claims.claims_table(records)
    assert set(table.loc[["main_accuracy", "se_gain", "main_f1"], "verdict"]) == {claims.UNTESTED}


def test_a_smaller_budget_tests_gains_and_no_accuracy(tmp_path):
    write_records(tmp_path, ["main", "no_se"], seeds=(0, 1), images=64, profile="cpu")
    table = claims.claims_table(load_records(tmp_path))
    for key in ("main_accuracy", "main_f1"):
        assert table.loc[key, "measured"] and table.loc[key, "verdict"] == claims.UNTESTED
    assert table.loc["se_gain", "verdict"] in (claims.AGREES, claims.DIFFERS)


def test_an_accuracy_is_measured_under_full_where_that_has_it_and_a_gain_where_the_study_is(tmp_path):
    write_records(tmp_path / "cpu", ["main", "no_se", "resnet18"], images=64)
    write_records(tmp_path / "full", ["main", "no_se"], seeds=(0,), profile="full", images=64)
    cpu, full = (load_records(tmp_path / name) for name in ("cpu", "full"))
    table, alone = claims.claims_table(cpu, full), claims.claims_table(full)
    for key in ("main_accuracy", "main_f1"):
        assert table.loc[key].equals(alone.loc[key]) and table.loc[key, "verdict"] != claims.UNTESTED
    untouched = ["resnet18_accuracy", "se_gain"]
    assert table.loc[untouched].equals(claims.claims_table(cpu).loc[untouched])
    profiles = ["full", "full", "cpu", "cpu", ""]
    assert table.loc[["main_accuracy", "main_f1", *untouched, "memory"], "profile"].tolist() == profiles


def test_memory_is_told_at_the_size_it_was_claimed_at_and_judges_nothing(tmp_path):
    write_records(tmp_path, ["main"], seeds=(0, 1), images=64, profile="full")
    records = load_records(tmp_path)
    for record, peak in zip(records, (4.16e9, 4.18e9)):
        record.info["machine"]["device"] = "NVIDIA card"
        record.info["peak_memory_bytes"] = peak
    assert claims.claims_table(records).loc["memory", "measured"] == ""
    for record in records:
        record.info["config"]["pixels"] = 224
    row = claims.claims_table(records).loc["memory"]
    assert (row["measured"], row["low"], row["high"]) == ("4.17 ± 0.01 GB (n = 2)", 4.16, 4.18)
    assert row["verdict"] == claims.UNTESTED
