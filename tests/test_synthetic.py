"""Drawn cells: the same for a seed, of every class, learnable but not by colour alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bloodcell_lib import synthetic
from bloodcell_lib.cells import CELL_TYPES, NAMES
from bloodcell_lib.errors import BloodcellError


def pixels(name: str, seed: int, **options: str) -> np.ndarray:
    return np.asarray(synthetic.draw(name, np.random.default_rng(seed), **options))


@pytest.mark.parametrize("cell", CELL_TYPES, ids=NAMES)
def test_a_seed_is_a_picture(cell):
    first = synthetic.draw(cell, np.random.default_rng(7))
    assert first.mode == "RGB" and first.size == (360, 363)
    assert np.array_equal(np.asarray(first), pixels(cell.name, 7))
    assert not np.array_equal(np.asarray(first), pixels(cell.name, 8))


@pytest.mark.parametrize("name", NAMES)
def test_the_masks_say_where_the_drawn_cell_is(name):
    image, body, nucleus = synthetic.draw_with_masks(name, np.random.default_rng(7))
    assert np.array_equal(np.asarray(image), pixels(name, 7)), "the masks change the drawing"
    assert body.shape == nucleus.shape == (363, 360) and body.dtype == nucleus.dtype == bool
    assert body[181, 180] and not nucleus[~body].any()
    assert nucleus.any() == (name != "platelet")
    red = np.asarray(image)[..., 0].astype(float)
    ring = binary_dilation(body, iterations=12) & ~binary_dilation(body, iterations=4)
    assert red[body].mean() < red[ring].mean() - 20
    if nucleus.any():
        assert red[nucleus].mean() < red[body & ~nucleus].mean() - 20


def test_the_cell_is_at_the_centre_and_the_field_is_pale():
    for name in NAMES:
        for seed in range(4):
            luminance = pixels(name, seed).mean(2)
            middle = luminance[150:213, 150:210]
            assert middle.min() < 130, (name, seed)
            assert np.percentile(luminance, 80) > 185, (name, seed)


def test_every_class_and_every_finer_type_differ():
    pictures = [pixels(cell.name, 3, prefix=start).tobytes() for cell in CELL_TYPES for start in cell.prefixes]
    # IG and NEUTROPHIL name no form of their own: they are drawn as one of the finer types.
    assert len(set(pictures)) >= len(pictures) - 2


def test_a_segmented_nucleus_falls_into_lobes_and_a_band_does_not():
    def lobes(start: str) -> float:
        counts = []
        for seed in range(12):
            nucleus = pixels("neutrophil", seed, prefix=start)[90:273, 90:270].mean(2) < 115
            counts.append(label(binary_erosion(nucleus, iterations=6))[1])  # threads are thinner than 12 pixels
        return float(np.mean(counts))

    assert lobes("SNE") > lobes("BNE") + 0.5


@pytest.mark.parametrize("unknown", ["Basophil", "", "red cell"])
def test_unknown_type(unknown):
    with pytest.raises(BloodcellError, match="Unknown cell type"):
        synthetic.draw(unknown, np.random.default_rng(0))


def test_prefix_of_another_class():
    with pytest.raises(BloodcellError, match="Unknown file prefix 'BNE' of class ig"):
        synthetic.draw("ig", np.random.default_rng(0), prefix="BNE")


def statistics(picture: np.ndarray) -> list[float]:
    """Colour, darkness and texture of the middle: what an eye would use first."""
    middle = picture[90:273, 90:270].astype(np.float32)
    luminance = middle.mean(2)
    dark = luminance < 150
    values = [*middle.mean((0, 1)), *middle.std((0, 1)), dark.mean(), (luminance < 95).mean(), *middle[dark].mean(0)]
    for sigma in (1, 2, 4):
        detail = gaussian_filter(luminance, sigma) - gaussian_filter(luminance, 2 * sigma)
        values += [detail.std(), np.abs(detail[dark]).mean()]
    return values


def test_classes_can_be_learnt_but_not_from_mean_colour():
    labels = np.repeat(np.arange(len(NAMES)), 25)
    pictures = [np.asarray(synthetic.draw(NAMES[k], np.random.default_rng((1, i)))) for i, k in enumerate(labels)]

    def accuracy(features: list[list[float]]) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        with threadpool_limits(1):  # threads cost more than they bring on matrices this small
            return float((cross_val_predict(model, np.array(features), labels, cv=5) == labels).mean())

    assert accuracy([statistics(picture) for picture in pictures]) > 0.7  # chance is 0.125
    assert accuracy([picture.mean((0, 1)) for picture in pictures]) < 0.6
    assert accuracy([picture[90:273, 90:270].mean((0, 1)) for picture in pictures]) < 0.8
