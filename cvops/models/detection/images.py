"""What goes into a detector: images of any sizes and their boxes to one padded batch, and boxes back to the images.
Resizing rules are settings of the families; the networks see `ImageBatch` only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cvops.models.config import IMAGENET_MEAN, IMAGENET_STD

Target = Mapping[str, Tensor]
"""Of one image: `boxes` [M, 4] as (x1, y1, x2, y2) in its pixels, `labels` [M] int64 in 0..num_classes - 1. M may be 0.
Further entries are not looked at."""

Resize = Literal["shortest", "stretch", "letterbox", "none"]


@dataclass(frozen=True)
class ImageTransform:
    """How images become a batch: resize, (value - mean) / std, padding with zeros at the bottom and right.

    resize: `shortest` (the short side to `size[0]`, the long one to at most `size[1]` pixels, keeping the aspect),
        `stretch` (to height and width `size`), `letterbox` (as large as fits into `size`, the rest padding), `none`.
        Bilinear, half-pixel centres, no antialiasing: as torchvision's detectors do.
    divisor: height and width of the batch are rounded up to a multiple of this.
    mean, std: per channel, of values in 0..1.
    bgr: the network takes its channels in the order blue, green, red (images come as RGB).
    """

    resize: Resize = "shortest"
    size: tuple[int, int] = (800, 1333)
    divisor: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    bgr: bool = False

    def __str__(self) -> str:
        height, width = self.size
        return {
            "shortest": f"short side {height}, long side to {width}",
            "stretch": f"{height} x {width}",
            "letterbox": f"within {height} x {width}",
            "none": "any",
        }[self.resize]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that an image of `height` x `width` is resized to.

        >>> ImageTransform().output_size(480, 640), ImageTransform("letterbox", (512, 512)).output_size(480, 640)
        ((800, 1067), (384, 512))
        """
        if self.resize == "none":
            return height, width
        if self.resize == "stretch":
            return self.size
        if self.resize == "shortest":
            scale = min(self.size[0] / min(height, width), self.size[1] / max(height, width))
        else:
            scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def __call__(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None, num_classes: int | None = None
    ) -> "ImageBatch":
        """images: [B, C, H, W], or a sequence of [C, H, W] of any sizes; floating RGB in 0..1.

        Raises `ValueError` for images and targets that do not fit; it names the image, the entry and the box. With
        `num_classes` labels are checked too.
        """
        _check_images(images)
        original = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        resized = [self._resize(image) for image in images]
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in resized]
        if self.resize == "letterbox":
            height, width = self.size
        else:
            height, width = (max(side) for side in zip(*sizes, strict=True))
        height, width = (-(-side // self.divisor) * self.divisor for side in (height, width))
        first = resized[0]
        if all(size == (height, width) for size in sizes):
            pixels = torch.stack(resized)
        else:
            pixels = first.new_zeros(len(resized), first.shape[0], height, width)
            for slot, image in zip(pixels, resized, strict=True):
                slot[:, : image.shape[1], : image.shape[2]] = image
        scales = [(after[0] / before[0], after[1] / before[1]) for before, after in zip(original, sizes, strict=True)]
        batch = ImageBatch(
            pixels=pixels,
            sizes=torch.tensor(sizes, device=first.device),
            scales=torch.tensor(scales, device=first.device, dtype=torch.promote_types(first.dtype, torch.float32)),
        )
        if targets is not None:
            _check_targets(targets, original, num_classes)
            batch.add_targets(targets)
        return batch

    def _resize(self, image: Tensor) -> Tensor:
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        if len(mean) not in (1, image.shape[0]):
            raise ValueError(f"images must have {len(mean)} channels, as mean and std have, got {list(image.shape)}")
        image = ((image.flip(0) if self.bgr else image) - mean) / std
        size = self.output_size(image.shape[1], image.shape[2])
        if size == image.shape[1:]:
            return image
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


DEFAULT_INPUT = ImageTransform()
MSRA_INPUT = ImageTransform(mean=(103.53 / 255, 116.28 / 255, 123.675 / 255), std=(1 / 255,) * 3, bgr=True)
"""Of networks that start from MSRA's ResNets: blue first, values in 0..255 less the mean."""


@dataclass
class ImageBatch:
    """Images as the network sees them. Coordinates are in its pixels.

    pixels: [B, C, H, W]. sizes: [B, 2] int64, height and width of each image without the padding.
    scales: [B, 2] float32 or wider, pixels of the network per pixel of the image, vertical and horizontal.
    boxes: [B, M, 4] float32 or wider, labels: [B, M] int64, valid: [B, M] bool, False for the slots that are padding.
        None without targets.
    """

    pixels: Tensor
    sizes: Tensor
    scales: Tensor
    boxes: Tensor | None = None
    labels: Tensor | None = None
    valid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the batch."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def add_targets(self, targets: Sequence[Target]) -> None:
        """Pads the targets to one size and scales their boxes to the network's pixels."""
        counts = [len(target["boxes"]) for target in targets]
        slots, device = (len(targets), max(counts)), self.pixels.device
        self.boxes = torch.zeros(*slots, 4, device=device, dtype=self.scales.dtype)
        self.labels = torch.full(slots, -1, device=device)
        self.valid = within(torch.tensor(counts, device=device), max(counts))
        for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
            self.boxes[i, :count] = target["boxes"].to(self.boxes) * self.scales[i].flip(0).repeat(2)
            self.labels[i, :count] = target["labels"].to(self.labels)

    @property
    def truth(self) -> tuple[Tensor, Tensor, Tensor]:
        """(boxes, labels, valid). Raises `ValueError` if the batch was made without targets."""
        if self.boxes is None or self.labels is None or self.valid is None:
            raise ValueError("targets are needed, one for each image, got None")
        return self.boxes, self.labels, self.valid

    def to_image(self, boxes: Tensor) -> Tensor:
        """Boxes [B, K, 4] in the network's pixels to those of the images."""
        return boxes / self.scales.flip(1).repeat(1, 2)[:, None].to(boxes)


def within(counts: Tensor, slots: int) -> Tensor:
    """[B, slots] bool: the first `counts` [B] slots of each row.

    >>> within(torch.tensor([0, 2]), 3)
    tensor([[False, False, False],
            [ True,  True, False]])
    """
    return torch.arange(slots, device=counts.device) < counts[:, None]


def _check_images(images: Tensor | Sequence[Tensor]) -> None:
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[0] == 0:
            raise ValueError(f"images must be [B, C, H, W], or a sequence of [C, H, W], got {list(images.shape)}")
    elif len(images) == 0:
        raise ValueError("images must hold at least one image, got none")
    for i, image in enumerate(images):
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f"images[{i}] must be [C, H, W], got {list(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"images[{i}] must be floating, with values in 0..1, got {image.dtype}")
        if image.shape[0] != images[0].shape[0]:
            raise ValueError(f"images[{i}] has {image.shape[0]} channels, images[0] has {images[0].shape[0]}")


def _check_targets(targets: Sequence[Target], sizes: list[tuple[int, int]], num_classes: int | None) -> None:
    if len(targets) != len(sizes):
        raise ValueError(f"targets must be one for each of the {len(sizes)} images, got {len(targets)}")
    for i, target in enumerate(targets):
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            raise ValueError(f"targets[{i}] must have 'boxes' and 'labels', got {sorted(target)}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"targets[{i}]['boxes'] must be [M, 4], got {list(boxes.shape)}")
        if labels.shape != boxes.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"targets[{i}]['labels'] must be [{len(boxes)}] integers, one for each box, "
                f"got {list(labels.shape)} {labels.dtype}"
            )
        bad = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
        if bad.any():
            j = int(bad.int().argmax())
            raise ValueError(
                f"targets[{i}]['boxes'][{j}] must be finite with x1 < x2 and y1 < y2, got {boxes[j].tolist()}"
            )
        if num_classes is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"targets[{i}]['labels'] must be in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}"
            )
