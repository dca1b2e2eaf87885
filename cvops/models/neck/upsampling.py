"""From a backbone's maps to one of stride 4 with deformable convolutions, the two ways of CenterNet (Zhou et al. 2019,
arXiv:1904.07850, figure 6): straight up from the last map, and iterative deep aggregation of all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvops.nn import DeformConvNormAct, make_activation


def fill_bilinear(up: nn.ConvTranspose2d) -> None:
    """Weights of a transposed convolution, one group for each channel or one for all, that enlarge channel by channel
    with bilinear interpolation. In place."""
    size = up.kernel_size[0]
    scale = math.ceil(size / 2)
    centre = (2 * scale - 1 - scale % 2) / (2 * scale)
    line = 1 - (torch.arange(size, device=up.weight.device) / scale - centre).abs()
    with torch.no_grad():
        up.weight.zero_()
        every = torch.arange(up.out_channels, device=up.weight.device)
        up.weight[every, 0 if up.groups > 1 else every] = line[:, None] * line


class DeformUpsampling(nn.Module):
    """The last of a backbone's maps, at stride 32, to one at stride 4: deformable convolution and transposed
    convolution by turns (figure 6b). [[N, C, H, W], ...] -> [[N, channels[-1], 8 H, 8 W]].

    Parts: for each step `deform`, `up` (transposed convolution) and `norms`.

    >>> [m.shape for m in DeformUpsampling(16, (8, 8, 8))([torch.zeros(1, 16, 2, 3)])]
    [torch.Size([1, 8, 16, 24])]
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = (256, 128, 64)) -> None:
        super().__init__()
        self.deform, self.up, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width in channels:
            self.deform.append(DeformConvNormAct(in_channels, width))
            up = nn.ConvTranspose2d(width, width, 4, 2, padding=1, bias=False)
            fill_bilinear(up)
            self.up.append(up)
            self.norms.append(nn.BatchNorm2d(width))
            in_channels = width
        self.act = make_activation("relu")

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        x = maps[-1]
        for deform, up, norm in zip(self.deform, self.up, self.norms, strict=True):
            x = self.act(norm(up(deform(x))))
        return [x]


class IterativeAggregation(nn.Module):
    """Iterative deep aggregation (Yu et al. 2018, arXiv:1707.06484, figure 2): every coarser map is brought to the size
    and width of the finest and added to what came before it. Maps, finest first -> as many maps of `channels`, of the
    finest size, the last of which has seen all; the first is the given one.

    factors: how many times coarser than the first each of the other maps is.

    Parts: for each map but the first `project`, `up` and `node`.

    >>> maps = [torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4), torch.zeros(1, 24, 2, 2)]
    >>> [list(m.shape) for m in IterativeAggregation(8, (16, 24), (2, 4))(maps)]
    [[1, 8, 8, 8], [1, 8, 8, 8], [1, 8, 8, 8]]
    """

    def __init__(self, channels: int, in_channels: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(DeformConvNormAct(width, channels) for width in in_channels)
        self.node = nn.ModuleList(DeformConvNormAct(channels, channels) for _ in in_channels)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 2 * f, f, padding=f // 2, groups=channels, bias=False)
            for f in factors
        )
        for up in self.up:
            fill_bilinear(up)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        joined = [maps[0]]
        for project, up, node, coarse in zip(self.project, self.up, self.node, maps[1:], strict=True):
            joined.append(node(up(project(coarse)) + joined[-1]))
        return joined


class DeepAggregation(nn.Module):
    """The last maps of a backbone, each half as fine as the one before, to one of the size of their finest (figure 6d):
    the two coarsest maps are aggregated first, then more and more of them, and in the end the results of each but the
    coarsest. Maps, finest first -> [[N, channels[0], H, W]].

    channels: of the maps that are taken; finer ones are left alone.

    Parts: `levels` (coarsest first) and `last`.

    >>> maps = [torch.zeros(1, c, 64 // s, 64 // s) for c, s in ((8, 4), (8, 8), (16, 16), (16, 32))]
    >>> [list(m.shape) for m in DeepAggregation((8, 8, 16, 16))(maps)]
    [[1, 8, 16, 16]]
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        count = len(channels)
        for finest in reversed(range(count - 1)):
            # All maps coarser than the next one already have its size and width.
            width = channels[finest + 1]
            self.levels.append(
                IterativeAggregation(channels[finest], (width,) * (count - 1 - finest), (2,) * (count - 1 - finest))
            )
        finer = range(1, count - 1)
        self.last = IterativeAggregation(channels[0], [channels[i] for i in finer], [2**i for i in finer])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        *finer, coarsest = maps[-1 - len(self.levels) :]
        coarse, results = [coarsest], [coarsest]
        for level, fine in zip(self.levels, reversed(finer), strict=True):
            coarse = level([fine, *coarse])
            results.insert(0, coarse[-1])
        last: Tensor = self.last(results[: len(finer)])[-1]
        return [last]
