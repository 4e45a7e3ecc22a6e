"""Photographs under conditions that were drawn, and under given ones."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from bloodcell_lib import camera
from bloodcell_lib.camera import Conditions, drawn, photographed


def ours(n: int) -> Conditions:
    """Conditions under which nothing is changed."""
    one = torch.ones(n)
    return Conditions(one, one, torch.ones(n, 2), torch.ones(n, 3), 0 * one, 0 * one)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    noise = torch.randint(0, 256, (4, 3, 60, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return (noise // 2 + 64).repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_conditions_are_drawn_within_their_ranges_and_some_are_ours():
    how, again = (drawn(2000, torch.Generator().manual_seed(3)) for _ in range(2))
    ranges = {
        "zoom": (*camera.ZOOM, 1),
        "field": (camera.FIELD, 1, 1),
        "dyes": (1 - camera.STAIN, 1 + camera.STAIN, 1),
        "light": (1 - camera.TINT, 1 + camera.TINT, 1),
        "blur": (0, camera.BLUR, 0),
        "quality": (camera.QUALITY, 95, 0),
    }
    for field in fields(how):
        value, (low, high, left) = getattr(how, field.name), ranges[field.name]
        assert torch.equal(value, getattr(again, field.name)) and len(value) == 2000
        assert (value == left).float().mean() == pytest.approx(1 - camera.CHANGED, abs=0.04)
        changed = value[value != left]
        assert low <= changed.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < changed.max() <= high
    assert how.zoom[how.zoom != 1].log().mean() == pytest.approx(sum(map(math.log, camera.ZOOM)) / 2, abs=0.06)


def test_under_our_conditions_nothing_changes(photographs):
    x = photographed(photographs, ours(4), 240)
    torch.testing.assert_close(x * 255, photographs.float(), atol=0.01, rtol=0)
    torch.testing.assert_close(
        photographed(photographs, ours(4), 120, seen=0.5), x[..., 60:180, 60:180], atol=1e-4, rtol=0
    )


def test_each_photograph_has_its_own_conditions(photographs):
    plain, two = photographed(photographs, ours(4), 240), torch.tensor([1.0, 1, 1.5, 0.5])
    changes = {
        "zoom": two,
        "field": 0.6 * two.clamp(max=1),
        "dyes": two[:, None].repeat(1, 2),
        "light": two[:, None].repeat(1, 3),
        "blur": (two != 1) * 0.01,
        "quality": (two != 1) * 30.0,
    }
    for name, value in changes.items():
        x = photographed(photographs, replace(ours(4), **{name: value}), 240)
        changed = ((x - plain).abs() > 1e-3).flatten(1).any(1)
        assert changed.tolist() == ([True] * 4 if name == "field" else [False, False, True, True]), name
        assert x.min() >= 0 and x.max() <= 1


def test_it_is_the_same_whatever_else_is_in_the_batch(photographs):
    how = drawn(4, torch.Generator().manual_seed(1))
    how = replace(how, zoom=torch.tensor([1.0, 1.2, 1.4, 1.9]))
    together = photographed(photographs, how, 120)
    for i in range(4):
        one = Conditions(*(getattr(how, field.name)[i : i + 1] for field in fields(how)))
        torch.testing.assert_close(
            photographed(photographs[i : i + 1], one, 120), together[i : i + 1], atol=0.03, rtol=0
        )
