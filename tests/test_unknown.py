"""Unknown cells and pictures of no cell, before networks that were really trained, if only for a moment."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import small_runs
import torch
from sklearn import metrics

from bloodcell_lib import analysis, cli, data, plans, unknown, views
from bloodcell_lib.cells import CLASS_MAP, NAMES


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    runs = [("main", 0), ("main", 1), ("without_platelet", 0), ("without_ig", 0), ("without_ig", 1)]
    with small_runs.trained(tmp_path_factory.mktemp("unknown"), runs) as subject:
        yield subject


@pytest.fixture(scope="module")
def result(subject):
    path = analysis.record_analysis("unknown", subject, unknown.analyse)
    return analysis.load_analyses(path.parent.parent)["unknown"]["result"]


def test_it_works_on_the_classes_that_are_there_and_says_which(result):
    assert list(result["left_out"]) == ["ig", "platelet"]
    assert result["missing"] == [name for name in NAMES if name not in ("ig", "platelet")]
    assert result["left_out"]["ig"]["runs"] == ["without_ig/seed0", "without_ig/seed1"]
    assert result["left_out"]["platelet"]["runs"] == ["without_platelet/seed0"]
    assert list(result["main"]) == ["background", "blank", "noise", "artefacts"]
    assert result["main"]["blank"]["runs"] == ["main/seed0", "main/seed1"]


def test_the_command_records_it(subject, result, monkeypatch, capsys):
    monkeypatch.setattr(views, "load_images", lambda *a, **k: subject.cells)
    monkeypatch.setattr(views, "image_folder", lambda *a, **k: None)
    monkeypatch.setattr(analysis, "Subject", functools.partial(analysis.Subject, runs=subject.runs))
    cli.app(["trust", "--only", "unknown", "--device", "cpu"], standalone_mode=False)
    path = subject.runs / "demo" / "analyses" / "unknown.json"
    assert str(path) in capsys.readouterr().out
    assert analysis.load_analyses(path.parent.parent)["unknown"]["result"] == result  # the same numbers again


def test_the_unknown_are_validation_images_of_the_class_left_out(subject, result):
    held_out = subject.cells.labels.numpy()[data.split(subject.cells)[1]]
    for name, found in result["left_out"].items():
        assert found["unknown"] == (held_out == CLASS_MAP[name]).sum()
        assert found["known"] == (held_out != CLASS_MAP[name]).sum()
        assert found["taken_for"][name] == 0 and sum(found["taken_for"].values()) == pytest.approx(1)
        of_runs = [record.info["final_validation_accuracy"] for record in subject.of(f"without_{name}")]
        assert found["accuracy"]["by_seed"] == pytest.approx(of_runs)


def test_every_score_has_its_interval(result):
    for found in (*result["left_out"].values(), *result["main"].values()):
        assert list(found["scores"]) == list(unknown.SCORES)
        for score in found["scores"].values():
            for name in ("auroc", "fpr95"):
                assert 0 <= score[f"{name}_low"] <= score[f"{name}_high"] <= 1 and 0 <= score[name] <= 1


def test_without_any_such_run_the_main_network_is_still_judged(subject, monkeypatch):
    of = analysis.Subject.of
    monkeypatch.setattr(analysis.Subject, "of", lambda self, name: of(self, name) if name == "main" else [])
    found = unknown.analyse(subject)
    assert found["left_out"] == {} and found["missing"] == list(NAMES) and len(found["main"]) == 4


def test_a_demo_is_bounded_a_study_is_not(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(unknown, "compare", lambda s, r, u, most: seen.append((most, len(next(iter(u.values()))))) or u)
    monkeypatch.setattr(unknown, "DEMO_TRAIN", 20)
    monkeypatch.setattr(unknown, "DEMO_IMAGES", 8)
    assert unknown.analyse(subject)["train"] == 20 and seen[-1] == ((20, 8), 8)
    monkeypatch.setitem(plans.PROFILES, "demo", replace(small_runs.TINY, name="cpu"))
    split = data.split(subject.cells)
    assert unknown.analyse(subject)["train"] == len(split[0]) and seen[-1] == ((96, 96), len(split[1]))


def test_scores_are_those_of_the_papers(subject):
    record = subject.of("without_platelet")[0]
    train, held_out = views.divide(subject.cells, "without_platelet")
    network = subject.network(record)
    scores, said = unknown.Judge(network, train)(held_out.images)
    given = analysis.logits(network, held_out.images).double()[:, :7]
    torch.testing.assert_close(torch.from_numpy(scores["max_softmax"]), given.softmax(1).amax(1))
    torch.testing.assert_close(torch.from_numpy(scores["energy"]), given.logsumexp(1))
    assert said.tolist() == given.argmax(1).tolist()
    with torch.no_grad():
        features = network.net.features(network.standardise(train.images / 255)).mean((2, 3)).double().numpy()
    assert np.allclose(analysis.outputs(network, train.images)[0], features, atol=1e-4)


def test_mahalanobis_is_the_least_distance_to_a_class_under_the_shared_covariance(monkeypatch):
    """Many points of two Gaussians that share a covariance: shrinking does next to nothing."""
    rng = np.random.default_rng(0)
    covariance, means = np.array([[2.0, 0.6], [0.6, 0.5]]), np.array([[0.0, 0.0], [6.0, -3.0]])
    labels = np.repeat([1, 4], 4000)
    points = np.concatenate([rng.multivariate_normal(mean, covariance, 4000) for mean in means])
    monkeypatch.setattr(unknown, "outputs", lambda _, x: (x, torch.arange(8.0).repeat(len(x), 1)))
    train = data.CellImages(torch.from_numpy(points), torch.from_numpy(labels), ("",) * 8000, ("",) * 8000, "")
    asked = torch.tensor([[0.0, 0.0], [6.0, -3.0], [1.0, 1.0], [9.0, 0.0]], dtype=torch.float64)
    scores, said = unknown.Judge(None, train)(asked)
    apart = asked.numpy()[:, None] - means
    expected = -np.einsum("nki,ij,nkj->nk", apart, np.linalg.inv(covariance), apart).min(1)
    assert np.allclose(scores["mahalanobis"], expected, rtol=0.1, atol=0.05)
    assert said.tolist() == [4] * 4  # the largest output of a class that trained, not the seventh


@pytest.mark.parametrize("name", ["efficientnet_lite", "simple_cnn", "resnet18"])
def test_every_network_has_penultimate_features(name):
    network = unknown.nn.Module.eval(analysis.models.build(analysis.ModelConfig(name)))
    features, given = analysis.outputs(network, torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8))
    last = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    expected = features @ last.weight.T + last.bias
    torch.testing.assert_close(expected.detach(), given, atol=1e-4, rtol=1e-3)
    assert not last._forward_pre_hooks


def test_auroc_is_scikit_learns_and_fpr_counts_what_passes():
    rng = np.random.default_rng(1)
    known, other = rng.normal(1, 1, (2, 200)).round(1), rng.normal(0, 1, (2, 60)).round(1)  # with ties
    found = unknown.separation(known, other)
    truth = np.repeat([1, 0], [200, 60])
    both = [metrics.roc_auc_score(truth, np.concatenate(pair)) for pair in zip(known, other)]
    assert found["auroc"] == pytest.approx(np.mean(both))
    thresholds = [max(t for t in k if (k >= t).mean() >= 0.95) for k in known]
    assert found["fpr95"] == pytest.approx(np.mean([(o >= t).mean() for o, t in zip(other, thresholds)]))


def test_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    known, other = rng.normal(1, 1, (1, 150)), rng.normal(0, 1, (1, 50))
    found = unknown.separation(known, other)
    plain = []
    for _ in range(600):
        k, o = rng.choice(known[0], 150), rng.choice(other[0], 50)
        plain.append(metrics.roc_auc_score(np.repeat([1, 0], [150, 50]), np.concatenate([k, o])))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert (found["auroc_low"], found["auroc_high"]) == pytest.approx((low, high), abs=0.015)
    assert found["fpr95_low"] < found["fpr95"] < found["fpr95_high"]


def test_what_is_apart_is_told_apart():
    found = unknown.separation(np.arange(10.0, 60)[None], np.arange(10.0)[None])
    assert found["auroc"] == found["auroc_low"] == 1 and found["fpr95"] == found["fpr95_high"] == 0
    found = unknown.separation(np.zeros((1, 5)), np.zeros((1, 5)))
    assert found["auroc"] == 0.5 and found["fpr95"] == 1
