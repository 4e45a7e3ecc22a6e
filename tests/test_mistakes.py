"""Mistakes by finer type, the surest of them, and the map of the features."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import trained

from bloodcell_lib import analysis, mistakes, models, plans
from bloodcell_lib.cells import TITLES
from bloodcell_lib.models import ModelConfig


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    runs = [(name, 0) for name in (*plans.FOLDS["best_short"], "finer_labels", "cv_fold0")]
    with trained(tmp_path_factory.mktemp("mistakes"), runs) as subject:
        yield replace(subject, experiment="best_short")


@pytest.fixture(scope="module")
def result(subject):
    path = analysis.record_analysis("mistakes", subject, mistakes.analyse)
    assert path.stat().st_size < 100_000
    return json.loads(path.read_text())["result"]


def test_finer_types_add_up_to_all_mistakes(result):
    assert sum(row["images"] for row in result["finer"]) == result["images"] == 96
    assert sum(row["images"] - row["right"] for row in result["finer"]) == result["mistakes"]
    for row in result["finer"]:
        assert row["low"] - 1e-9 <= row["recall"] <= row["high"] + 1e-9
        assert sum(row["called"].values()) == row["images"] - row["right"] and row["class"] not in row["called"]
    kinds = [row["finer"] for row in result["finer"] if row["class"] == "Immature granulocyte"]
    assert kinds == ["metamyelocyte", "myelocyte", "promyelocyte", ""]


def test_recall_by_finer_type_is_counted_rightly():
    names = ["MY_1.jpg", "MY_2.jpg", "IG_3.jpg", "MY_4.jpg", "BA_1.jpg"]
    rows = mistakes.by_finer_type(names, np.array([3, 3, 3, 3, 0]), np.array([3, 5, 3, 5, 0]))
    assert [(row["finer"], row["right"], row["images"]) for row in rows] == [
        ("basophil", 1, 1),
        ("myelocyte", 1, 3),
        ("", 1, 1),
    ]
    assert rows[1]["called"] == {"Monocyte": 2}


def test_the_surest_mistakes_come_first(result):
    sure = [row["confidence"] for row in result["surest"]]
    assert sure == sorted(sure, reverse=True) and len(sure) == min(mistakes.LISTED, result["mistakes"])
    assert all(row["label"] != row["called"] and row["of_label"] <= row["confidence"] for row in result["surest"])
    doubt = [row["confidence"] for row in result["least_sure"]]
    assert doubt == sorted(doubt) and len(doubt) == mistakes.LISTED


def test_the_map_is_of_the_validation_images(subject, result):
    found = result["map"]
    held_out = subject.held_out(subject.records[0])
    assert set(found["name"]) == set(held_out.names) and found["images"] == len(held_out) > 12
    assert all(len(found[key]) == len(held_out) for key in ("label", "called", "confidence", "x", "y"))
    run = dict(zip(held_out.names, subject.records[0].validation().predicted.tolist()))
    assert found["called"] == [run[name] for name in found["name"]]
    assert np.ptp(found["x"]) > 0 and found["perplexity"] == (len(held_out) - 1) / 3


def test_a_map_is_bounded_and_the_same_again(subject):
    network = subject.network(subject.records[0])
    first = mistakes.feature_map(network, subject.cells, most=30)
    assert first["images"] == 30 and first == mistakes.feature_map(network, subject.cells, most=30)


def test_what_finer_labels_change_is_paired(subject, result):
    rows = result["finer_labels"]
    assert (
        rows[0]["images"] == len(subject.of("best_short")[0].validation().labels)
        and rows[0]["finer"] == ""
        and rows[0]["seeds"] == 1
    )
    ours, theirs = (subject.of(name)[0].validation() for name in ("finer_labels", "best_short"))
    change = 100 * ((ours.predicted == ours.labels).mean() - (theirs.predicted == theirs.labels).mean())
    assert np.isclose(rows[0]["mean"], change)
    assert {row["class"] for row in rows[1:]} <= {"Immature granulocyte", "Neutrophil"}
    other = analysis.Subject("demo", subject.cells, "cv_fold0", runs=subject.runs)
    assert mistakes.taught_finer(other)[0]["seeds"] == 1  # the first fold is the split
    assert mistakes.taught_finer(analysis.Subject("demo", subject.cells, "no_se", runs=subject.runs)) is None


@pytest.mark.parametrize("finer", [False, True])
@pytest.mark.parametrize("name", models.NETWORKS)
def test_features_are_what_the_last_layer_is_given(name, finer):
    torch.manual_seed(0)
    network = models.build(ModelConfig(name, finer=finer)).eval()
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    seen = analysis.outputs(network, images, batch_size=2)[0]
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    widths = {"deep_efficientnet": 80, "as_described": 80, "efficientnet_lite": 112, "broad": 112, "slim_resnet": 208}
    assert seen.shape == (5, widths.get(name, 512))
    with torch.no_grad():
        assert torch.allclose(network.add_up(last(seen)), analysis.logits(network, images), atol=1e-4)
    assert not last._forward_pre_hooks


def test_lists_name_classes_by_their_titles(result):
    assert {row["label"] for row in result["least_sure"]} <= set(TITLES)
