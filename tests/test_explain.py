"""Whether a network looks at the cell: heat whose place is known, and the analysis of a run that was really made."""

import json
from functools import partial

import numpy as np
import pytest
import small_runs
import torch

from bloodcell_lib import analysis, answers, cli, explain, paths, shelf
from bloodcell_lib.segment import Masks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One seed of `main`, trained for two epochs on 96 drawn cells of 48 pixels: where its record lies."""
    home = tmp_path_factory.mktemp("explain")
    with pytest.MonkeyPatch.context() as patch, small_runs.trained(home, [("main", 0)], pixels=48) as subject:
        patch.setattr(analysis, "Subject", partial(analysis.Subject, runs=subject.runs))
        yield subject.runs


@pytest.fixture
def masks():
    """Four cells in quarters of 32 x 32 pixels, each one in its own, with a nucleus in its middle."""
    cell = torch.zeros(4, 32, 32, dtype=torch.bool)
    for k, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        cell[k, y : y + 16, x : x + 16] = True
    nucleus = torch.zeros_like(cell)
    nucleus[0, 4:12, 4:12] = True
    return Masks(cell, nucleus)


def quarter(masks, inside: bool) -> torch.Tensor:
    coarse = torch.nn.functional.avg_pool2d(masks.cell[:, None].float(), 4)[:, 0]
    return coarse if inside else 1 - coarse


def test_heat_in_the_cell_and_heat_beside_it(masks):
    good, bad = (explain.locate(quarter(masks, inside), masks) for inside in (True, False))
    assert (good["inside"] > 0.85).all() and (good["hit"] == 1).all()
    assert (bad["inside"] < 0.1).all() and (bad["hit"] == 0).all()
    assert np.allclose(good["area"], 0.25) and np.allclose(good["ceiling"], good["inside"])
    assert (good["inside_other"] < 0.1).all(), "the cell of another image lies elsewhere"
    assert np.isclose(good["nucleus_area"][0], 0.25)


def test_heat_everywhere_is_the_area(masks):
    found = explain.locate(torch.ones(4, 8, 8), masks)
    assert np.allclose(found["inside"], found["area"])
    assert np.isclose(found["nucleus"][0], found["nucleus_area"][0])


def test_a_map_without_heat_and_an_image_without_a_cell_are_left_out(masks):
    coarse = quarter(masks, inside=True)
    coarse[1] = 0
    masks.cell[2], masks.nucleus[2] = False, False
    rows = explain.locate(coarse, masks) | {"label": np.array([0, 1, 2, 3])}
    assert np.isnan(rows["inside"][1]) and rows["inside"][2] == 0
    found = explain.located(rows)
    assert found["images"] == 4 and found["cold"] == 1 and found["by_class"][1] is None
    assert found["hit"]["mean"] == pytest.approx(2 / 3)
    cold = explain.located(explain.locate(torch.zeros(4, 8, 8), masks) | {"label": np.arange(4)})
    assert cold == {"images": 4, "cold": 4}
    assert answers.heat({"location": cold}) == "No map shows any heat."


def test_images_in_which_no_cell_is_found_leave_no_numbers_of_one(masks):
    nowhere = Masks(torch.zeros_like(masks.cell), torch.zeros_like(masks.nucleus))
    found = explain.located(explain.locate(torch.ones(4, 8, 8), nowhere) | {"label": np.arange(4)})
    assert found["inside"]["mean"] == found["area"]["mean"] == 0 and not {"nucleus", "ceiling"} & set(found)


def test_each_image_gets_another():
    for n in (2, 3, 50):
        other = explain._derangement(n, 0)
        assert sorted(other) == list(range(n)) and (other != np.arange(n)).all()


def test_the_command_records_and_publishes(runs, monkeypatch, tmp_path):
    assert cli.app(["trust", "--only", "explain", "--device", "cpu"], standalone_mode=False) in (0, None)
    result = json.loads((runs / "demo" / "analyses" / "explain.json").read_text())["result"]
    assert result["runs"] == ["main/seed0"]
    where = result["location"]
    assert where["images"] <= explain.DEMO_IMAGES and 0 < where["area"]["mean"] < 0.6
    for name in ("inside", "inside_other", "area", "hit", "ceiling", "nucleus"):
        row = where[name]
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1, name
    curves = result["curves"]
    assert curves["steps"] == explain.DEMO_STEPS and curves["images"] <= explain.DEMO_CURVES
    for kind in ("deletion", "insertion"):
        assert set(curves[kind]) == {"grad_cam", "random", "centre", "cell"}
        ends = np.array([(row["curve"][0], row["curve"][-1]) for row in curves[kind].values()])
        assert np.allclose(ends, ends[0], atol=1e-5), "every order starts and ends with the same images"
    random = result["randomisation"]
    assert {"between_images", "head", "stage 4", "stem"} <= set(random)
    assert all(-1 <= row["mean"] <= 1 for name, row in random.items() if name != "images")
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert shelf.publish("demo") and (tmp_path / "demo" / "analyses" / "explain.json").exists()
