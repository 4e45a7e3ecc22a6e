"""Photographs as other sites would take them, and what networks that were really trained make of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_runs
import torch

from bloodcell_lib import analysis, answers, limits, style, travel
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.travel import SITES, Site, visit


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    runs = [("best_short", 0), ("best_short", 1), ("grey_world", 0), ("short_tint", 0), ("short_broad", 0)]
    with small_runs.trained(tmp_path_factory.mktemp("travel"), runs) as subject:
        yield replace(subject, experiment="best_short")


@pytest.fixture(scope="module")
def result(subject):
    path = analysis.record_analysis("travel", subject, travel.analyse)
    return analysis.load_analyses(path.parent.parent)["travel_best_short"]["result"]


def disc(radius: float, side: int = 224) -> torch.Tensor:
    """A dark disc in the middle of a light photograph, uint8 (2, 3, side, side)."""
    axis = torch.arange(side) - (side - 1) / 2
    inside = axis[:, None] ** 2 + axis[None] ** 2 < radius**2
    return torch.where(inside, 40, 220).byte().expand(2, 3, side, side)


def area(images: torch.Tensor) -> float:
    """Share of the picture that is dark."""
    return (images[0, 0] < 130).float().mean().item()


def test_a_site_that_changes_nothing_takes_the_crop():
    images = torch.randint(0, 256, (3, 3, 360, 360), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(visit(images, Site("same"), 360, None), images)
    cropped = visit(images, Site("same"), 240, 240)
    torch.testing.assert_close(cropped, images[..., 60:300, 60:300], atol=1, rtol=0)


@pytest.mark.parametrize("zoom", [0.5, 0.75, 1.5, 2.0, 3.0])
def test_a_magnification_makes_the_cell_larger_by_its_square(zoom):
    photographs = disc(20)
    plain = area(visit(photographs, Site("same"), 96, 240))
    assert area(visit(photographs, Site("other", zoom=(zoom, zoom)), 96, 240)) == pytest.approx(
        plain * zoom**2, rel=0.06
    )


def test_each_cell_draws_its_own_magnification_between_the_bounds():
    photographs = disc(14).repeat(50, 1, 1, 1)
    seen = visit(photographs, Site("any", zoom=(0.5, 3.0)), 96, 240)
    areas = (seen[:, 0] < 130).float().mean((1, 2)) / area(visit(photographs, Site("same"), 96, 240))
    zooms = areas.sqrt()
    assert 0.45 < zooms.min() < 0.6 and 2.6 < zooms.max() < 3.1
    assert zooms.log().mean() == pytest.approx(np.log(np.sqrt(1.5)), abs=0.15)  # evenly in the logarithm
    assert torch.equal(seen, visit(photographs, Site("any", zoom=(0.5, 3.0)), 96, 240))
    assert not torch.equal(seen, visit(photographs, Site("any", zoom=(0.5, 3.0)), 96, 240, seed=1))


def test_beyond_a_small_field_its_edge_is_repeated():
    photographs = torch.zeros(1, 3, 360, 360, dtype=torch.uint8)
    photographs[..., 90:270, 90:270] = 200  # all that the camera sees, and around it what it does not
    assert visit(photographs, Site("small", field=0.5), 240, 240).min() == 200


def test_light_and_dyes_change_colours_and_nothing_else_moves():
    photographs = disc(40)
    plain = visit(photographs, Site("same"), 96, 240)
    tinted = visit(photographs, SITES["tint"], 96, 240)
    ratio = tinted.float().mean((2, 3)) / plain.float().mean((2, 3))
    assert ratio.std() > 0.01 and ratio.min() > 0.8 and ratio.max() < 1.2
    for key in ("tint", "stain", "blur", "jpeg"):
        changed = visit(photographs, SITES[key], 96, 240)
        assert not torch.equal(changed, plain)
        assert area(changed) == pytest.approx(area(plain), rel=0.1) or key == "stain"


def test_every_site_is_judged_and_clean_is_nearly_the_runs_own(subject, result):
    assert list(result["experiments"]) == ["best_short", "grey_world", "short_tint"]
    own = result["experiments"]["best_short"]
    assert (own["seeds"], list(own["sites"])) == (2, list(SITES))
    assert own["difference"] == {"points": 0, "low": 0, "high": 0}
    for row in own["sites"].values():
        assert row["low"] <= row["accuracy"] <= row["high"]
        if own["clean"]["accuracy"]:
            assert row["share"] == pytest.approx(row["accuracy"] / own["clean"]["accuracy"])
    # The same photographs, resized in one step more.
    finals = [record.info["final_validation_accuracy"] for record in subject.records]
    assert own["clean"]["by_seed"] == pytest.approx(finals, abs=0.16)


def test_other_pictures_stand_beside_it_and_other_networks_do_not():
    assert travel.beside("best_short")[:3] == ["group_norm", "stain_jitter", "grey_world"]
    assert {"short_tint", "all_remedies", "short_no_turns"} < set(travel.beside("best_short"))
    assert not {"short_broad", "short_longer", "short_average"} & set(travel.beside("best_short"))
    assert travel.beside("main") == ["best"]


def test_photographs_are_those_of_the_images_held_out(subject):
    held_out = subject.held_out(subject.records[0])
    whole = subject.photographs(held_out)
    assert whole.names == held_out.names and torch.equal(whole.labels, held_out.labels)
    assert whole.images.shape[1:] == (3, analysis.PHOTOGRAPH, analysis.PHOTOGRAPH)
    with pytest.raises(BloodcellError, match="Whole photographs are wanted here"):
        replace(subject, folder=None).photographs(held_out)


def test_it_is_told_and_drawn(result, tmp_path):
    told = answers.answer("travel", {"travel": {"result": result}})
    assert "simulated sites" in told and "With all changes together" in told and "grey-world colours" in told
    assert told.startswith(answers.sites(result, "best_short"))
    rival = result["experiments"]["grey_world"]["sites"]["all"]["accuracy"]
    assert f"With all changes together {100 * rival:.1f} % are right" in answers.sites(result, "grey_world")
    reached = {
        site: {name: 100 * row["sites"][site]["accuracy"] for name, row in result["experiments"].items()}
        for site in answers._poor(result, "best_short")[: answers.WORST]
    }
    ahead = {site: max(of.values()) for site, of in reached.items() if max(of.values()) > of["best_short"]}
    assert ("Better there" in told) == bool(ahead)
    assert all(f"({best:.1f} %, not {reached[site]['best_short']:.1f})" in told for site, best in ahead.items())
    alone = result | {"experiments": {"best_short": result["experiments"]["best_short"]}}
    assert answers.travel(alone) == answers.sites(result, "best_short")
    figure = limits.travel_sites(result)
    words = " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
    assert all(title in words for title in travel.titles(result).values())
    for path in style.save(figure, "travel_sites", tmp_path):
        assert path.stat().st_size > 5_000
