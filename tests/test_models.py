from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.efficientnet import MBConv as TheirMBConv
from torchvision.models.efficientnet import MBConvConfig

from bloodcell_lib import layers, models
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import MBConv, ModelConfig, SqueezeExcite, Stage, StochasticDepth, build

NAMES = list(models.NETWORKS)
MBCONV_NAMES = ["deep_efficientnet", "as_described", "efficientnet_lite"]


def network(name: str, seed: int = 0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return build(ModelConfig(name, **changes))


def lively(model: nn.Module) -> nn.Module:
    """Batch norms as after some training: residual branches that start at zero would hide what is in them."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("simple_cnn", 26_084_104, 26_084_104),
        ("resnet18", 11_180_616, 11_180_616),
        ("deep_efficientnet", 1_840_228 * 0.99, 1_840_228 * 1.01),
        ("efficientnet_lite", 550_000 * 0.98, 550_000 * 1.02),
        ("as_described", 295_000, 305_000),
        ("broad", 1_400_000, 1_450_000),
        ("slim_resnet", 1_700_000, 1_840_228),
    ],
)
def test_parameters(name, low, high):
    model = network(name)
    assert low <= models.parameters(model) <= high
    assert models.parameters(model) == sum(p.numel() for p in model.net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_input_size_gives_eight_logits_with_the_same_parameters(name):
    model = network(name).eval()
    before = models.parameters(model)
    for pixels, batch in ((32, 3), (64, 2), (112, 1), (224, 1)):
        with torch.no_grad():
            logits = model(torch.rand(batch, 3, pixels, pixels))
        assert logits.shape == (batch, 8) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert models.parameters(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = lively(network(name, stochastic_depth=0.0)).train()
    F.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
    still = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert not still


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_image_by_image(name):
    model = lively(network(name)).eval()
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(together, model(x))
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MBCONV_NAMES)
def test_what_is_switched_off_is_gone(name):
    bare = network(name, dropout=0.0, stochastic_depth=0.0, squeeze_excite=False)
    assert not [m for m in bare.modules() if isinstance(m, (nn.Dropout, StochasticDepth, SqueezeExcite))]
    x = torch.rand(2, 3, 32, 32)
    bare.train()
    with torch.no_grad():
        assert torch.equal(bare(x), bare(x))  # nothing left that draws by lot


def test_squeeze_and_excitation_stands_in_stages_3_and_4_alone():
    for name in ("deep_efficientnet", "as_described"):
        stages = network(name).net.stages
        has = [[isinstance(block.squeeze_excite, SqueezeExcite) for block in stage] for stage in stages]
        assert [set(row) for row in has] == [{False}, {False}, {True}, {True}]
    with_se, without = network("deep_efficientnet"), network("deep_efficientnet", squeeze_excite=False)
    gates = sum(p.numel() for m in with_se.modules() if isinstance(m, SqueezeExcite) for p in m.parameters())
    assert models.parameters(with_se) - models.parameters(without) == gates > 0


def test_stochastic_depth_grows_linearly_to_what_was_asked():
    blocks = [block for stage in network("deep_efficientnet", stochastic_depth=0.2).net.stages for block in stage]
    for i, block in enumerate(blocks):
        assert isinstance(block.drop, StochasticDepth) == (block.residual and i > 0)
        if isinstance(block.drop, StochasticDepth):
            assert block.drop.probability == pytest.approx(0.2 * i / (len(blocks) - 1))
    assert blocks[-1].drop.probability == pytest.approx(0.2)


def test_deep_efficientnets_feature_maps():
    seen = models.trace(network("deep_efficientnet"), 224)
    shapes = [seen[f"net.stages.{i}"][0] for i in range(4)]
    assert shapes == [(16, 112, 112), (24, 56, 56), (40, 28, 28), (80, 14, 14)]
    assert seen["net.stem"][0] == (32, 112, 112) and seen[""][0] == (8,)


def test_the_broad_network_costs_what_the_deep_one_does():
    assert models.macs(network("broad"), 96) == pytest.approx(models.macs(network("deep_efficientnet"), 96), rel=0.02)


def given_the_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))


def assert_alike(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Outputs, gradients of input and parameters, and buffers after one training step's pass and one in evaluation."""
    for training in (True, False):
        results = []
        for module in (ours, theirs):
            torch.manual_seed(3)
            module.train(training).zero_grad()
            seen = x.clone().requires_grad_()
            out = module(seen)
            out.square().sum().backward()
            results.append([out, seen.grad, *(p.grad for p in module.parameters()), *module.buffers()])
        torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_squeeze_excite_is_torchvisions():
    torch.manual_seed(0)
    ours, theirs = SqueezeExcite(24, 6), ops.SqueezeExcitation(24, 6, activation=nn.SiLU)
    given_the_same_weights(ours, theirs)
    assert_alike(ours, theirs, torch.randn(3, 24, 7, 9))


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize(
    ("channels_in", "channels", "expand", "stride", "kernel"),
    [(32, 16, 1, 1, 3), (16, 24, 6, 2, 3), (24, 24, 6, 1, 3), (16, 16, 4, 1, 5)],
)
def test_mbconv_is_torchvisions(channels_in, channels, expand, stride, kernel, drop):
    torch.manual_seed(0)
    stage = Stage(channels, 1, stride, expand, squeeze_excite=True)
    ours = lively(MBConv(channels_in, stage, stride, ModelConfig(kernel=kernel), drop))
    config = MBConvConfig(expand, kernel, stride, channels_in, channels, 1)
    theirs = TheirMBConv(config, drop, nn.BatchNorm2d)
    given_the_same_weights(ours, theirs)
    assert_alike(ours, theirs, torch.randn(6, channels_in, 9, 8))


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7])
def test_stochastic_depth_is_torchvisions(probability):
    ours, theirs = StochasticDepth(probability), ops.StochasticDepth(probability, mode="row")
    assert_alike(ours, theirs, torch.randn(64, 4, 3, 3))
    torch.manual_seed(0)
    out = ours.train()(torch.ones(20_000, 1, 1, 1))
    assert out.mean() == pytest.approx(1, abs=0.05)
    assert (out == 0).float().mean() == pytest.approx(probability, abs=0.02)


