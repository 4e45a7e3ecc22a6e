"""Where a network looks: Grad-CAM (Selvaraju et al. 2017), by captum.

The map of a class weighs the channels of the last feature map by the class's mean gradient and keeps what speaks for
the class. It is as coarse as that feature map: 6 x 6 for the MBConv networks at 96 pixels, 14 x 14 at 224.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloodcell_lib.analysis import as_input
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.layers import close_up
from bloodcell_lib.models import CLASSES, Classifier, MBConvNet, SimpleCNN, SlimResNet


def parts(network: Classifier) -> dict[str, nn.Module]:
    """The parts of a network from its output to its input, by name: each the layer or stage that the next one feeds.

    The first is the linear head, the second ends in the last feature map. Raises BloodcellError for a network that has
    none whose places are places of the picture: of a close-up, each stands for two.
    """
    net = network.net
    if network.look is close_up:
        raise BloodcellError("A network with a close-up has no map of one picture: explain one without.")
    if isinstance(net, MBConvNet):
        stages = {f"stage {i + 1}": stage for i, stage in reversed(list(enumerate(net.stages)))}
        return {"head": net.head, **stages, "stem": net.stem}
    if isinstance(net, SimpleCNN):
        blocks = [net.features[i : i + 4] for i in range(0, len(net.features), 4)]  # share the network's layers
        return {"head": net.head, **{f"block {i + 1}": block for i, block in reversed(list(enumerate(blocks)))}}
    if isinstance(net, SlimResNet):
        stages = {f"stage {k}": net.features[2 * k - 1 : 2 * k + 1] for k in range(4, 0, -1)}  # of two blocks each
        return {"head": net.head, **stages, "stem": net.features[0]}
    if hasattr(net, "layer4"):  # torchvision's ResNet, which is not imported for its name
        layers = {f"layer {i}": getattr(net, f"layer{i}") for i in range(4, 0, -1)}
        return {"head": net.fc, **layers, "stem": nn.Sequential(net.conv1, net.bn1)}
    raise BloodcellError(f"No feature map is known for a {type(net).__name__}: add it to gradcam.parts.")


def coarse_maps(network: Classifier, images: Tensor, classes: Tensor, batch_size: int = 64) -> Tensor:
    """Grad-CAM at the feature map's own size, float (n, h, w) on the CPU, at least 0, not scaled.

    images: uint8 or float in [0, 1], (n, 3, H, W); classes: int64 (n,) in 0..7. Raises BloodcellError where they do not
    match, or for a network without a known feature map.
    """
    from captum.attr import LayerGradCam  # here, since it takes a second to load

    if classes.shape != (len(images),) or (
        len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < CLASSES
    ):
        raise BloodcellError(f"{len(images)} images and classes {tuple(classes.shape)}: give one of 0 to 7 an image.")
    last = list(parts(network).values())[1]
    # Of slices the network calls the layers alone.
    method = LayerGradCam(network, last[-1] if isinstance(network.net, (SimpleCNN, SlimResNet)) else last)
    device = next(network.parameters()).device
    found = [
        method.attribute(as_input(x, device), target=k.to(device), relu_attributions=True)[:, 0].detach().float().cpu()
        for x, k in zip(images.split(batch_size), classes.split(batch_size))
    ]
    return torch.cat(found)


def enlarged(coarse: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps (n, h, w), at least 0, at the images' size, each scaled to a maximum of 1 unless it is 0 all over."""
    maps = F.interpolate(coarse[:, None], size, mode="bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
