"""Parts of the networks: norms, squeeze-and-excitation, stochastic depth, the standardisation of what comes in.

Group norm follows Wu and He 2018, squeeze-and-excitation Hu et al. 2018, stochastic depth Huang et al. 2016, the grey
world Buchsbaum 1980, the white point Land and McCann 1971.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channels of one group. Wu and He 2018 find 8 and 16 about as good as their own 32 groups (table 3); 8 divides every
# width here.
GROUP_SIZE = 8
WHITE = 0.8  # what the light becomes: below 1, so that what is brighter still keeps its colour
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(channels // GROUP_SIZE, channels),
}


def conv_norm(
    channels_in: int,
    channels_out: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
    norm: str = "batch",
) -> nn.Sequential:
    """Convolution without bias, a norm of `NORMS` and, if asked for, SiLU."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [conv, NORMS[norm](channels_out)]
    return nn.Sequential(*layers, nn.SiLU()) if activation else nn.Sequential(*layers)


def halved(x: Tensor) -> Tensor:
    """An image at half its side, as means: float (B, C, H, W) -> (B, C, H/2, W/2); an odd side loses its last line."""
    return F.avg_pool2d(x, 2)


def close_up(x: Tensor) -> Tensor:
    """An image at half its side, and behind it its central half as it is: float (B, C, H, W) -> (B, 2 C, H/2, W/2).

    Of an odd side, the whole loses its last row or column.
    """
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return torch.cat([halved(x), x[..., top : top + height, left : left + width]], 1)


class SqueezeExcite(nn.Module):
    """Channel gate of Hu et al. 2018, equation 4, with SiLU between its two layers as in EfficientNet.

    x float (B, C, H, W) -> the same shape, each channel scaled by a number in (0, 1).
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # A mean, not AdaptiveAvgPool2d: that one has no deterministic backward on CUDA.
        gate = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.expand(self.act(self.reduce(gate))))


class StochasticDepth(nn.Module):
    """Drops a whole residual branch, image by image, and scales the kept ones so that the mean stays (Huang 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        mask = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask.div_(keep)


def grey_world(x: Tensor) -> Tensor:
    """Scales the channels of each image so that all three have the mean of the whole (Buchsbaum 1980).

    x float (B, 3, H, W) in [0, 1] -> the same shape, from 0 and perhaps beyond 1; a black channel stays black.
    """
    mean = x.mean((2, 3), keepdim=True)  # (B, 3, 1, 1)
    return x * (mean.mean(1, keepdim=True) / mean.clamp_min(1 / 255))


def white_point(x: Tensor) -> Tensor:
    """Scales the channels of each image so that the light behind the cells is the same grey everywhere.

    The light is the mean of the brightest tenth of each channel, in squares of 4 pixels (white patch; Land and McCann
    1971, who take the brightest point). x float (B, 3, H, W) in [0, 1], sides of at least 4 -> the same shape, from 0
    and perhaps beyond 1.
    """
    coarse = F.avg_pool2d(x, 4).flatten(2)
    light = coarse.topk(max(1, coarse.shape[2] // 10)).values.mean(2)
    return x * (WHITE / light.clamp_min(1 / 255))[:, :, None, None]


class Standardise(nn.Module):
    """(x - mean) / std, channel by channel, kept with the weights so that predictions see what training saw.

    x float (B, 3, H, W) in [0, 1]; mean and std float (3,), of the training images. Both they and x are first balanced
    image by image, where there is a `balance`: `grey_world` or `white_point`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, balance: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.balance = balance
        self.register_buffer("mean", torch.full((3,), 0.5))
        self.register_buffer("std", torch.full((3,), 0.25))

    def fit(self, images: Tensor) -> None:
        """Takes mean and standard deviation from uint8 images (N, 3, H, W), in exact integer sums."""
        if self.balance:  # to whole levels again: what rounding changes is far below one of them
            parts = [(self.balance(x / 255) * 255).round().clamp_(0, 255).byte() for x in images.split(256)]
            images = torch.cat(parts)
        # A histogram for each channel holds all that is needed, and needs no float copy of the images.
        level = torch.arange(256, dtype=torch.float64)
        for c in range(3):
            # In parts, since flattening copies and the images may be larger than the memory.
            parts = (torch.bincount(part.flatten(), minlength=256) for part in images[:, c].split(1024))
            count = sum(parts).cpu().double()
            mean = (count * level).sum() / count.sum()
            variance = (count * (level - mean) ** 2).sum() / count.sum()
            self.mean[c] = mean / 255
            self.std[c] = variance.sqrt().clamp_min(1) / 255  # a blank channel must not divide by zero

    def forward(self, x: Tensor) -> Tensor:
        x = self.balance(x) if self.balance else x
        return (x - self.mean[:, None, None]) / self.std[:, None, None]
