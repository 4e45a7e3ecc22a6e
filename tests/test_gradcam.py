"""Grad-CAM against its definition, for every kind of network."""

import pytest
import torch
from torch import nn

from bloodcell_lib import gradcam, models
from bloodcell_lib.analysis import as_input
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.layers import halved
from bloodcell_lib.models import ModelConfig

FAMILIES = ("deep_efficientnet", "as_described", "efficientnet_lite", "simple_cnn", "resnet18", "slim_resnet")


def network(name: str, **settings: bool) -> models.Classifier:
    torch.manual_seed(3)
    return models.build(ModelConfig(name, **settings)).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


CLASSES = torch.tensor([0, 7, 3, 3, 1])


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_of_every_network(name, images):
    net = network(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    coarse = gradcam.coarse_maps(net, images, CLASSES, batch_size=2)
    maps = gradcam.enlarged(coarse, images.shape[-2:])
    assert maps.shape == (5, 64, 64) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.min() >= 0 and ((maps.amax((1, 2)) - 1).abs() < 1e-5).any()
    assert torch.allclose(coarse, gradcam.coarse_maps(net, images, CLASSES, batch_size=64), atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.parametrize("name", ("efficientnet_lite", "resnet18"))
def test_a_map_is_the_definition(name, images):
    """Mean gradient times activation, summed over channels, kept above 0: equations 1 and 2 of the paper."""
    net = network(name)
    kept = {}
    last = list(gradcam.parts(net).values())[1]
    handle = last.register_forward_hook(lambda module, given, out: kept.update(out=out))
    score = net(as_input(images, "cpu")).gather(1, CLASSES[:, None]).sum()
    gradient = torch.autograd.grad(score, kept["out"])[0]
    handle.remove()
    by_hand = (gradient.mean((2, 3), keepdim=True) * kept["out"]).sum(1).relu().detach()
    assert by_hand.amax() > 0
    assert torch.allclose(gradcam.coarse_maps(net, images, CLASSES), by_hand, rtol=1e-3, atol=1e-6)


def test_maps_of_a_network_that_halves_its_images_are_maps_of_these(images):
    halves, plain = network("slim_resnet", halved=True), network("slim_resnet")
    smaller = gradcam.coarse_maps(plain, halved(images / 255), CLASSES)
    assert torch.allclose(gradcam.coarse_maps(halves, images, CLASSES), smaller, rtol=1e-3, atol=1e-6)
    assert smaller.max() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_are_the_whole_network_from_the_head_down(name):
    net = network(name)
    parts = gradcam.parts(net)
    assert next(iter(parts)) == "head" and len(parts) >= 5
    found = [id(weight) for part in parts.values() for weight in part.parameters()]
    assert sorted(found) == sorted(id(weight) for weight in net.net.parameters())


def test_a_map_without_heat_stays_dark():
    maps = gradcam.enlarged(torch.stack([torch.zeros(4, 4), torch.eye(4) * 5]), (16, 16))
    assert maps[0].eq(0).all() and maps[1].max() == 1


@pytest.mark.parametrize(
    "classes", [torch.tensor([0, 1]), torch.tensor([0, 1, 2, 3, 8]), torch.tensor([-1, 1, 2, 3, 4])]
)
def test_wrong_classes_are_told(images, classes):
    with pytest.raises(BloodcellError, match="give one of 0 to 7"):
        gradcam.coarse_maps(network("efficientnet_lite"), images, classes)


def test_an_unknown_network_is_told():
    with pytest.raises(BloodcellError, match="explain one without"):
        gradcam.parts(models.build(ModelConfig("slim_resnet", close_up=True)))
    with pytest.raises(BloodcellError, match="No feature map is known for a Linear"):
        gradcam.parts(models.Classifier(nn.Linear(2, 2), nn.Identity()))
