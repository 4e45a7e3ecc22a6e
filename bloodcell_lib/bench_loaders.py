"""Input pipelines as others write them: what a training costs that decodes and augments its files in every epoch.

Both decode JPEG files in worker processes and augment one picture at a time; only the network and the step, which the
caller brings, are ours. Where their transforms cannot do what ours do, they do less, which favours them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.errors import BloodcellError

Batches = Iterable[tuple[Tensor, Tensor]]  # float (B, 3, H, W), labels int64 (B,)


def torchvision_batches(
    folder: Path, pixels: int, batch_size: int, workers: int, device: torch.device, augment: AugmentConfig
) -> Batches:
    """`ImageFolder` and `DataLoader` with torchvision's transforms on PIL images; `folder` holds one folder a class."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as t
    from torchvision.datasets import ImageFolder

    transform = t.Compose(
        [
            t.Resize((pixels, pixels)),
            t.RandomHorizontalFlip(),
            t.RandomVerticalFlip(),
            t.RandomAffine(augment.rotation, (augment.translate, augment.translate), augment.scale),
            t.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue),
            t.ToTensor(),
        ]
    )
    return DataLoader(
        ImageFolder(str(folder), transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def timm_batches(
    folder: Path, pixels: int, batch_size: int, workers: int, device: torch.device, augment: AugmentConfig
) -> Batches:
    """timm's `ImageDataset` and `create_loader`, with its prefetcher on a GPU; it neither turns nor shifts pictures.

    Raises BloodcellError if timm is not installed.
    """
    try:
        from timm.data import ImageDataset, create_loader
    except ImportError as error:
        raise BloodcellError("timm is not installed: pip install -e '.[bench]'") from error
    smallest, largest = augment.scale
    return create_loader(
        ImageDataset(str(folder)),
        pixels,
        batch_size,
        is_training=True,
        # A crop of a share of the area, enlarged; a factor below 1 has no counterpart.
        scale=(min(1.0, largest**-2), min(1.0, smallest**-2)),
        ratio=(1.0, 1.0),
        hflip=0.5,
        vflip=0.5,
        color_jitter=(augment.brightness, augment.contrast, augment.saturation, augment.hue),
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=workers > 0,
        use_prefetcher=device.type == "cuda",
        pin_memory=device.type == "cuda",
        device=device,
    )
