"""Calibration, abstention and prediction sets, on probabilities whose truth is known: labels are drawn from them."""

import numpy as np
import pytest
from scipy.special import softmax

from bloodcell_lib import calibration
from bloodcell_lib.errors import BloodcellError


@pytest.fixture(scope="module")
def drawn():
    """Labels drawn from the very probabilities that are given: perfectly calibrated, (labels, probabilities, parts)."""
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(0, 3, (20_000, 8)), axis=1)
    labels = (probabilities.cumsum(1) > rng.random((len(probabilities), 1))).argmax(1)
    return labels, probabilities, calibration.split_in_parts(labels)


def test_ece_by_hand():
    probabilities = np.full((4, 8), 0.0)
    probabilities[:, 0], probabilities[:, 1] = [0.9, 0.9, 0.6, 0.6], [0.1, 0.1, 0.4, 0.4]
    labels = np.array([0, 0, 0, 1])
    for equal in ("mass", "width"):
        table = calibration.bins(labels, probabilities, equal, count=2 if equal == "mass" else 15)
        assert table["n"].tolist() == [2, 2] and np.allclose(table["accuracy"], [0.5, 1.0])
        assert calibration.ece(labels, probabilities, equal, 2 if equal == "mass" else 15) == pytest.approx(0.1)
    assert calibration.brier(labels, probabilities) == pytest.approx((2 * 0.02 + 0.32 + 0.72) / 4)
    assert calibration.nll(labels, probabilities) == pytest.approx(-np.log([0.9, 0.9, 0.6, 0.4]).mean(), rel=1e-5)


def test_a_confidence_of_one_falls_into_the_last_bin():
    table = calibration.bins(np.zeros(3, dtype=int), np.eye(8)[[0, 0, 1]], "width")
    assert table["n"].tolist() == [3] and table["confidence"].tolist() == [1.0]


def test_true_probabilities_have_no_calibration_error(drawn):
    labels, probabilities, _ = drawn
    for equal in ("mass", "width"):
        assert calibration.ece(labels, probabilities, equal) < 0.015
    table = calibration.bins(labels, probabilities)
    inside = (table["low"] <= table["confidence"]) & (table["confidence"] <= table["high"])
    assert inside.sum() >= len(table) - 2
    assert calibration.temperature(labels, probabilities) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("t", [0.4, 2.5])
def test_temperature_scaling_undoes_a_temperature(drawn, t):
    labels, probabilities, parts = drawn
    off = calibration.scaled(probabilities, t)
    assert calibration.ece(labels, off) > 0.05
    mended, fitted = calibration.calibrated(labels, off, parts)
    assert np.allclose(fitted, 1 / t, rtol=0.05) and len(fitted) == 5
    assert calibration.ece(labels, mended) < 0.015 and calibration.nll(labels, mended) < calibration.nll(labels, off)
    assert (mended.argmax(1) == probabilities.argmax(1)).all() and np.allclose(mended.sum(1), 1)


def test_a_temperature_is_fitted_on_other_parts_only(drawn):
    labels, probabilities, parts = drawn
    spoilt = np.where(parts == 0, (labels + 1) % 8, labels)  # part 0 is all wrong, which only the others may feel
    _, clean = calibration.calibrated(labels, probabilities, parts)
    _, fitted = calibration.calibrated(spoilt, probabilities, parts)
    assert fitted[0] == pytest.approx(clean[0]) and min(fitted[1:]) > 1.2


def test_half_precision_zeros_stay_finite():
    probabilities = np.eye(8, dtype=np.float16)
    labels = np.arange(8)[::-1]
    assert np.isfinite(calibration.nll(labels, probabilities))
    assert np.isfinite(calibration.scaled(probabilities, 0.1)).all()


def test_coverage_curve_ends_at_the_accuracy(drawn):
    labels, probabilities, _ = drawn
    curve = calibration.coverage_curve(labels, probabilities)
    assert curve["coverage"].iloc[-1] == 1 and curve["coverage"].is_monotonic_increasing
    assert curve["accuracy"].iloc[-1] == pytest.approx((probabilities.argmax(1) == labels).mean())
    assert curve["accuracy"].iloc[10] > curve["accuracy"].iloc[-1] + 0.1
    assert ((curve["low"] <= curve["accuracy"]) & (curve["accuracy"] <= curve["high"])).all()


