"""Figures of explanations, from records as analyses leave them and from none at all."""

import copy

import numpy as np
import pytest
import torch

from bloodcell_lib import explain, explained, models, shortcuts, style
from bloodcell_lib.analysis import _plain
from bloodcell_lib.models import ModelConfig


def row(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}


@pytest.fixture
def content():
    torch.manual_seed(0)
    network = models.build(ModelConfig("efficientnet_lite")).eval()
    curve = np.linspace(0.9, 0.1, 9).tolist()
    orders = {name: {"curve": curve, "area": row(0.4)} for name in explained.ORDERS}
    names = ("area", "inside", "inside_other", "ceiling", "hit", "centre_hit")
    found = {
        "runs": ["main/seed0", "main/seed1"],
        "location": {
            "images": 40,
            "by_class": [{"inside": row(0.5), "area": row(0.3)}] * 7 + [None],  # a class that no image had
            **{name: row(0.4) for name in names},
        },
        "curves": {"images": 24, "steps": 8, "deletion": orders, "insertion": orders},
        "randomisation": {"images": 24, "between_images": row(0.6), "head": row(0.1), "stage 3": row(-0.1)},
        "drawn": explain.show(network, 64, 200),
    }
    return {"experiment": "main", "profile": "demo", "result": _plain(found)}


@pytest.fixture
def painted():
    conditions = {
        name: {"accuracy": 0.5, "low": 0.4, "high": 0.6, "difference": {"points": -9.0, "low": -12.0, "high": -5.0}}
        for name in shortcuts.CONDITIONS
    }
    result = {"runs": ["main/seed0"], "images": 96, "conditions": conditions, "held_by_moved_mask": 0.1}
    return {"experiment": "main", "profile": "demo", "result": result}


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", ["heat_maps", "location", "faithfulness"])
def test_figures_of_explanations(content, name, tmp_path):
    before = copy.deepcopy(content)
    figure = getattr(explained, name)(content)
    assert content == before, "drawing changes the record"
    assert "main, profile demo, 2 networks" in texts(figure)
    assert all(path.stat().st_size > 5_000 for path in style.save(figure, name, tmp_path))


def test_maps_without_heat_are_said_in_the_figure_of_places(content):
    content["result"]["location"] = {"images": 24, "cold": 24}
    assert "24 maps" in texts(explained.location(content))


def test_faithfulness_names_every_order_and_part(content):
    said = texts(explained.faithfulness(content))
    assert all(name in said for name in [*explained.ORDERS.values(), "head", "to stage 3", "rank correlation"])


def test_painted_shows_every_condition_with_its_change(painted):
    said = texts(explained.painted(painted))
    assert all(words in said for words in shortcuts.CONDITIONS.values())
    assert said.count("−9.0 [−12.0, −5.0]") == len(shortcuts.CONDITIONS) - 1


def test_examples_are_drawn_cells():
    figure = explained.painted_examples(48, 200)
    assert "Pictures: synthetic cells" in texts(figure) and len(figure.axes) == len(shortcuts.CONDITIONS) - 1


def test_drawn_cells_are_the_same_each_time_and_one_of_each_class():
    one = explain.drawn(48, 200)
    assert one.shape == (8, 3, 48, 48) and one.dtype == torch.uint8 and torch.equal(one, explain.drawn(48, 200))
    assert not torch.equal(one, explain.drawn(48, None)) and len({image.numpy().tobytes() for image in one}) == 8
