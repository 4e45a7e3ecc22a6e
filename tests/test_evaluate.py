from __future__ import annotations

import numpy as np
import pytest
from fake_records import write_records
from sklearn import metrics
from statsmodels.stats.proportion import confint_proportions_2indep

from bloodcell_lib import evaluate
from bloodcell_lib.cells import TITLES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.records import load_records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_records(folder, ["main", "final", "no_se"], images=160)
    return load_records(folder)


def of(runs, name):
    return [record for record in runs if record.experiment == name]


def guesses(n=500, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, n)
    return labels, np.where(rng.random(n) < 0.7, labels, rng.integers(0, 8, n))


def test_wilson_is_the_published_interval():
    low, high = evaluate.wilson(636, 640)
    assert (round(low, 3), round(high, 3)) == (0.984, 0.998)
    z, p, n = 1.959963985, 636 / 640, 640
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert [low, high] == pytest.approx([(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)])


def test_wilson_at_the_ends_and_at_another_level():
    assert evaluate.wilson(0, 10)[0] == 0
    assert evaluate.wilson(10, 10)[1] == pytest.approx(1)
    assert evaluate.wilson(5, 10, 0.5)[1] < evaluate.wilson(5, 10)[1]


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (11, 10), (-1, 10)])
def test_wilson_refuses_what_is_no_share(correct, n):
    with pytest.raises(BloodcellError, match="No interval"):
        evaluate.wilson(correct, n)


def test_metrics_agree_with_scikit_learn():
    labels, predicted = guesses()
    report = metrics.classification_report(labels, predicted, output_dict=True)
    table = evaluate.per_class(labels, predicted)
    assert list(table.index) == list(TITLES)
    for k, title in enumerate(TITLES):
        assert table.loc[title].tolist() == pytest.approx(
            [report[str(k)][what] for what in ("precision", "recall", "f1-score", "support")]
        )
    assert evaluate.accuracy(labels, predicted) == pytest.approx(report["accuracy"])
    assert evaluate.macro_f1(labels, predicted) == pytest.approx(report["macro avg"]["f1-score"])
    assert (evaluate.confusion(labels, predicted) == metrics.confusion_matrix(labels, predicted)).all()


def test_metrics_by_hand_where_classes_are_absent():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    table = evaluate.per_class(labels, predicted)
    assert table.loc["Basophil"].tolist() == pytest.approx([1, 2 / 3, 0.8, 3])
    assert table.loc["Eosinophil"].tolist() == pytest.approx([0.5, 1, 2 / 3, 1])
    assert table.loc["Platelet"].tolist() == [0, 0, 0, 0]
    assert evaluate.accuracy(labels, predicted) == 0.75
    assert evaluate.macro_f1(labels, predicted) == pytest.approx((0.8 + 2 / 3) / 2)
    matrix = evaluate.confusion(labels, predicted)
    assert matrix.shape == (8, 8)
    assert matrix[0, 1] == 1
    assert matrix.sum() == 4


@pytest.mark.parametrize(
    ("labels", "predicted", "words"),
    [([0, 1], [0], "do not match"), ([], [], "do not match"), ([-1], [0], "label"), ([0], [8], "prediction")],
)
def test_metrics_refuse_what_they_cannot_count(labels, predicted, words):
    for metric in (evaluate.accuracy, evaluate.per_class, evaluate.macro_f1, evaluate.confusion):
        with pytest.raises(BloodcellError, match=words):
            metric(np.array(labels), np.array(predicted))


def test_top_confusions():
    matrix = np.diag([10] * 8)
    matrix[3, 5], matrix[5, 3], matrix[0, 1] = 6, 2, 2
    table = evaluate.top_confusions(matrix, k=2)
    assert table.to_numpy().tolist() == [
        ["Immature granulocyte", "Monocyte", 6, 6 / 16],
        ["Basophil", "Eosinophil", 2, 2 / 12],
    ]
    assert evaluate.top_confusions(np.diag([3] * 8)).empty


def test_main_leads_and_the_first_where_it_is_absent(runs):
    assert {record.experiment for record in evaluate.leading(runs)} == {"main"}
    rest = [record for record in runs if record.experiment != "main"]
    assert evaluate.leading(rest) == [record for record in rest if record.experiment == rest[0].experiment]
    with pytest.raises(BloodcellError, match="run an experiment first"):
        evaluate.leading([])


def test_pool_puts_the_runs_end_to_end(runs):
    pooled = evaluate.pool(of(runs, "main"))
    parts = [record.validation() for record in of(runs, "main")]
    assert len(pooled.names) == len(pooled.labels) == 3 * 160
    assert pooled.names == sum((part.names for part in parts), ())
    assert (pooled.probabilities[160:320] == parts[1].probabilities).all()


