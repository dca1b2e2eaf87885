"""Heads of CornerNet and of CenterNet with key point triplets: the pooling that looks along rows and columns, and what
is predicted of one kind of points. Pairing points is in `corner_detector.py`."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvops.models.head.point import HEAT_BIAS
from cvops.nn import ConvNormAct
from cvops.ops import corner_pool

Directions = tuple[str, str]  # of `corner_pool`, the vertical one first


class PointPooling(nn.Module):
    """What the three poolings share (Law and Deng 2018, arXiv:1808.01244, figure 7): two branches of `pooled` channels
    that subclasses pool to one map, a convolution of it added to the input's, and another one. [N, C, H, W] -> the same
    shape.

    Parts: `first`, `second` (3x3), `join` (3x3 on the pooled map), `shortcut` (1x1), `output` (3x3).
    """

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, pooled, 3)
        self.second = ConvNormAct(channels, pooled, 3)
        self.join = ConvNormAct(pooled, channels, 3, act=None)
        self.shortcut = ConvNormAct(channels, channels, act=None)
        self.output = ConvNormAct(channels, channels, 3)

    def pool(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(torch.relu(self.join(self.pool(x)) + self.shortcut(x)))
        return y


class CornerPooling(PointPooling):
    """Corner pooling (Law and Deng 2018, arXiv:1808.01244, section 3.3): the maxima from each pixel on along its column
    plus those along its row, `top` and `left` for top-left corners.

    >>> CornerPooling(8, 4, ("top", "left"))(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(self, channels: int, pooled: int, directions: Directions) -> None:
        super().__init__(channels, pooled)
        self.directions = directions

    def pool(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.directions
        return corner_pool(self.first(x), vertical) + corner_pool(self.second(x), horizontal)


class CascadeCornerPooling(PointPooling):
    """Cascade corner pooling (Duan et al. 2019, arXiv:1904.08189, section 3.3): before a branch looks along a side of
    the box, it looks from there into the box.

    Further parts: `look_first`, `look_second` (3x3), pooled in the other branch's direction, and `merge_first`,
    `merge_second` (3x3 on the sum, without norm).

    >>> CascadeCornerPooling(8, 4, ("bottom", "right"))(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(self, channels: int, pooled: int, directions: Directions) -> None:
        super().__init__(channels, pooled)
        self.directions = directions
        self.look_first = ConvNormAct(channels, pooled, 3)
        self.look_second = ConvNormAct(channels, pooled, 3)
        self.merge_first = nn.Conv2d(pooled, pooled, 3, padding=1, bias=False)
        self.merge_second = nn.Conv2d(pooled, pooled, 3, padding=1, bias=False)

    def pool(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.directions
        first = self.merge_first(self.first(x) + corner_pool(self.look_first(x), horizontal))
        second = self.merge_second(self.second(x) + corner_pool(self.look_second(x), vertical))
        return corner_pool(first, vertical) + corner_pool(second, horizontal)


class CenterPooling(PointPooling):
    """Center pooling (Duan et al. 2019, arXiv:1904.08189, section 3.3): the maximum of each pixel's whole column plus
    that of its row.

    >>> CenterPooling(8, 4)(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def pool(self, x: Tensor) -> Tensor:
        return self.first(x).amax(2, keepdim=True) + self.second(x).amax(3, keepdim=True)


class PointMaps(NamedTuple):
    """Of one kind of points, of one stack.

    heat: logits [B, C, H, W] of points of each class. offsets: [B, 2, H, W], x and y of a point within its cell.
    tags: [B, 1, H, W], alike for the corners of one object; None for centers.
    """

    heat: Tensor
    offsets: Tensor
    tags: Tensor | None


class PointBranch(nn.Module):
    """A pooling and the maps of its points, each by a 3x3 convolution, ReLU and a 1x1 convolution. Parts: `pool`,
    `heat`, `offsets`, `tags` (None if not wanted).

    >>> PointBranch(CenterPooling(8, 4), 8, 3, tags=True)(torch.zeros(1, 8, 5, 6)).heat.shape
    torch.Size([1, 3, 5, 6])
    """

    def __init__(self, pool: PointPooling, channels: int, num_classes: int, *, tags: bool) -> None:
        super().__init__()

        def output(width: int) -> nn.Sequential:
            return nn.Sequential(ConvNormAct(channels, channels, 3, norm=None), nn.Conv2d(channels, width, 1))

        self.pool = pool
        self.heat, self.offsets = output(num_classes), output(2)
        self.tags = output(1) if tags else None
        nn.init.constant_(self.heat[1].bias, HEAT_BIAS)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> PointMaps:
        x = self.pool(x)
        return PointMaps(self.heat(x), self.offsets(x), None if self.tags is None else self.tags(x))
