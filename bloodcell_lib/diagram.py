"""A network drawn from itself: every number comes from the built model and a traced forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import nn

from bloodcell_lib import models
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import MBConv, MBConvNet, ModelConfig, SqueezeExcite

INK, GREY, EDGE = "#222222", "#666666", "#444444"
PLAIN, GATED, ENDS = "#DCE6F2", "#8FB0D6", "#EFEFEF"  # a block without and with squeeze-and-excitation; stem and head
TITLES = {
    "deep_efficientnet": "DeepEfficientNet",
    "as_described": "DeepEfficientNet as described",
    "efficientnet_lite": "EfficientNetLite",
}


@dataclass(frozen=True)
class Part:
    """One column of the picture: what it is, output shape, trainable parameters, multiply-accumulates."""

    name: str
    blocks: int
    layers: str
    expand: str
    kernel: str
    gated: bool
    shape: tuple[int, ...]
    parameters: int
    macs: int


def network_parts(config: ModelConfig, pixels: int) -> list[Part]:
    """Input, stem, stages and head of an MBConv network. Raises BloodcellError for another kind of network."""
    with torch.device("meta"):  # no numbers are drawn, for only shapes are asked for
        model = models.build(config)
    model.to_empty(device="cpu")  # where torch traces at once; on `meta` it takes a second
    net = model.net
    if not isinstance(net, MBConvNet):
        raise BloodcellError(f"{config.name} has no MBConv stages to draw: choose one of {', '.join(TITLES)}.")
    seen = models.trace(model, pixels)

    def part(name: str, path: str, module: nn.Module, blocks: int, layers: str, *rest) -> Part:
        macs = sum(count for key, (_, count) in seen.items() if key == path or key.startswith(f"{path}."))
        return Part(name, blocks, layers, *rest, seen[path][0], models.parameters(module), macs)

    parts = [Part("Input", 0, "RGB", "", "", False, (3, pixels, pixels), 0, 0)]
    conv = net.stem[0]
    parts.append(part("Stem", "net.stem", net.stem, 1, "conv", "", _kernel(conv), False))
    for k, stage in enumerate(net.stages):
        first = stage[0]
        gated = any(isinstance(module, SqueezeExcite) for module in stage.modules())
        expand = f"{_expansion(first)}"
        parts.append(
            part(
                *(f"Stage {k + 1}", f"net.stages.{k}", stage, len(stage), f"{len(stage)} MBConv"),
                *(expand, _kernel(first.depthwise[0]), gated),
            )
        )
    parts.append(part("Head", "net.head", net.head, 1, "pool, linear", "", "", False))
    return parts


def draw_network(figure: Figure, config: ModelConfig, pixels: int, foot: float) -> None:
    """Draws the whole network above one of its blocks; `foot` inches stay free at the bottom of `figure`."""
    parts = network_parts(config, pixels)
    width, height = figure.get_size_inches()
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    total, macs = sum(part.parameters for part in parts), sum(part.macs for part in parts)
    ax.text(0.05, height - 0.06, TITLES[config.name], size=10, weight="bold", va="top")
    words = f"{total:,} parameters, {_short(macs)} multiply-accumulates at {pixels} × {pixels} pixels"
    ax.text(width - 0.05, height - 0.07, words, size=8.5, va="top", ha="right")
    left, top = 0.78, height - 0.42
    step = (width - left - 0.04) / len(parts)
    middle = top - 0.16 - 0.42
    size = min(0.56, 0.8 * step)
    for k, part in enumerate(parts):
        x = left + (k + 0.5) * step
        ax.text(x, top, part.name, size=8.5, ha="center", va="center", weight="bold")
        tall = _height(part.shape, pixels)
        _draw_part(ax, part, x, middle, size, tall)
        if k:
            ax.add_patch(_arrow((x - step + size / 2, middle), (x - size / 2, middle)))
    rows = {
        "layers": [part.layers for part in parts],
        "kernel, stride": [part.kernel for part in parts],
        "expansion": [part.expand for part in parts],
        "SE": ["yes" if part.gated else "no" if part.expand else "" for part in parts],
        "output": ["×".join(map(str, part.shape)) for part in parts],
        "parameters": [f"{part.parameters:,}" if part.parameters else "" for part in parts],
        "MACs": [_short(part.macs) if part.macs else "" for part in parts],
    }
    y = middle - 0.55
    for k, (name, values) in enumerate(rows.items()):
        line = y - 0.155 * k
        ax.text(0.05, line, name, size=8, va="center", color=GREY)
        for i, value in enumerate(values):
            ax.text(left + (i + 0.5) * step, line, value, size=7.5, va="center", ha="center")
    words = "One strip a block; height by the logarithm of the resolution"
    if any(part.gated for part in parts):
        words += "; dark: with squeeze-and-excitation (SE)"
    ax.text(0.05, 0.03, words, size=7.5, color=GREY, va="bottom")
    _draw_block(ax, config, parts, foot + 0.08, width)


def _draw_part(ax: Axes, part: Part, x: float, y: float, wide: float, tall: float) -> None:
    face = ENDS if not part.expand else GATED if part.gated else PLAIN
    ax.add_patch(Rectangle((x - wide / 2, y - tall / 2), wide, tall, facecolor=face, edgecolor=EDGE, linewidth=0.8))
    for k in range(1, part.blocks):  # one strip a block
        at = x - wide / 2 + wide * k / part.blocks
        ax.plot([at, at], [y - tall / 2, y + tall / 2], color=EDGE, linewidth=0.4)


def _draw_block(ax: Axes, config: ModelConfig, parts: list[Part], bottom: float, width: float) -> None:
    """One residual MBConv block, left to right."""
    stages = [part for part in parts if part.expand]
    kernels = sorted({part.kernel.partition(",")[0] for part in stages})
    plain = [part for part in stages if part.expand == "1"]
    boxes = [
        ("1 × 1 expand", "BN, SiLU", f"not in {_listed(plain)}" if plain else "", PLAIN),
        (f"{' or '.join(kernels)} depthwise", "BN, SiLU", "", PLAIN),
        ("squeeze, excite", "SiLU, sigmoid", f"in {_listed([part for part in stages if part.gated])}", GATED),
        ("1 × 1 project", "BN", "", PLAIN),
    ]
    if not any(part.gated for part in stages):
        del boxes[2]
    start, wide, tall, y = 0.78, 0.88, 0.44, bottom + 0.22
    gap = (width - 0.65 - start - len(boxes) * wide) / len(boxes)
    ax.text(0.05, y, "MBConv\nblock", size=8.5, weight="bold", va="center", linespacing=1)
    ax.add_patch(_arrow((start - 0.2, y), (start, y)))
    for k, (name, *below, face) in enumerate(boxes):
        x = start + k * (wide + gap)
        look = {"boxstyle": "round,pad=0,rounding_size=0.04", "facecolor": face, "edgecolor": EDGE, "linewidth": 0.8}
        ax.add_patch(FancyBboxPatch((x, y - tall / 2), wide, tall, **look))
        words = [name, *filter(None, below)]
        for i, line in enumerate(words):
            at = y + 0.125 * ((len(words) - 1) / 2 - i)
            ax.text(x + wide / 2, at, line, size=7.5 if i else 8, ha="center", va="center", color=INK)
        ax.add_patch(_arrow((x + wide, y), (x + wide + gap - (0.03 if k == len(boxes) - 1 else 0), y)))
    plus = start + len(boxes) * (wide + gap) + 0.05
    ax.text(plus, y, "+", size=10, ha="center", va="center")
    ax.plot([plus], [y], "o", markersize=10, markerfacecolor="none", color=EDGE, markeredgewidth=0.8)
    ax.add_patch(_arrow((plus + 0.08, y), (plus + 0.32, y)))
    over = y + 0.33
    ax.plot([start - 0.1, start - 0.1, plus], [y, over, over], color=EDGE, linewidth=0.8)
    ax.add_patch(_arrow((plus, over), (plus, y + 0.08)))
    words = "identity, where shapes agree"
    if config.stochastic_depth:
        words += f"; the block's branch is dropped with probability 0 to {config.stochastic_depth:g} in training"
    ax.text((start + plus) / 2, over + 0.04, words, size=7.5, ha="center", va="bottom", color=GREY)


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> FancyArrowPatch:
    return FancyArrowPatch(
        *(start, end), arrowstyle="-|>", mutation_scale=5, linewidth=0.8, color=EDGE, shrinkA=0, shrinkB=0
    )


def _height(shape: tuple[int, ...], pixels: int) -> float:
    """Inches: 0.84 for the input, by the logarithm of the side; a vector is a flat bar."""
    side = shape[1] if len(shape) == 3 else 1
    return 0.14 + 0.7 * math.log(side) / math.log(pixels)


def _kernel(conv: nn.Conv2d) -> str:
    return f"{conv.kernel_size[0]} × {conv.kernel_size[1]}, {conv.stride[0]}"


def _expansion(block: MBConv) -> str:
    if isinstance(block.expand, nn.Identity):
        return "1"
    return f"{block.expand[0].out_channels // block.expand[0].in_channels}"


def _short(count: int) -> str:
    return (
        f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
    )


def _listed(stages: list[Part]) -> str:
    numbers = [part.name.removeprefix("Stage ") for part in stages]
    *first, last = numbers or [""]
    return f"stage{'s' if first else ''} " + " and ".join(filter(None, [", ".join(first), last]))
