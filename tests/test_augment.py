from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from bloodcell_lib import augment, stain
from bloodcell_lib.augment import NONE, Augment, AugmentConfig


@pytest.fixture
def batch() -> torch.Tensor:
    """Smooth, mid-tone colour fields: nothing clamps, and resampling is near exact."""
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    return torch.nn.functional.interpolate(coarse, (48, 64), mode="bicubic").clamp(0.05, 0.95)


def ones(n: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((n,), float(value))


def inner(x: torch.Tensor) -> torch.Tensor:
    """The centre, which no edge rule touches."""
    return x[..., 14:-14, 20:-20]


@pytest.mark.parametrize(
    ("angle", "scale", "shift"),
    [(30, 1, (0, 0)), (-75, 1, (0, 0)), (0, 1.2, (0, 0)), (0, 1, (0.125, -0.125)), (20, 0.9, (0.0625, 0.125))],
)
def test_affine_is_torchvisions(batch, angle, scale, shift):
    n, _, height, width = batch.shape
    ours = augment.affine(
        batch, ones(n, angle), ones(n, scale), torch.tensor([shift], dtype=torch.float32).expand(n, 2), ones(n), ones(n)
    )
    theirs = tv.affine(
        batch,
        -angle,
        [shift[0] * width, shift[1] * height],
        scale,
        [0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    torch.testing.assert_close(inner(ours), inner(theirs), atol=2e-3, rtol=0)


def test_flips_are_exact(batch):
    n = len(batch)
    still = (ones(n, 0), ones(n), torch.zeros(n, 2))
    torch.testing.assert_close(
        augment.affine(batch, *still, -ones(n), ones(n)), tv.horizontal_flip(batch), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        augment.affine(batch, *still, ones(n), -ones(n)), tv.vertical_flip(batch), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(augment.affine(batch, *still, ones(n), ones(n)), batch, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation"])
def test_colour_is_torchvisions(batch, part, factor):
    values = {"brightness": ones(4), "contrast": ones(4), "saturation": ones(4), "hue": ones(4, 0)}
    values[part] = ones(4, factor)
    theirs = getattr(tv, f"adjust_{part}")(batch, factor)
    torch.testing.assert_close(augment.recolour(batch, **values), theirs, atol=2e-3, rtol=0)


def test_colour_parts_compose_in_torchvisions_order(batch):
    ours = augment.recolour(batch, ones(4, 1.1), ones(4, 0.9), ones(4, 1.2), ones(4, 0))
    theirs = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(batch, 1.1), 0.9), 1.2)
    torch.testing.assert_close(ours, theirs, atol=3e-3, rtol=0)


def hue_of(x: torch.Tensor) -> torch.Tensor:
    """Angle about the grey axis as a unit complex number, weighted by its chroma."""
    r, g, b = x.unbind(1)
    return torch.complex(r - (g + b) / 2, 3**0.5 / 2 * (g - b))


@pytest.mark.parametrize("turn", [-0.1, 0.05, 0.1])
def test_hue_turns_as_far_as_torchvisions(batch, turn):
    """The two spaces differ, so compare the mean angle that colours go by; ours also keeps the luma."""
    ours = augment.recolour(batch, ones(4), ones(4), ones(4), ones(4, turn))
    theirs = tv.adjust_hue(batch, turn)
    angles = [(hue_of(x) * hue_of(batch).conj()).sum().angle().item() / (2 * torch.pi) for x in (ours, theirs)]
    assert angles[1] == pytest.approx(turn, abs=0.01)
    assert angles[0] == pytest.approx(angles[1], abs=0.02)
    luma = torch.tensor(augment.GREY)[:, None, None]
    torch.testing.assert_close((luma * ours).sum(1), (luma * batch).sum(1), atol=5e-3, rtol=0)


def test_hue_of_nothing_and_of_a_full_turn_is_the_identity(batch):
    for turn in (0.0, 1.0):
        torch.testing.assert_close(
            augment.recolour(batch, ones(4), ones(4), ones(4), ones(4, turn)), batch, atol=1e-5, rtol=0
        )


def test_blur_is_torchvisions_for_each_image(batch):
    sigma = torch.tensor([0.5, 1.0, 1.5, 2.0])
    ours = augment.blur(batch, sigma)
    for i, s in enumerate(sigma.tolist()):
        theirs = tv.gaussian_blur(batch[i : i + 1], [13, 13], [s, s])
        torch.testing.assert_close(ours[i : i + 1], theirs, atol=1e-4, rtol=0)


def test_none_is_exact_and_default_moves_every_image_its_own_way():
    batch = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).expand(
        6, -1, -1, -1
    )
    torch.testing.assert_close(Augment(NONE)(batch), batch / 255, atol=0, rtol=0)
    out = Augment(AugmentConfig(blur=1.0))(batch, torch.Generator().manual_seed(2))
    assert out.shape == batch.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    assert all((out[i] - out[j]).abs().mean() > 0.01 for i in range(6) for j in range(i))
    again = Augment(AugmentConfig(blur=1.0))(batch, torch.Generator().manual_seed(2))
    assert torch.equal(out, again)


def test_ranges_are_kept():
    """A bright spot right of the centre stays within the rotation, scale and shift that were asked for."""
    batch = torch.zeros(256, 3, 65, 65, dtype=torch.uint8)
    batch[..., 32, 52] = 255
    config = AugmentConfig(
        flips=False, rotation=30, scale=(0.9, 1.1), translate=0.0, brightness=0, contrast=0, saturation=0, hue=0
    )
    out = Augment(config)(batch, torch.Generator().manual_seed(3))[:, 0]
    axis = torch.arange(65.0) - 32
    mass = out.sum((1, 2))
    x, y = (out.sum(1) @ axis) / mass, (out.sum(2) @ axis) / mass
    assert torch.rad2deg(torch.atan2(y, x)).abs().max() <= 30.5
    radius = torch.hypot(x, y) / 20
    assert radius.min() > 0.88 and radius.max() < 1.12
    assert torch.rad2deg(torch.atan2(y, x)).std() > 10


def test_flips_and_turns_are_the_eight_symmetries_each_as_likely():
    image = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    out = Augment(replace(NONE, flips=True, turns=True))(image.repeat(800, 1, 1, 1), torch.Generator().manual_seed(8))
    turned = [x.rot90(k, (2, 3)) for x in (image / 255, (image / 255).flip(3)) for k in range(4)]
    alike = torch.stack([(out - one).abs().amax((1, 2, 3)) < 1e-4 for one in turned])  # (8, 800)
    assert (alike.sum(0) == 1).all()
    assert alike.sum(1).min() >= 70 and alike.sum(1).max() <= 130


def test_about_half_the_pictures_have_been_through_a_jpeg_file():
    rough = torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = Augment(replace(NONE, jpeg=15))(rough, torch.Generator().manual_seed(5))
    off = (out - rough / 255).abs().mean((1, 2, 3))
    touched = off > 0
    assert 20 <= touched.sum() <= 44
    assert (off[touched] > 0.01).all() and out.min() >= 0 and out.max() <= 1
    again = Augment(replace(NONE, jpeg=15))(rough, torch.Generator().manual_seed(5))
    assert torch.equal(out, again)


def test_stain_jitter_scales_two_stains_and_leaves_what_was_drawn_before():
    batch = torch.randint(60, 220, (64, 3, 16, 16), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    out = Augment(replace(NONE, stain=0.3))(batch, torch.Generator().manual_seed(5))
    ratio = stain.densities(out).mean((2, 3)) / stain.densities(batch / 255).mean((2, 3))
    assert 0.7 <= ratio[:, :2].min() < 0.8 and 1.2 < ratio[:, :2].max() <= 1.3
    assert torch.corrcoef(ratio[:, :2].T)[0, 1].abs() < 0.4  # each stain for itself
    torch.testing.assert_close(ratio[:, 2], torch.ones(64), atol=1e-2, rtol=0)
    # A batch's other parameters, and the next batch's, are those of a run that knows no stain.
    generators = [torch.Generator().manual_seed(6) for _ in range(2)]
    for config, generator in zip((AugmentConfig(), AugmentConfig(stain=0.0, tint=0.0)), generators):
        Augment(config)(batch, generator)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_a_tint_scales_each_channel_of_each_image_by_its_own_factor():
    batch = torch.randint(20, 200, (64, 3, 8, 8), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    gains = Augment(replace(NONE, tint=0.2))(batch, torch.Generator().manual_seed(5)) / (batch / 255)
    torch.testing.assert_close(gains.amin((2, 3)), gains.amax((2, 3)))  # nowhere else but in the channel
    gains = gains.mean((2, 3))
    assert 0.8 <= gains.min() < 0.82 and 1.18 < gains.max() <= 1.2
    assert torch.corrcoef(gains.T).triu(1).abs().max() < 0.4
    light = Augment(replace(NONE, tint=0.2))(torch.full_like(batch, 255), torch.Generator().manual_seed(5))
    assert light.max() == 1
