"""The cell of NASNet and AmoebaNet: five pairs of operations on earlier states, added pairwise, some of the states
concatenated. A `CellSpec` says which; the published ones are in the family files, networks of cells in
`cvops/models/backbone/cell_net.py`."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn.conv import ConvNormAct, Padding
from cvops.nn.norm import Norm
from cvops.nn.pool import Pool2d
from cvops.nn.separable import SeparableTwice
from cvops.ops.drop_path import ScheduledDropPath

OperationName = Literal[
    "none", "1x1", "3x3", "1x7_7x1", "sep_3x3", "sep_5x5", "sep_7x7", "mean_3x3", "max_2x2", "max_3x3"
]
Source = tuple[int, OperationName]
"""A state and what is done to it."""


@dataclass(frozen=True)
class CellSpec:
    """States 0 and 1 are the current and the previous input, brought to the cell's width; pair i makes state i + 2, the
    sum of its two operations. `concat` names the states that the cell returns."""

    pairs: tuple[tuple[Source, Source], ...]
    concat: tuple[int, ...]


class ReduceByTwoPaths(nn.Module):
    """Halves the resolution with two strided 1x1 convolutions, the second of them shifted by one pixel, so that every
    second row and column is seen rather than every fourth pixel; parts `even`, `odd`, `norm`. The input is rectified
    already. Both convolutions give half of the channels, and an odd one out is zero before the norm, which is how the
    published sizes of AmoebaNet-A are counted. [N, C, H, W] -> [N, out_channels, H / 2, W / 2], sizes rounded up.

    >>> ReduceByTwoPaths(8, 16)(torch.zeros(1, 8, 5, 4)).shape
    torch.Size([1, 16, 3, 2])
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        half = out_channels // 2
        self.spare = out_channels % 2
        self.even = nn.Conv2d(in_channels, half, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, half, 1, 2, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x, (-1, 1, -1, 1))
        halves = torch.cat([self.even(x), self.odd(shifted)], 1)
        y: Tensor = self.norm(F.pad(halves, (0, 0, 0, 0, 0, self.spare)) if self.spare else halves)
        return y


