"""Bidirectional feature pyramid: the neck of EfficientDet."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn import ConvNormAct, Norm, Padding, Pool2d, SeparableConvNormAct, init_glorot, make_activation

Fusion = Literal["fast", "sum"]
EPS = 1e-4  # of the normalisation (Tan et al. 2020, section 3.3)


class WeightedSum(nn.Module):
    """Fast normalised fusion (Tan et al. 2020, arXiv:1911.09070, section 3.3) of `inputs` maps of one shape: their sum,
    weighted by the positive parts of learned weights over the total of these.

    >>> WeightedSum(2)([torch.tensor(4.0), torch.tensor(0.0)])
    tensor(1.9999, grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.edge_weights = nn.Parameter(torch.ones(inputs))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weights = self.edge_weights.relu()
        first, *others = (weights / (weights.sum() + EPS)).to(maps[0].dtype).unbind()
        total = maps[0] * first
        for x, weight in zip(maps[1:], others, strict=True):
            total = torch.addcmul(total, x, weight)
        return total


class Sum(nn.Module):
    """The sum of maps of one shape."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total = maps[0]
        for x in maps[1:]:
            total = total + x
        return total


class Node(nn.Module):
    """One map of a cell: maps of its size are fused, activated and convolved. Parts: `lateral` (1x1 convolution and
    norm on the map that comes from the cell before, absent where that has the pyramid's width), `fuse`, `act`, `conv`
    (3x3, separable)."""

    def __init__(
        self, in_channels: int, channels: int, inputs: int, fusion: Fusion, norm: Norm, act: str, conv_bias: bool
    ) -> None:
        super().__init__()
        self.lateral = lateral(in_channels, channels, norm, conv_bias)
        self.fuse = WeightedSum(inputs) if fusion == "fast" else Sum()
        self.act = make_activation(act)
        self.conv = SeparableConvNormAct(channels, channels, 3, norm=norm, act=None, bias=conv_bias)

    def forward(self, before: Tensor, *others: Tensor) -> Tensor:
        y: Tensor = self.conv(self.act(self.fuse([self.lateral(before), *others])))
        return y


class Cell(nn.Module):
    """One pass over the pyramid, down and up again (figure 3 d of the paper): maps of any channels, finest first, to as
    many of `channels`. Parts: `down` (nodes of every level but the coarsest, coarse to fine), `up` (nodes of every
    level but the finest, fine to coarse), `pool`."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        fusion: Fusion,
        norm: Norm,
        act: str,
        padding: Padding,
        conv_bias: bool,
    ) -> None:
        super().__init__()
        last = len(in_channels) - 1

        def node(level: int, inputs: int) -> Node:
            return Node(in_channels[level], channels, inputs, fusion, norm, act, conv_bias)

        self.down = nn.ModuleList(node(level, 2) for level in range(last - 1, -1, -1))
        self.up = nn.ModuleList(node(level, 3 if level < last else 2) for level in range(1, last + 1))
        self.pool = Pool2d("max", 3, 2, padding=padding)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        middle = [maps[-1]]  # coarse to fine
        for node, x in zip(self.down, maps[-2::-1], strict=True):
            middle.append(node(x, F.interpolate(middle[-1], x.shape[-2:], mode="nearest")))
        out = [middle.pop()]
        for node, x in zip(self.up, maps[1:], strict=True):
            between = middle.pop()
            finer = self.pool(out[-1])
            # On the coarsest level there is nothing between the cell's input and its output.
            out.append(node(x, between, finer) if middle else node(x, finer))
        return out


class BiFPN(nn.Module):
    """Bidirectional feature pyramid network (Tan et al. 2020, arXiv:1911.09070, section 3): maps of a backbone, finest
    first, to `levels` maps of `channels` channels, those beyond the backbone's by halving. `cells` passes over the
    pyramid, each down and up, which fuse maps by learned weights (`fast`) or by plain sums (`sum`).

    Sizes follow the maps: finer ones are halved, rounding up, by 3x3 max-pooling, and coarser ones take the size of the
    finer by nearest neighbours.

    padding: of the pooling; "same" as in TensorFlow.
    conv_bias: convolutions have a bias although a norm follows, as the published weights do.

    >>> maps = [torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)]
    >>> [list(p.shape) for p in BiFPN((8, 16), 4, levels=4)(maps)]
    [[1, 4, 16, 16], [1, 4, 8, 8], [1, 4, 4, 4], [1, 4, 2, 2]]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        levels: int = 5,
        cells: int = 3,
        fusion: Fusion = "fast",
        norm: Norm = nn.BatchNorm2d,
        act: str = "silu",
        padding: Padding = "same",
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        if fusion not in ("fast", "sum"):
            raise ValueError(f"fusion must be 'fast' or 'sum', got {fusion!r}")
        if cells < 1:
            raise ValueError(f"cells must be 1 or more, got {cells}")
        if levels <= len(in_channels):
            raise ValueError(f"levels must be more than the {len(in_channels)} maps of the backbone, got {levels}")
        self.out_channels = channels
        self.extra = levels - len(in_channels)
        self.reduce = lateral(in_channels[-1], channels, norm, conv_bias)
        self.pool = Pool2d("max", 3, 2, padding=padding)
        widths = [*in_channels, *(channels,) * self.extra]
        self.cells = nn.Sequential(
            *(
                Cell(widths if i == 0 else (channels,) * levels, channels, fusion, norm, act, padding, conv_bias)
                for i in range(cells)
            )
        )
        init_glorot(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        pyramid = list(maps)
        for i in range(self.extra):
            pyramid.append(self.pool(self.reduce(maps[-1]) if i == 0 else pyramid[-1]))
        out: list[Tensor] = self.cells(pyramid)
        return out


def lateral(in_channels: int, channels: int, norm: Norm, bias: bool) -> nn.Module:
    """1x1 convolution and norm, or nothing where the channels agree."""
    if in_channels == channels:
        return nn.Identity()
    return ConvNormAct(in_channels, channels, norm=norm, act=None, bias=bias)
