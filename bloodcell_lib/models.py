"""The networks, written to be taken apart: every ablation is a field of `ModelConfig`, never a second class.

MBConv follows Sandler et al. 2018 (MobileNetV2, inverted residuals) as used by Tan and Le 2019 (EfficientNet);
squeeze-and-excitation follows Hu et al. 2018; stochastic depth follows Huang et al. 2016. Deviations from
EfficientNet-B0: four stages in place of seven, a stem that feeds stage 1 without a head convolution, and
squeeze-and-excitation only where `Stage.squeeze_excite` says so.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bloodcell_lib import finer
from bloodcell_lib.cells import CELL_TYPES
from bloodcell_lib.errors import BloodcellError

CLASSES = len(CELL_TYPES)


@dataclass(frozen=True)
class Stage:
    """One row of an MBConv network: `blocks` blocks of `channels`; the first one has stride `stride`."""

    channels: int
    blocks: int
    stride: int
    expand: int
    squeeze_excite: bool = False
    kernel: int = 3


# Channels, resolutions and the place of squeeze-and-excitation are the reference's; it gives 1,840,228 parameters,
# which its block counts (1, 2, 2, 3: `AS_DESCRIBED`) do not reach. Depth goes to stage 4, where a block costs the
# fewest operations for its parameters.
DEEP = (
    Stage(16, 1, stride=1, expand=1),
    Stage(24, 2, stride=2, expand=6),
    Stage(40, 2, stride=2, expand=6, squeeze_excite=True),
    Stage(80, 18, stride=2, expand=6, squeeze_excite=True),
)
AS_DESCRIBED = (
    Stage(16, 1, stride=1, expand=1),
    Stage(24, 2, stride=2, expand=6),
    Stage(40, 2, stride=2, expand=6, squeeze_excite=True),
    Stage(80, 3, stride=2, expand=6, squeeze_excite=True),
)
LITE = (
    Stage(16, 1, stride=2, expand=1),
    Stage(40, 2, stride=2, expand=6),
    Stage(112, 4, stride=2, expand=6),
)


@dataclass(frozen=True)
class ModelConfig:
    """What to build. `dropout`, `stochastic_depth` and `squeeze_excite` touch the MBConv networks alone.

    name: `deep_efficientnet`, `as_described`, `efficientnet_lite`, `simple_cnn` or `resnet18`.
    dropout: probability before the last linear layer.
    stochastic_depth: drop probability of the deepest block; it grows linearly from 0 at the first (Huang et al. 2016).
    squeeze_excite: False replaces every squeeze-and-excitation by the identity.
    finer: an output for each finer type (`finer.OUTPUTS`), which are learned and then added up to the eight classes.
    """

    name: str = "deep_efficientnet"
    dropout: float = 0.3
    stochastic_depth: float = 0.2
    squeeze_excite: bool = True
    finer: bool = False

    @property
    def outputs(self) -> int:
        """Scores that the last layer gives: 8, or one for each finer type."""
        return finer.OUTPUTS if self.finer else CLASSES


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


class MBConv(nn.Module):
    """Inverted residual: 1 x 1 expand, depthwise k x k, squeeze-and-excitation, 1 x 1 project.

    The squeeze is a quarter of the block's input channels, as in EfficientNet. Input (B, C_in, H, W), output
    (B, C_out, H / stride, W / stride), rounded up.
    """

    def __init__(self, channels_in: int, stage: Stage, stride: int, squeeze_excite: bool, drop: float) -> None:
        super().__init__()
        hidden = channels_in * stage.expand
        use_se = squeeze_excite and stage.squeeze_excite
        self.expand = conv_bn(channels_in, hidden, 1) if stage.expand != 1 else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, stage.kernel, stride, groups=hidden)
        self.squeeze_excite = SqueezeExcite(hidden, max(1, channels_in // 4)) if use_se else nn.Identity()
        self.project = conv_bn(hidden, stage.channels, 1, activation=False)
        self.residual = stride == 1 and channels_in == stage.channels
        self.drop = StochasticDepth(drop) if self.residual and drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
        return x + self.drop(y) if self.residual else y


def conv_bn(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm and, if asked for, SiLU."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(channels_out)]
    return nn.Sequential(*layers, nn.SiLU()) if activation else nn.Sequential(*layers)


class MBConvNet(nn.Module):
    """Stem, MBConv stages, global average pooling, dropout, one linear layer.

    x float (B, 3, H, W), standardised -> logits float (B, config.outputs). H and W of at least 32.
    """

    def __init__(self, stages: tuple[Stage, ...], config: ModelConfig, stem: int = 32) -> None:
        super().__init__()
        self.stem = conv_bn(3, stem, 3, stride=2)
        total = sum(stage.blocks for stage in stages)
        channels, done = stem, 0
        self.stages = nn.ModuleList()
        for stage in stages:
            blocks = []
            for i in range(stage.blocks):
                drop = config.stochastic_depth * done / max(1, total - 1)
                stride = stage.stride if i == 0 else 1
                blocks.append(MBConv(channels, stage, stride, config.squeeze_excite, drop))
                channels, done = stage.channels, done + 1
            self.stages.append(nn.Sequential(*blocks))
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.head = nn.Linear(channels, config.outputs)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """The last feature map, float (B, C, H / 16, W / 16)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x).mean((2, 3))))


