"""Path aggregation, the neck of YOLOv4: down a pyramid and up again, joining maps by concatenation."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn import ConvNormAct, Norm, PointwiseAttention, SpatialPyramidPool


class PathAggregation(nn.Module):
    """Path aggregation (Liu et al. 2018, arXiv:1803.01534) with concatenation instead of sums, and spatial pyramid
    pooling before it, as in YOLOv4 (Bochkovskiy et al. 2020, arXiv:2004.10934, figure 6 and section 3.4). Maps of
    `in_channels`, finest first and each half the size of the one before, to maps of the same sizes and half the
    channels.

    attention: the blocks whose results leave the neck (the finest of `top_down`, all of `bottom_up`) have a
        `PointwiseAttention` before their last convolution, as in Darknet's yolov4-sam-mish.cfg.

    Parts: `before`, `pool`, `after` (on the coarsest map); from coarse to fine `shrink` (1x1 on the coarser map, which
    is then upsampled by nearest neighbours), `lateral` (1x1 on the backbone's) and `top_down` (blocks of five); from
    fine to coarse `stride` (3x3, stride 2) and `bottom_up` (blocks of five).

    >>> maps = [torch.zeros(1, 8 << i, 16 >> i, 16 >> i) for i in range(3)]
    >>> [list(m.shape) for m in PathAggregation((8, 16, 32))(maps)]
    [[1, 4, 16, 16], [1, 8, 8, 8], [1, 16, 4, 4]]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        attention: bool = False,
        act: str = "leaky_relu",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if any(2 * fine != coarse for fine, coarse in pairwise(in_channels)):
            raise ValueError(f"in_channels must double from each map to the next, got {tuple(in_channels)}")
        self.out_channels = tuple(c // 2 for c in in_channels)

        def unit(before: int, after: int, kernel: int = 1, stride: int = 1) -> ConvNormAct:
            return ConvNormAct(before, after, kernel, stride, norm=norm, act=act)

        def block(channels: int, units: int, first: int | None = None, attends: bool = False) -> nn.Sequential:
            """1x1 to `channels` and 3x3 to twice as many, in turn."""
            narrow, wide = channels, 2 * channels
            layers: list[nn.Module] = [unit(wide if first is None else first, narrow)]
            layers += [unit(narrow, wide, 3) if i % 2 else unit(wide, narrow) for i in range(1, units)]
            if attends:
                layers.insert(units - 1, PointwiseAttention(wide, norm))
            return nn.Sequential(*layers)

        last = self.out_channels[-1]
        self.before = block(last, 3)
        self.pool = SpatialPyramidPool()
        self.after = block(last, 3, first=4 * last)
        pairs = list(pairwise(self.out_channels))
        self.shrink = nn.ModuleList(unit(coarse, fine) for fine, coarse in reversed(pairs))
        self.lateral = nn.ModuleList(unit(2 * fine, fine) for fine, _ in reversed(pairs))
        self.top_down = nn.ModuleList(
            block(fine, 5, attends=attention and i == 0) for i, (fine, _) in reversed(list(enumerate(pairs)))
        )
        self.stride = nn.ModuleList(unit(fine, coarse, 3, 2) for fine, coarse in pairs)
        self.bottom_up = nn.ModuleList(block(coarse, 5, attends=attention) for _, coarse in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        down = [self.after(self.pool(self.before(maps[-1])))]  # coarsest first
        levels = zip(reversed(maps[:-1]), self.shrink, self.lateral, self.top_down, strict=True)
        for x, shrink, lateral, block in levels:
            x = lateral(x)
            coarser = F.interpolate(shrink(down[-1]), x.shape[-2:], mode="nearest")
            down.append(block(torch.cat([x, coarser], 1)))
        up = [down.pop()]  # finest first
        for stride, block in zip(self.stride, self.bottom_up, strict=True):
            up.append(block(torch.cat([stride(up[-1]), down.pop()], 1)))
        return up
