"""Finding the cell: against the truth of drawn cells, and where there is nothing or too much to find."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from bloodcell_lib import segment, synthetic, views
from bloodcell_lib.cells import NAMES
from bloodcell_lib.errors import BloodcellError

EACH = 6


def framed(array: np.ndarray, crop: int, pixels: int) -> np.ndarray:
    """As `data.load` crops and resizes a picture, or a mask."""
    image = Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    image = image.crop((left, top, left + crop, top + crop)).resize((pixels, pixels), Image.Resampling.BILINEAR)
    return np.asarray(image) > 127 if array.dtype == bool else np.asarray(image)


def drawn(pixels: int, crop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images uint8 (n, 3, pixels, pixels), EACH of each class in turn, and their true cells and nuclei."""
    parts = [synthetic.draw_with_masks(name, np.random.default_rng((11, i))) for name in NAMES for i in range(EACH)]
    images, cells, nuclei = (
        torch.from_numpy(np.stack([framed(np.asarray(part), crop, pixels) for part in column]))
        for column in zip(*parts)
    )
    return images.permute(0, 3, 1, 2).contiguous(), cells, nuclei


def overlap(found: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Intersection over union of masks (n, H, W), float (n,)."""
    return ((found & truth).sum((1, 2)) / (found | truth).sum((1, 2))).numpy()


@pytest.fixture(scope="module")
def scene():
    return drawn(96, 240)


@pytest.mark.parametrize(("pixels", "crop"), [(64, 200), (96, 240), (224, 360)])
def test_drawn_cells_are_found(pixels, crop):
    images, cells, nuclei = drawn(pixels, crop)
    masks = segment.segment(images)
    assert masks.cell.shape == (8 * EACH, pixels, pixels) and masks.cell.dtype == torch.bool
    assert not (masks.nucleus & ~masks.cell).any()
    found = overlap(masks.cell, cells)
    assert np.median(found) > 0.9 and found.min() > 0.65
    # A basophil's granules hide its nucleus, and a platelet has none.
    plain = [k for k, name in enumerate(NAMES) if name not in ("basophil", "platelet")]
    inside = overlap(masks.nucleus, nuclei).reshape(8, EACH)[plain]
    assert np.median(inside) > 0.85


def test_red_cells_are_left_out(scene):
    images, cells, _ = scene
    masks = segment.segment(images)
    red, _ = segment.densities(images.float())
    others = (red[:, 0] > 0.2) & ~cells  # what is coloured and not the cell: red cells and stray platelets
    assert (masks.cell & others).sum() < 0.05 * others.sum()


def test_a_turned_image_gives_the_turned_mask_and_batches_do_not_matter(scene):
    images = scene[0]
    whole = segment.segment(images).cell
    assert torch.equal(segment.segment(images[5:6]).cell[0], whole[5])
    assert overlap(torch.rot90(segment.segment(torch.rot90(images, 1, (2, 3))).cell, -1, (1, 2)), whole).min() > 0.97


def test_darker_light_gives_the_same_cell(scene):
    images = scene[0]
    dimmed = (images.float() * torch.tensor([0.7, 0.8, 0.75])[:, None, None]).byte()
    assert np.median(overlap(segment.segment(dimmed).cell, segment.segment(images).cell)) > 0.95


def test_images_without_a_cell_have_empty_masks():
    generator = torch.Generator().manual_seed(0)
    blank = torch.full((1, 3, 40, 50), 230, dtype=torch.uint8)
    black = torch.zeros(1, 3, 40, 50, dtype=torch.uint8)
    grain = (230 + 2 * torch.randn(1, 3, 40, 50, generator=generator)).byte()
    masks = segment.segment(torch.cat([blank, black, grain]))
    assert masks.cell.shape == (3, 40, 50) and not masks.cell.any() and not masks.nucleus.any()
    assert segment.segment(blank[:0]).cell.shape == (0, 40, 50)


def test_a_cell_that_fills_the_picture_is_found():
    full = torch.tensor([90, 45, 130], dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, 48, 48)
    full[:, :, :6] = torch.tensor([254, 229, 204], dtype=torch.uint8).view(1, 3, 1, 1)
    assert segment.segment(full).cell[0, 10:].all()


@pytest.mark.parametrize("wrong", [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8)])
def test_other_tensors_are_refused(wrong):
    with pytest.raises(BloodcellError, match="give uint8"):
        segment.segment(wrong)


def test_otsu_cuts_between_two_levels():
    values = torch.tensor([0.1] * 50 + [0.7] * 14).view(1, 1, 8, 8)
    cut = segment.otsu(values).item()
    assert 0.1 < cut <= 0.7 and ((values > cut).sum() == 14)


@pytest.mark.skipif(not os.environ.get("BLOODCELL_DATA"), reason="needs the course's images in BLOODCELL_DATA")
def test_a_cell_is_found_in_real_images():
    cells = views.load_images("cpu", views.image_folder(None, "cpu"), progress=False)
    some = cells.subset(range(0, len(cells), 20))
    masks = segment.segment(some.images)
    area = masks.cell.float().mean((1, 2)).numpy()
    assert (area > 0.01).all() and (area < 0.8).mean() > 0.98
    typical = {name: np.median(area[some.labels.numpy() == k]) for k, name in enumerate(NAMES)}
    assert typical["platelet"] == min(typical.values()) and typical["monocyte"] > 2 * typical["erythroblast"]
    middle = masks.cell[:, 43:53, 43:53].float().mean((1, 2))
    assert (middle > 0.5).float().mean() > 0.97