def test_macs_of_simple_cnn_by_hand():
    by_hand = 9 * (3 * 32 * 224**2 + 32 * 64 * 112**2 + 64 * 128 * 56**2 + 128 * 256 * 28**2)
    assert models.macs(network("simple_cnn"), 224) == by_hand + 256 * 14 * 14 * 512 + 512 * 8


def test_macs_of_resnet18_by_hand():
    by_hand = 3 * 64 * 49 * 112**2
    before, side = 64, 56
    for width in (64, 128, 256, 512):
        side = side if width == 64 else side // 2
        first = before * width * 9 + (before * width if before != width else 0)  # and the 1 x 1 short cut
        by_hand += (first + 3 * width * width * 9) * side**2
        before = width
    by_hand += 512 * 8
    assert models.macs(network("resnet18"), 224) == by_hand
    assert by_hand == pytest.approx(1.814e9, rel=1e-3)


def test_tracing_leaves_the_model_as_it_was():
    model = network("efficientnet_lite").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    models.trace(model, 64)
    assert model.training and all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_standardise_takes_exact_mean_and_deviation():
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (5, 6, 7, 3), generator=generator, dtype=torch.uint8)
    stored[..., 1] //= 3
    images = stored.permute(0, 3, 1, 2)  # as the cache gives them: channels last in memory
    standardise = models.Standardise()
    standardise.fit(images)
    double = images.double() / 255
    torch.testing.assert_close(standardise.mean, double.mean((0, 2, 3)).float())
    torch.testing.assert_close(standardise.std, double.std((0, 2, 3), unbiased=False).float())
    out = standardise((images / 255).float())
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5, rtol=0)


def test_standardise_survives_a_blank_channel_and_travels_with_the_weights():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = 255
    first = network("efficientnet_lite")
    first.standardise.fit(images)
    assert first.standardise(images / 255).isfinite().all()
    second = network("efficientnet_lite", seed=1)
    second.load_state_dict(first.state_dict())
    assert second.standardise.mean.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_group_norm_stands_in_for_every_batch_norm(name):
    batch, group = network(name), network(name, norm="group")
    assert models.parameters(batch) == models.parameters(group)  # both have a gain and a shift a channel
    kinds = [{type(m) for m in model.modules()} for model in (batch, group)]
    assert nn.BatchNorm2d in kinds[0] and nn.GroupNorm not in kinds[0]
    assert nn.GroupNorm in kinds[1] and nn.BatchNorm2d not in kinds[1]
    for module in group.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_channels == layers.GROUP_SIZE * module.num_groups
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    group.eval()  # dropout and stochastic depth aside, an image's result does not hang on its batch
    torch.testing.assert_close(group(x)[:1], group(x[:1]), atol=1e-5, rtol=1e-4)


def test_an_unknown_norm_is_told():
    with pytest.raises(BloodcellError, match="Unknown norm 'layer': choose one of batch, group"):
        network("simple_cnn", norm="layer")