def initialise(module: nn.Module) -> None:
    """Normal weights scaled by the true fan out (He et al. 2015; a depthwise kernel feeds one channel, not all), a
    small linear layer, and residual branches that start at zero (Goyal et al. 2017), as a deep narrow net needs."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, MBConv) and module.residual:
        nn.init.zeros_(module.project[1].weight)


class SimpleCNN(nn.Module):
    """The plain baseline: four convolutions, then two linear layers that hold 98 % of its 26,084,104 parameters.

    x float (B, 3, H, W) -> logits (B, outputs). The pool before the linear layers keeps 14 x 14 at every input size; at
    224 pixels it is the identity.
    """

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            conv = nn.Conv2d(before, after, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(14)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(256 * 14 * 14, 512), nn.ReLU(inplace=True), nn.Linear(512, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.shape[-2:] != (14, 14):
            x = self.pool(x)
        return self.head(x)


class Standardise(nn.Module):
    """(x - mean) / std, channel by channel, kept with the weights so that predictions see what training saw.

    x float (B, 3, H, W) in [0, 1]; mean and std float (3,), of the training images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3,), 0.5))
        self.register_buffer("std", torch.full((3,), 0.25))

    def fit(self, images: Tensor) -> None:
        """Takes mean and standard deviation from uint8 images (N, 3, H, W), in exact integer sums."""
        # A histogram for each channel holds all that is needed, and needs no float copy of the images.
        level = torch.arange(256, dtype=torch.float64)
        for c in range(3):
            count = torch.bincount(images[:, c].flatten(), minlength=256).cpu().double()
            mean = (count * level).sum() / count.sum()
            variance = (count * (level - mean) ** 2).sum() / count.sum()
            self.mean[c] = mean / 255
            self.std[c] = variance.sqrt().clamp_min(1) / 255  # a blank channel must not divide by zero

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


class Classifier(nn.Module):
    """A network with its own standardisation: images float (B, 3, H, W) in [0, 1] -> logits float (B, 8).

    add_up: turns what `net` gives into the logits of the eight classes; `added` False leaves it as training wants it.
    """

    def __init__(self, net: nn.Module, add_up: nn.Module) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.net = net
        self.add_up = add_up

    def forward(self, x: Tensor, added: bool = True) -> Tensor:
        scores = self.net(self.standardise(x))
        return self.add_up(scores) if added else scores


def _resnet18(config: ModelConfig) -> nn.Module:
    """torchvision's ResNet-18 with our outputs; imported here, since torchvision takes seconds to load."""
    from torchvision.models import resnet18

    return resnet18(num_classes=config.outputs)


NETWORKS = {
    "deep_efficientnet": partial(MBConvNet, DEEP),
    "as_described": partial(MBConvNet, AS_DESCRIBED),
    "efficientnet_lite": partial(MBConvNet, LITE),
    "simple_cnn": lambda config: SimpleCNN(config.outputs),
    "resnet18": _resnet18,
}


def build(config: ModelConfig) -> Classifier:
    """The network that `config` names, with fresh weights from torch's global random state.

    Raises BloodcellError for an unknown name or a probability outside [0, 1).
    """
    if config.name not in NETWORKS:
        raise BloodcellError(f"Unknown model '{config.name}': choose one of {', '.join(NETWORKS)}.")
    for field in ("dropout", "stochastic_depth"):
        if not 0 <= getattr(config, field) < 1:
            raise BloodcellError(f"{field} is {getattr(config, field)}: give a probability of at least 0 and below 1.")
    return Classifier(NETWORKS[config.name](config), finer.AddUp() if config.finer else nn.Identity())


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def trace(model: nn.Module, pixels: int) -> OrderedDict[str, tuple[tuple[int, ...], int]]:
    """Output shape (C, H, W) or (C,) and multiply-accumulates of each module, by its name, for one image."""
    seen: OrderedDict[str, tuple[tuple[int, ...], int]] = OrderedDict()

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs = module.weight.numel()
        seen[name] = (tuple(output.shape[1:]), macs)

    handles = [m.register_forward_hook(partial(hook, name)) for name, m in model.named_modules()]
    training = model.training
    try:
        weight = next(model.parameters())
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, pixels, pixels, device=weight.device, dtype=weight.dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return seen


def macs(model: nn.Module, pixels: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of `pixels` x `pixels`."""
    return sum(count for _, count in trace(model, pixels).values())
