"""Box coders: what a network puts out for a box, relative to its anchor. Which one, and with which weights, is a
setting of the families; YOLOv4's own is in its file."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # a box grows to at most 1000 pixels from an anchor of 16; Detectron's constant


@dataclass(frozen=True)
class DeltaCoder:
    """Shift of the centre in sides of the anchor, and logarithm of the scale (Girshick et al. 2014, arXiv:1311.2524,
    appendix C), times `weights` for (x, y, width, height). SSD's variances (0.1, 0.2) are the weights (10, 10, 5, 5).

    clip: limit of the logarithms in `decode`, so that a wild network cannot overflow.
    vertical_first: codes are in TensorFlow's order, (y, x, height, width); `weights` stay as they are.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10]]); boxes = torch.tensor([[2.0, 0, 12, 20]])
    >>> deltas = DeltaCoder().encode(boxes, anchors); deltas
    tensor([[0.2000, 0.5000, 0.0000, 0.6931]])
    >>> DeltaCoder().decode(deltas, anchors)
    tensor([[ 2.,  0., 12., 20.]])
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clip: float = MAX_LOG_SCALE
    vertical_first: bool = False

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """[..., 4] boxes of some area and their anchors to [..., 4] deltas."""
        (x, y, width, height), (ax, ay, awidth, aheight) = _centres(boxes), _centres(anchors)
        wx, wy, ww, wh = self.weights
        dx, dy = (x - ax) / awidth * wx, (y - ay) / aheight * wy
        dw, dh = (width / awidth).log() * ww, (height / aheight).log() * wh
        return torch.stack([dy, dx, dh, dw] if self.vertical_first else [dx, dy, dw, dh], -1)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """The inverse: [..., 4] deltas to boxes (x1, y1, x2, y2)."""
        first, second, third, fourth = deltas.unbind(-1)
        ordered = (second, first, fourth, third) if self.vertical_first else (first, second, third, fourth)
        dx, dy, dw, dh = (delta / weight for delta, weight in zip(ordered, self.weights, strict=True))
        ax, ay, awidth, aheight = _centres(anchors)
        x, y = ax + dx * awidth, ay + dy * aheight
        halfw, halfh = (0.5 * awidth * dw.clamp(max=self.clip).exp(), 0.5 * aheight * dh.clamp(max=self.clip).exp())
        return torch.stack([x - halfw, y - halfh, x + halfw, y + halfh], -1)


@dataclass(frozen=True)
class DistanceCoder:
    """Distances from the anchor's centre to the four sides, left, top, right, bottom (Tian et al. 2019,
    arXiv:1904.01355, section 3.1); in sides of the anchor (whose side is the stride), or in pixels with
    `normalise=False`.

    >>> anchors = torch.tensor([[4.0, 4, 12, 12]])
    >>> DistanceCoder().encode(torch.tensor([[0.0, 4, 16, 24]]), anchors)
    tensor([[1.0000, 0.5000, 1.0000, 2.0000]])
    """

    normalise: bool = True

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """[..., 4] boxes and their anchors to [..., 4] distances, negative where the centre is outside."""
        x, y, width, height = _centres(anchors)
        x1, y1, x2, y2 = boxes.unbind(-1)
        distances = torch.stack([x - x1, y - y1, x2 - x, y2 - y], -1)
        return distances / torch.stack([width, height, width, height], -1) if self.normalise else distances

    def decode(self, distances: Tensor, anchors: Tensor) -> Tensor:
        """The inverse: [..., 4] distances to boxes (x1, y1, x2, y2)."""
        x, y, width, height = _centres(anchors)
        if self.normalise:
            distances = distances * torch.stack([width, height, width, height], -1)
        left, top, right, bottom = distances.unbind(-1)
        return torch.stack([x - left, y - top, x + right, y + bottom], -1)


BoxCoder = DeltaCoder | DistanceCoder


class BoxDecoder(Protocol):
    """What postprocessing needs of a coder: codes [..., 4] and their anchors to boxes."""

    def decode(self, deltas: Tensor, anchors: Tensor, /) -> Tensor: ...


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, y, width, height."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