def test_grey_world_takes_a_tint_away():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator) * 0.5 + 0.1
    tint = torch.tensor([1.3, 1.0, 0.7])[:, None, None]
    plain, tinted = layers.grey_world(images), layers.grey_world(images * tint)
    mean = plain.mean((2, 3))
    torch.testing.assert_close(mean, images.mean((1, 2, 3))[:, None].expand(4, 3))
    torch.testing.assert_close(
        plain / plain.mean((1, 2, 3), keepdim=True), tinted / tinted.mean((1, 2, 3), keepdim=True)
    )
    assert layers.grey_world(torch.zeros(1, 3, 4, 4)).isfinite().all()


def test_a_white_point_takes_the_light_away_and_leaves_the_cell():
    images = torch.full((3, 3, 32, 32), 0.9)
    images[:, :, 8:20, 8:20] = torch.tensor([0.5, 0.2, 0.6])[:, None, None]
    images[1] *= torch.tensor([1.0, 0.9, 0.7])[:, None, None]  # the same smear in other light
    images[2, :, 8:20, 8:20] *= 0.5  # a darker cell, which it stays
    out = layers.white_point(images)
    torch.testing.assert_close(out[:, :, :4].mean((2, 3)), torch.full((3, 3), layers.WHITE))
    torch.testing.assert_close(out[1], out[0])
    torch.testing.assert_close(out[2, :, 10, 10], out[0, :, 10, 10] / 2)
    assert layers.white_point(torch.zeros(1, 3, 4, 4)).isfinite().all()


def test_two_balances_are_refused():
    with pytest.raises(BloodcellError, match="choose one"):
        network("simple_cnn", grey_world=True, white_point=True)


@pytest.mark.parametrize("balance", ["grey_world", "white_point"])
def test_a_balance_goes_with_the_network_into_what_is_exported(balance):
    images = torch.randint(120, 200, (8, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images[:, 2] //= 2
    model = network("efficientnet_lite", **{balance: True}).eval()
    model.standardise.fit(images)
    out = model.standardise(images / 255)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), atol=0.01, rtol=0)
    program = torch.export.export(model, (images[:2] / 255,))
    torch.testing.assert_close(program.module()(images[2:4] / 255), model(images[2:4] / 255))
    assert model.state_dict().keys() == network("efficientnet_lite").state_dict().keys()


@pytest.mark.parametrize("side", [64, 66, 67])
def test_a_close_up_is_the_centre_beside_the_whole(side):
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    half, at = side // 2, (side - side // 2) // 2
    seen = layers.close_up(x)
    torch.testing.assert_close(seen[:, 3:], x[:, :, at : at + half, at : at + half], atol=0, rtol=0)
    torch.testing.assert_close(seen[:, :3, 3, 5], x[:, :, 6:8, 10:12].mean((2, 3)))
    assert seen.shape == (2, 6, half, half)


def test_what_is_halved_is_seen_as_means_of_four_pixels():
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with_one, without = network("slim_resnet", halved=True).eval(), network("slim_resnet").eval()
    torch.testing.assert_close(with_one(x), without(x.view(2, 3, 32, 2, 32, 2).mean((3, 5))))
    assert models.macs(with_one, 64) == models.macs(without, 32)


@pytest.mark.parametrize("name", ["slim_resnet", "deep_efficientnet"])
def test_a_close_up_costs_the_first_layer_alone(name):
    with_one, without = network(name, close_up=True).eval(), network(name).eval()
    x = torch.rand(2, 3, 64, 64)
    assert with_one(x).shape == (2, 8)
    more = models.parameters(with_one) - models.parameters(without)
    assert more == models.parameters(without.net.stem[0] if name != "slim_resnet" else without.net.features[0][0])
    x[:, :, 20:40, 20:40] = 0
    assert not torch.equal(with_one(x), with_one(torch.zeros_like(x)))
    program = torch.export.export(with_one, (x,))
    torch.testing.assert_close(program.module()(x), with_one(x))


def test_the_global_seed_makes_the_weights():
    one, same, other = (network("deep_efficientnet", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.stem.0.weight"], other["net.stem.0.weight"])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": "resnet19"}, "Unknown model 'resnet19': choose one of deep_efficientnet"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"stochastic_depth": -0.1}, "stochastic_depth is -0.1"),
        ({"kernel": 4}, "kernel is 4: give an odd number"),
        ({"close_up": True, "halved": True}, "close_up halves the whole image itself: leave halved out"),
        ({"name": "resnet18", "close_up": True}, "resnet18 takes no close-up: choose slim_resnet"),
    ],
)
def test_bad_configurations_are_told(changes, word):
    with pytest.raises(BloodcellError, match=word):
        build(ModelConfig(**changes))
