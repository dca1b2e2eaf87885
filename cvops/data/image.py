"""Pictures into network inputs: reading a file as RGB, and the resize, crop and normalisation a model's
`Preprocess` asks for. Augmentation for training is not here."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cvops.models.config import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageError(ValueError):
    """A file that is not a picture, or a picture that cannot be decoded."""


def load_image(path: str | os.PathLike[str]) -> "Image":
    """A picture file as an upright RGB image: the EXIF orientation applied, transparency laid on white, grey and
    palette pictures (16-bit grey too) widened to three channels.

    Raises `FileNotFoundError`, or `ImageError` if Pillow cannot read it.

    >>> load_image("cat.png").size
    (451, 300)
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise ImageError(f"{path} is a folder, expected a picture")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("I", "I;16", "I;16B", "I;16L"):
                # Pillow clips 16-bit grey to 255 instead of scaling it.
                image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error
        raise ImageError(f"{path} is not a picture that can be read ({error})") from error


def to_tensor(image: "Image") -> Tensor:
    """An RGB picture as detectors take it, float32 [3, H, W] in 0..1.

    >>> to_tensor(load_image("cat.png")).shape
    torch.Size([3, 300, 451])
    """
    return (torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255).contiguous()


def preprocess(image: "Image", spec: Preprocess) -> Tensor:
    """An RGB picture as the network wants it, float32 [3, spec.size, spec.size]: the short side resized to
    `spec.resize` pixels, the centre cropped, each channel normalised.

    >>> preprocess(load_image("cat.png"), cvops.model_info("mobilenetv2_100").preprocess).shape
    torch.Size([3, 224, 224])
    """
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    size = (spec.resize * width // short, spec.resize * height // short)
    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    resized = image.resize(size, resampling)
    left, top = round((size[0] - spec.size) / 2), round((size[1] - spec.size) / 2)
    cropped = resized.crop((left, top, left + spec.size, top + spec.size))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    return (to_tensor(cropped) - mean) / std
