"""Pictures as a camera stores them and a viewer reads them: at the camera's pixels, through a JPEG file."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bloodcell_lib.decode import in_threads

FINEST = 95  # beyond which files grow and pictures hardly change, as Pillow's documentation has it


def stored(x: Tensor, quality: Tensor, camera: Tensor) -> Tensor:
    """Each picture at `camera` pixels a side, as a JPEG file of `quality` (1 to 95, as Pillow counts it), read again at
    its own size. x float (B, 3, H, H) in [0, 1] -> the same shape and range; quality and camera (B,), cut to whole
    numbers.
    """

    def through_file(what: tuple[np.ndarray, float, float]) -> np.ndarray:
        pixels, quality, camera = what
        picture, file = Image.fromarray(pixels), io.BytesIO()
        picture.resize((int(camera),) * 2, Image.Resampling.BICUBIC).save(file, "JPEG", quality=int(quality))
        return np.asarray(Image.open(file).resize(picture.size, Image.Resampling.BILINEAR))

    whole = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    read = list(in_threads(through_file, zip(whole, quality.tolist(), camera.tolist())))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(x.device) / 255
