"""Anchors: boxes, or points with a square around them, laid out on the grids of the feature maps. The sizes each family
uses are in its file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Spacing = Literal["stride", "quotient"]


class Anchors(NamedTuple):
    """boxes: [N, 4] as (x1, y1, x2, y2) in pixels of the batch, level by level, row by row, all of a cell together.
    counts: how many each level has, finest first."""

    boxes: Tensor
    counts: tuple[int, ...]

    def levels(self) -> list[Tensor]:
        """The boxes of each level."""
        return list(self.boxes.split(list(self.counts)))


@dataclass(frozen=True)
class AnchorGrid:
    """Lays out anchors. Calling it gives the anchors of maps of some sizes.

    shapes: for each level the (width, height) in pixels of the anchors of a cell.
    strides: pixels between cells, for each level.
    offset: where in its cell, in strides, an anchor has its centre: 0 (torchvision, detectron2), 0.5 (SSD, TensorFlow,
        the original FCOS).
    spacing: `stride`, or `quotient`: torchvision's rule, height and width of the batch divided by those of the map,
        rounded down. It differs at maps whose size was rounded up, and weights trained that way need it.
    rounded: corners relative to the centre are rounded to whole pixels, as torchvision does.

    >>> grid = AnchorGrid(shapes=(((8.0, 8.0),),), strides=(8,), offset=0.5)
    >>> grid([(1, 2)], (8, 16)).boxes
    tensor([[ 0.,  0.,  8.,  8.],
            [ 8.,  0., 16.,  8.]])
    """

    shapes: tuple[tuple[tuple[float, float], ...], ...]
    strides: tuple[int, ...]
    offset: float = 0.0
    spacing: Spacing = "stride"
    rounded: bool = False

    def __post_init__(self) -> None:
        if len(self.shapes) != len(self.strides):
            raise ValueError(f"shapes has {len(self.shapes)} levels, strides has {len(self.strides)}")

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Anchors of a cell, for each level."""
        return tuple(len(shapes) for shapes in self.shapes)

    def __call__(
        self,
        maps: Sequence[tuple[int, int]],
        image: tuple[int, int],
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Anchors:
        """maps: height and width of the feature map of each level. image: of the batch, in pixels."""
        if len(maps) != len(self.strides):
            raise ValueError(f"maps must be one for each of the {len(self.strides)} levels, got {len(maps)}")
        dtype = dtype if dtype is not None and dtype.itemsize >= 4 else torch.float32  # half types miss pixels
        boxes = []
        for (height, width), stride, shapes in zip(maps, self.strides, self.shapes, strict=True):
            down, right = (stride, stride) if self.spacing == "stride" else (image[0] // height, image[1] // width)
            y = (torch.arange(height, device=device).to(dtype) + self.offset) * down
            x = (torch.arange(width, device=device).to(dtype) + self.offset) * right
            centres = torch.stack([x.expand(height, width), y[:, None].expand(height, width)] * 2, -1)  # [H, W, 4]
            half = torch.tensor(shapes, device=device, dtype=dtype) / 2
            corners = torch.cat([-half, half], 1)  # [A, 4]
            boxes.append((centres[:, :, None] + (corners.round() if self.rounded else corners)).reshape(-1, 4))
        return Anchors(torch.cat(boxes), tuple(h * w * a for (h, w), a in zip(maps, self.per_cell, strict=True)))

    def over(self, maps: Sequence[Tensor], image: tuple[int, int]) -> Anchors:
        """The anchors of feature maps [B, C, H, W] of a batch of `image` = height and width, on their device."""
        return self(map_sizes(maps), image, device=maps[0].device, dtype=maps[0].dtype)


def map_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Height and width of feature maps."""
    return [(m.shape[-2], m.shape[-1]) for m in maps]


def anchor_shapes(sizes: Sequence[float], ratios: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(width, height) for each ratio height / width and, within it, each size, the square root of the area.

    >>> anchor_shapes((32,), (1, 4))
    ((32.0, 32.0), (16.0, 64.0))
    """
    return tuple((size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in ratios for size in sizes)