def test_abstention_keeps_its_promise_on_images_that_it_was_not_chosen_on(drawn):
    labels, probabilities, parts = drawn
    found = calibration.abstention(labels, probabilities, parts, wanted=0.95)
    assert 0.1 < found["coverage"] < 0.9 and found["low"] <= 0.955 and found["high"] >= 0.945
    assert found["wrong"] == round(found["kept"] * (1 - found["accuracy"]))


def test_abstention_keeps_nothing_where_nothing_is_good_enough():
    labels = np.arange(40) % 8
    wrong = np.eye(8)[(labels + 1) % 8] * 0.5 + 0.5 / 8
    found = calibration.abstention(labels, wrong, calibration.split_in_parts(labels))
    assert found["kept"] == 0 and np.isnan(found["accuracy"]) and found["coverage"] == 0


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_prediction_sets_cover_what_they_say(drawn, level):
    labels, probabilities, parts = drawn
    found = calibration.set_scores(labels, calibration.prediction_sets(labels, probabilities, parts, level))
    assert found["coverage"] == pytest.approx(level, abs=0.006)
    assert 1 < found["size"] < 8 and found["worst_class"] <= found["coverage"]


def test_a_threshold_of_a_part_sees_all_at_that_parts_temperature(drawn):
    labels, probabilities, parts = drawn
    given = calibration.scaled(probabilities, 2.0)
    temperatures = [0.5] * len(np.unique(parts))
    for judge, wanted in ((calibration.abstention, 0.95), (calibration.prediction_sets, 0.9)):
        undone = judge(labels, given, parts, wanted, temperatures)
        plain = judge(labels, probabilities, parts, wanted)
        assert np.array_equal(undone, plain) if isinstance(plain, np.ndarray) else undone == pytest.approx(plain)
    # The part at another temperature is judged by thresholds that were found at that temperature.
    mixed = [0.5, *[1.0] * (len(temperatures) - 1)]
    sets = calibration.prediction_sets(labels, given, parts, 0.9, mixed)
    first = parts == np.unique(parts)[0]
    assert np.array_equal(sets[first], calibration.prediction_sets(labels, probabilities, parts, 0.9)[first])
    assert np.array_equal(sets[~first], calibration.prediction_sets(labels, given, parts, 0.9)[~first])


def test_too_few_images_for_a_level_give_whole_sets():
    labels = np.arange(16) % 8
    sets = calibration.prediction_sets(labels, np.eye(8)[labels], np.arange(16) // 8, 0.99)
    assert sets.all()


@pytest.mark.parametrize("measure", [calibration.brier, calibration.ece])
def test_intervals_hold_the_value(drawn, measure):
    labels, probabilities, _ = (values[:2000] for values in drawn)
    low, high = calibration.interval(measure, labels, probabilities, resamples=200)
    assert low < measure(labels, probabilities) < high < low + 0.1


def test_an_interval_holds_a_calibration_error_that_chance_makes():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.9, 1, 2000)
    probabilities = np.tile(((1 - sure) / 7)[:, None], 8)
    probabilities[:, 0] = sure
    labels = np.where(rng.random(2000) < sure, 0, 1)
    found = calibration.ece(labels, probabilities)
    low, high = calibration.interval(calibration.ece, labels, probabilities, resamples=200)
    assert 0 <= low < found < high < 0.03


def test_bad_input_is_told():
    labels, probabilities = np.zeros(4, dtype=int), np.full((4, 8), 1 / 8)
    for call in (
        lambda: calibration.bins(labels, probabilities, "weight"),
        lambda: calibration.calibrated(labels, probabilities, np.zeros(4)),
        lambda: calibration.prediction_sets(labels, probabilities, np.arange(4), 95),
    ):
        with pytest.raises(BloodcellError):
            call()


def test_where_no_confidence_is_enough_none_is_kept():
    labels = np.arange(40) % 8
    sure = np.eye(8)[np.where(np.arange(40) % 5, labels, (labels + 1) % 8)]  # four in five right, all with certainty
    found = calibration.abstention(labels, sure, np.arange(40) % 2, wanted=0.99)
    assert found["kept"] == 0 and np.isnan(found["accuracy"])
