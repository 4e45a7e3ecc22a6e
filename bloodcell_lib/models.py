"""The networks, written to be taken apart: every ablation is a field of `ModelConfig`, never a second class.

MBConv follows Sandler et al. 2018 (MobileNetV2, inverted residuals) as used by Tan and Le 2019 (EfficientNet);
the parts are in `layers`. Deviations from EfficientNet-B0: four stages in place of seven, a stem that feeds stage 1
without a head convolution, and squeeze-and-excitation only where `Stage.squeeze_excite` says so.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bloodcell_lib import finer
from bloodcell_lib.cells import CELL_TYPES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.layers import (
    NORMS,
    SqueezeExcite,
    Standardise,
    StochasticDepth,
    close_up,
    conv_norm,
    grey_world,
    halved,
    white_point,
)

CLASSES = len(CELL_TYPES)


@dataclass(frozen=True)
class Stage:
    """One row of an MBConv network: `blocks` blocks of `channels`; the first one has stride `stride`."""

    channels: int
    blocks: int
    stride: int
    expand: int
    squeeze_excite: bool = False


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
# The same operations at 96 pixels and 1.43 M parameters, in fewer and wider blocks.
BROAD = (
    Stage(16, 1, stride=1, expand=1),
    Stage(24, 2, stride=2, expand=6),
    Stage(48, 5, stride=2, expand=6, squeeze_excite=True),
    Stage(112, 7, stride=2, expand=6, squeeze_excite=True),
)
LITE = (
    Stage(16, 1, stride=2, expand=1),
    Stage(40, 2, stride=2, expand=6),
    Stage(112, 4, stride=2, expand=6),
)


@dataclass(frozen=True)
class ModelConfig:
    """What to build. `squeeze_excite` and `kernel` touch the MBConv networks alone, `dropout`, `stochastic_depth` and
    `close_up` those and `slim_resnet`.

    A field that is added later has the default that builds what was built before, so that older records stay true.

    name: `deep_efficientnet`, `as_described`, `broad`, `slim_resnet`, `efficientnet_lite`, `simple_cnn` or `resnet18`.
    dropout: probability before the last linear layer.
    stochastic_depth: drop probability of the deepest block; it grows linearly from 0 at the first (Huang et al. 2016).
    squeeze_excite: False replaces every squeeze-and-excitation by the identity.
    finer: an output for each finer type (`finer.OUTPUTS`), which are learned and then added up to the eight classes.
    norm: `batch` or `group`, after every convolution.
    grey_world, white_point: each image's colours are balanced before they are standardised, by their mean or by the
    light behind the cells.
    kernel: side of the depthwise kernels, odd.
    close_up: the network sees each image twice, at half its side and the central half as it is, as six channels.
    halved: the network sees each image at half its side. What turns and enlarges images before that blurs them less.
    """

    name: str = "deep_efficientnet"
    dropout: float = 0.3
    stochastic_depth: float = 0.2
    squeeze_excite: bool = True
    finer: bool = False
    norm: str = "batch"
    grey_world: bool = False
    kernel: int = 3
    white_point: bool = False
    close_up: bool = False
    halved: bool = False

    @property
    def outputs(self) -> int:
        """Scores that the last layer gives: 8, or one for each finer type."""
        return finer.OUTPUTS if self.finer else CLASSES

    @property
    def channels(self) -> int:
        """Channels that the first layer sees."""
        return 6 if self.close_up else 3


class MBConv(nn.Module):
    """Inverted residual: 1 x 1 expand, depthwise k x k, squeeze-and-excitation, 1 x 1 project.

    The squeeze is a quarter of the block's input channels, as in EfficientNet. Input (B, C_in, H, W), output
    (B, C_out, H / stride, W / stride), rounded up.
    """

    def __init__(self, channels_in: int, stage: Stage, stride: int, config: ModelConfig, drop: float) -> None:
        super().__init__()
        hidden = channels_in * stage.expand
        use_se = config.squeeze_excite and stage.squeeze_excite
        conv = partial(conv_norm, norm=config.norm)
        self.expand = conv(channels_in, hidden, 1) if stage.expand != 1 else nn.Identity()
        self.depthwise = conv(hidden, hidden, config.kernel, stride, groups=hidden)
        self.squeeze_excite = SqueezeExcite(hidden, max(1, channels_in // 4)) if use_se else nn.Identity()
        self.project = conv(hidden, stage.channels, 1, activation=False)
        self.residual = stride == 1 and channels_in == stage.channels
        self.drop = StochasticDepth(drop) if self.residual and drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
        return x + self.drop(y) if self.residual else y


class MBConvNet(nn.Module):
    """Stem, MBConv stages, global average pooling, dropout, one linear layer.

    x float (B, config.channels, H, W), standardised -> logits float (B, config.outputs). H and W of at least 32.
    """

    def __init__(self, stages: tuple[Stage, ...], config: ModelConfig, stem: int = 32) -> None:
        super().__init__()
        self.stem = conv_norm(config.channels, stem, 3, stride=2, norm=config.norm)
        total = sum(stage.blocks for stage in stages)
        channels, done = stem, 0
        self.stages = nn.ModuleList()
        for stage in stages:
            blocks = []
            for i in range(stage.blocks):
                drop = config.stochastic_depth * done / max(1, total - 1)
                stride = stage.stride if i == 0 else 1
                blocks.append(MBConv(channels, stage, stride, config, drop))
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


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, figure 2), with SiLU and stochastic depth.

    Input (B, C_in, H, W), output (B, C_out, H / stride, W / stride), rounded up.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, config: ModelConfig, drop: float) -> None:
        super().__init__()
        conv = partial(conv_norm, norm=config.norm)
        self.convs = nn.Sequential(
            conv(channels_in, channels, 3, stride), conv(channels, channels, 3, activation=False)
        )
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else conv(channels_in, channels, 1, stride, activation=False)
        self.drop = StochasticDepth(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.shortcut(x) + self.drop(self.convs(x)))


class SlimResNet(nn.Module):
    """ResNet-18's four stages of two blocks at three eighths of its width, behind a 3 x 3 stem without a pool.

    x float (B, config.channels, H, W), standardised -> logits float (B, config.outputs). As many parameters as the
    main network, in plain convolutions.
    """

    def __init__(self, config: ModelConfig, widths: tuple[int, ...] = (24, 48, 96, 208)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = widths[0]
        for i, (width, stride) in enumerate((w, 1 + (w != widths[0] and not k)) for w in widths for k in range(2)):
            drop = config.stochastic_depth * i / (2 * len(widths) - 1)
            blocks.append(Basic(channels, width, stride, config, drop))
            channels = width
        self.features = nn.Sequential(conv_norm(config.channels, widths[0], 3, 2, norm=config.norm), *blocks)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.head = nn.Linear(channels, config.outputs)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x).mean((2, 3))))


def initialise(module: nn.Module) -> None:
    """Normal weights scaled by the true fan out (He et al. 2015; a depthwise kernel feeds one channel, not all), a
    small linear layer, and residual branches that start at zero (Goyal et al. 2017), as a deep narrow net needs."""
    if next(module.parameters(), torch.empty(0)).is_meta:
        return  # no numbers to draw, and torch takes a second to find that out
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
    elif isinstance(module, Basic):
        nn.init.zeros_(module.convs[1][1].weight)


class SimpleCNN(nn.Module):
    """The plain baseline: four convolutions, then two linear layers that hold 98 % of its 26,084,104 parameters.

    x float (B, 3, H, W) -> logits (B, outputs). The pool before the linear layers keeps 14 x 14 at every input size; at
    224 pixels it is the identity.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            conv = nn.Conv2d(before, after, 3, padding=1)
            layers += [conv, NORMS[config.norm](after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(14)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(256 * 14 * 14, 512), nn.ReLU(inplace=True), nn.Linear(512, config.outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.shape[-2:] != (14, 14):
            x = self.pool(x)
        return self.head(x)


class Classifier(nn.Module):
    """A network with its own standardisation: images float (B, 3, H, W) in [0, 1] -> logits float (B, 8).

    add_up: turns what `net` gives into the logits of the eight classes; `added` False leaves it as training wants it.
    balance: what is done to colours before they are standardised. look: what is made of the image after that, such as
    `layers.close_up`.
    """

    def __init__(
        self,
        net: nn.Module,
        add_up: nn.Module,
        balance: Callable[[Tensor], Tensor] | None = None,
        look: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.standardise = Standardise(balance)
        self.look = look
        self.net = net
        self.add_up = add_up

    def forward(self, x: Tensor, added: bool = True) -> Tensor:
        scores = self.net(self.seen(x))
        return self.add_up(scores) if added else scores

    def seen(self, x: Tensor) -> Tensor:
        """What `net` gets of the images."""
        x = self.standardise(x)
        return x if self.look is None else self.look(x)


def _resnet18(config: ModelConfig) -> nn.Module:
    """torchvision's ResNet-18 with our outputs; imported here, since torchvision takes seconds to load."""
    from torchvision.models import resnet18

    return resnet18(num_classes=config.outputs, norm_layer=NORMS[config.norm])


NETWORKS = {
    "deep_efficientnet": partial(MBConvNet, DEEP),
    "as_described": partial(MBConvNet, AS_DESCRIBED),
    "broad": partial(MBConvNet, BROAD),
    "slim_resnet": SlimResNet,
    "efficientnet_lite": partial(MBConvNet, LITE),
    "simple_cnn": SimpleCNN,
    "resnet18": _resnet18,
}


def build(config: ModelConfig) -> Classifier:
    """The network that `config` names, with fresh weights from torch's global random state.

    Raises BloodcellError for an unknown name or norm, an even kernel, a probability outside [0, 1), two balances, or a
    close-up for a network that takes none.
    """
    if config.name not in NETWORKS:
        raise BloodcellError(f"Unknown model '{config.name}': choose one of {', '.join(NETWORKS)}.")
    if config.norm not in NORMS:
        raise BloodcellError(f"Unknown norm '{config.norm}': choose one of {', '.join(NORMS)}.")
    if config.kernel < 1 or config.kernel % 2 == 0:
        raise BloodcellError(f"kernel is {config.kernel}: give an odd number.")
    for field in ("dropout", "stochastic_depth"):
        if not 0 <= getattr(config, field) < 1:
            raise BloodcellError(f"{field} is {getattr(config, field)}: give a probability of at least 0 and below 1.")
    if config.grey_world and config.white_point:
        raise BloodcellError("grey_world and white_point balance the same colours: choose one.")
    if config.close_up and config.name in ("simple_cnn", "resnet18"):
        raise BloodcellError(f"{config.name} takes no close-up: choose slim_resnet or an MBConv network.")
    if config.close_up and config.halved:
        raise BloodcellError("close_up halves the whole image itself: leave halved out.")
    add_up = finer.AddUp() if config.finer else nn.Identity()
    balance = grey_world if config.grey_world else white_point if config.white_point else None
    look = close_up if config.close_up else halved if config.halved else None
    return Classifier(NETWORKS[config.name](config), add_up, balance, look)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_of(name: str) -> int:
    """The same of a network of NETWORKS as it is by default."""
    with torch.device("meta"):  # no memory, and nothing drawn from the global random state
        return parameters(build(ModelConfig(name)))


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