class Bottlenecked(nn.Sequential):
    """1x1 to a quarter of the width, a 3x3 or a 1x7 and a 7x1, 1x1 back: what AmoebaNet's convolutions are. The input
    is rectified already.

    >>> Bottlenecked(16, 32, [(1, 7), (7, 1)], 2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: list[tuple[int, int]],
        stride: int = 1,
        *,
        padding: Padding = "symmetric",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        hidden = out_channels // 4
        middle = [
            # A row kernel strides along rows only, a column kernel along columns.
            ConvNormAct(
                hidden,
                hidden,
                kernel,
                (stride if kernel[0] > 1 else 1, stride if kernel[1] > 1 else 1),
                padding=padding,
                norm=norm,
            )
            for kernel in kernels
        ]
        super().__init__(
            ConvNormAct(in_channels, hidden, norm=norm), *middle, ConvNormAct(hidden, out_channels, norm=norm, act=None)
        )


def takes_rectified(name: OperationName, operation: nn.Module) -> bool:
    """Whether an operation starts with a ReLU: all but pooling and the identity. The cell applies it, once a state."""
    return "max" not in name and "mean" not in name and not isinstance(operation, nn.Identity)


def make_operation(
    name: OperationName,
    in_channels: int,
    channels: int,
    stride: int = 1,
    *,
    padding: Padding = "symmetric",
    norm: Norm = nn.BatchNorm2d,
    counts_padding: bool = False,
    mean_for_max: bool = False,
) -> nn.Module:
    """The layer of an operation, [N, in_channels, H, W] -> [N, channels, H / stride, W / stride], less the ReLU in
    front of it. Pooling and "none" get a 1x1 convolution where the width changes, "none" where it strides too.

    >>> make_operation("none", 8, 8), make_operation("max_3x3", 8, 8, 2)
    (Identity(), Pool2d(max, 3, stride=2, padding='symmetric'))
    """
    kind, _, size = name.partition("_")
    if kind == "sep":
        return SeparableTwice(in_channels, channels, int(size[0]), stride, padding=padding, norm=norm)
    if name == "3x3":
        return Bottlenecked(in_channels, channels, [(3, 3)], stride, padding=padding, norm=norm)
    if name == "1x7_7x1":
        return Bottlenecked(in_channels, channels, [(1, 7), (7, 1)], stride, padding=padding, norm=norm)
    if name == "1x1" or (name == "none" and (stride > 1 or in_channels != channels)):
        return ConvNormAct(in_channels, channels, 1, stride, padding=padding, norm=norm, act=None)
    if name == "none":
        return nn.Identity()
    if kind not in ("max", "mean"):
        raise ValueError(f"unknown operation {name!r}")
    pool = Pool2d(
        "mean" if kind == "mean" or (mean_for_max and size == "3x3") else "max",
        int(size[0]),
        stride,
        # Windows of even size have no symmetric padding: the last column of an odd width would be lost.
        padding="same" if size == "2x2" else padding,
        counts_padding=counts_padding,
    )
    if in_channels == channels:
        return pool
    return nn.Sequential(pool, ConvNormAct(in_channels, channels, norm=norm, act=None))


class SearchedCell(nn.Module):
    """One cell (Zoph et al. 2018, arXiv:1707.07012, figure 4; Real et al. 2019, arXiv:1802.01548). `current` and
    `previous` bring the two inputs to `channels` (`previous` halves the resolution where `previous_stride` is 2, and is
    absent where the inputs are the same tensor, `previous_channels` None, or fit already); `left` and `right` hold the
    operations of each pair. Those on the inputs have `stride`. ([N, in_channels, H, W], [N, previous_channels, H',
    W']) -> [N, out_channels, H / stride, W / stride], sizes rounded up.

    `drop_path`, if given, is applied to the output of each operation but "none" (ScheduledDropPath).

    >>> spec = CellSpec((((0, "sep_3x3"), (1, "none")), ((2, "max_3x3"), (0, "1x1"))), concat=(2, 3))
    >>> cell = SearchedCell(spec, 8, None, 16)
    >>> cell(torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 6, 6)).shape, cell.out_channels
    (torch.Size([1, 32, 6, 6]), 32)
    """

    def __init__(
        self,
        spec: CellSpec,
        in_channels: int,
        previous_channels: int | None,
        channels: int,
        stride: int = 1,
        *,
        previous_stride: int = 1,
        padding: Padding = "symmetric",
        norm: Norm = nn.BatchNorm2d,
        counts_padding: bool = False,
        mean_for_max: bool = False,
        drop_path: ScheduledDropPath | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.current = ConvNormAct(in_channels, channels, norm=norm, act=None)
        self.previous: nn.Module = nn.Identity()
        width = in_channels if previous_channels is None else previous_channels
        if previous_stride == 2:
            self.previous = ReduceByTwoPaths(width, channels, norm)
            width = channels
        elif previous_channels is not None and previous_channels != channels:
            self.previous = ConvNormAct(previous_channels, channels, norm=norm, act=None)
            width = channels
        widths = [channels, width]
        self.left, self.right = nn.ModuleList(), nn.ModuleList()
        for pair in spec.pairs:
            for side, (state, name) in zip((self.left, self.right), pair, strict=True):
                side.append(
                    make_operation(
                        name,
                        widths[state],
                        channels,
                        stride if state < 2 else 1,
                        padding=padding,
                        norm=norm,
                        counts_padding=counts_padding,
                        mean_for_max=mean_for_max,
                    )
                )
            widths.append(channels)
        self.drop_path = drop_path
        self.out_channels = sum(widths[state] for state in spec.concat)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        active = F.relu(x)
        if isinstance(self.previous, nn.Identity):
            first = previous
        else:
            first = self.previous(active if previous is x else F.relu(previous))
        states = [self.current(active), first]
        rectified: dict[int, Tensor] = {}  # states are read several times: one ReLU for all of them
        if first is x:
            rectified[1] = active
        for pair, left, right in zip(self.spec.pairs, self.left, self.right, strict=True):
            terms = []
            for (state, name), operation in zip(pair, (left, right), strict=True):
                if takes_rectified(name, operation):
                    if state not in rectified:
                        rectified[state] = F.relu(states[state])
                    y = operation(rectified[state])
                else:
                    y = operation(states[state])
                terms.append(self.drop_path(y) if self.drop_path is not None and name != "none" else y)
            states.append(terms[0] + terms[1])
        return torch.cat([states[state] for state in self.spec.concat], 1)
