from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bloodcell_lib.recipe import TrainConfig, learning_rate, side


def test_learning_rates():
    config = TrainConfig(epochs=10, learning_rate=1e-3, final_rate=1e-6)
    assert [learning_rate(config, e) for e in (0, 10)] == pytest.approx([1e-3, 1e-6])
    assert learning_rate(config, 5) == pytest.approx((1e-3 + 1e-6) / 2)
    assert learning_rate(config, 2.5) == pytest.approx(1e-6 + (1e-3 - 1e-6) * (1 + math.sqrt(0.5)) / 2)
    step = replace(config, schedule="step")
    assert [learning_rate(step, e) for e in (0, 4.9, 5, 7.4, 7.5, 10)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    )
    assert {learning_rate(replace(config, schedule="constant"), e) for e in (0, 3.3, 10)} == {1e-3}
    warm = replace(config, warmup=2)
    rates = [learning_rate(warm, e / 10) for e in range(101)]
    assert 0 < rates[0] < 1e-6 and rates[10] == pytest.approx(5e-4, rel=1e-2) and max(rates) == rates[20] == 1e-3
    assert rates[60] == pytest.approx((1e-3 + 1e-6) / 2) and rates[100] == pytest.approx(1e-6)


def test_sides():
    config = TrainConfig(epochs=20, start_size=0.5)
    assert [side(config, 96, epoch) for epoch in (0, 5, 10, 14, 15, 19)] == [48, 64, 80, 96, 96, 96]
    assert [side(config, 224, epoch) for epoch in (0, 15)] == [112, 224]
    assert all(side(TrainConfig(), 100, epoch) == 100 for epoch in range(50))
    for pixels in (8, 17, 40, 100, 363):
        sides = [side(replace(config, start_size=0.01), pixels, epoch) for epoch in range(20)]
        assert sides == sorted(sides) and sides[0] >= min(16, pixels) and sides[-1] == pixels