def test_pool_needs_predictions(runs):
    with pytest.raises(BloodcellError, match="No records"):
        evaluate.pool([])
    with pytest.raises(BloodcellError, match="held no images out"):
        evaluate.pool(of(runs, "final"))


def test_overview(runs):
    main = of(runs, "main")
    row = evaluate.overview(of(runs, "final") + main)  # runs without validation images are passed over
    finals = [record.info["final_validation_accuracy"] for record in main]
    pooled = evaluate.pool(main)
    assert (row["seeds"], row["images"]) == (3, 160)
    assert row["mean"] == pytest.approx(np.mean(finals))
    assert row["std"] == pytest.approx(np.sqrt(sum((x - np.mean(finals)) ** 2 for x in finals) / 2))
    assert row["best_epoch_mean"] == pytest.approx(np.mean([r.info["best_validation_accuracy"] for r in main]))
    assert row["best_epoch_mean"] >= row["mean"]
    right = (pooled.labels == pooled.predicted).sum()
    assert (row["low"], row["high"]) == pytest.approx(evaluate.wilson(right / 3, 160))
    assert row["macro_f1"] == pytest.approx(metrics.f1_score(pooled.labels, pooled.predicted, average="macro"))


def test_overview_of_one_seed_has_no_spread(runs):
    assert np.isnan(evaluate.overview(of(runs, "main")[:1])["std"])
    with pytest.raises(BloodcellError, match="No records"):
        evaluate.overview(of(runs, "final"))


def test_by_image_lines_the_runs_up(runs):
    main = of(runs, "main")
    frame = evaluate.by_image(main)
    assert frame.shape == (160, 3)
    run = main[2].validation()
    assert frame[2].loc[(run.labels[7], run.names[7])] == run.predicted[7]
    with pytest.raises(BloodcellError, match="Two records of main, seed 0"):
        evaluate.by_image([main[0], main[0]])
    assert evaluate.by_image([]).empty


def test_bootstrap_weights_draw_as_many_as_there_are():
    runs, images = evaluate.bootstrap_weights(3, 50, 4000)
    assert runs.shape == (4000, 3)
    assert images.shape == (4000, 50)
    assert (images.sum(1) == 50).all()
    assert (runs.sum(1) == 3).all()
    # Multinomial: mean 1, variance 1 - 1/n.
    assert images.mean(0) == pytest.approx(np.ones(50), abs=0.08)
    assert images.var() == pytest.approx(1 - 1 / 50, abs=0.02)
    evaluate.bootstrap_weights.cache_clear()
    assert (evaluate.bootstrap_weights(3, 50, 4000)[1] == images).all()


def test_bootstrap_f1_counts_as_scikit_learn_does(runs, monkeypatch):
    ones = lambda seeds, images, resamples, seed: (np.ones((2, seeds)), np.ones((2, images), np.float32))  # noqa: E731
    main = of(runs, "main")
    pooled = evaluate.pool(main)
    expected = metrics.f1_score(pooled.labels, pooled.predicted, average=None)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "bootstrap_weights", ones)
        assert evaluate.bootstrap_f1(main, resamples=2) == pytest.approx(np.stack([expected] * 2))
    low, high = np.quantile(evaluate.bootstrap_f1(main), [0.025, 0.975], axis=0)
    assert (low <= expected).all()
    assert (expected <= high).all()
    assert (high - low).max() < 0.3


def test_bootstrap_f1_needs_images(runs):
    with pytest.raises(BloodcellError, match="No validation image"):
        evaluate.bootstrap_f1(of(runs, "final"))


def test_hits_of_several_seeds_are_intervals_of_one_set_of_images():
    right = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)
    found = evaluate.over_seeds(right)
    assert found["accuracy"] == 0.625 and found["by_seed"] == [0.75, 0.5]
    assert (found["low"], found["high"]) == evaluate.wilson(2.5, 4)


def test_a_change_between_two_sets_of_images_has_newcombes_interval():
    before, after = (evaluate.over_seeds(np.arange(n)[None] < k) for k, n in ((56, 70), (48, 80)))
    found = evaluate.change(before, after)
    low, high = confint_proportions_2indep(48, 80, 56, 70, method="newcomb", compare="diff")
    assert found["points"] == pytest.approx(-20)
    assert (found["low"], found["high"]) == pytest.approx((100 * low, 100 * high), abs=0.01)


def test_bootstrap_of_a_mean():
    values = (np.arange(400) % 4 == 3).astype(float)
    mean, low, high = evaluate.bootstrap_mean(values)
    assert mean == 0.25 and low == pytest.approx(0.25 - 1.96 * 0.0217, abs=0.005) and 0.28 < high < 0.31
