"""Inception modules: branches of convolutions side by side, concatenated, as a layer of their own or as the residual of
a block. Which branches, is in the families."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn.conv import ConvNormAct, Padding, Size
from cvops.nn.drop import DropPath
from cvops.nn.norm import Norm
from cvops.nn.pool import Pool2d


@dataclass(frozen=True)
class Conv:
    """A step of a branch: a convolution to `width` channels. At stride 2 it has no padding, else it keeps the size."""

    width: int
    kernel: Size = 1
    stride: int = 1


@dataclass(frozen=True)
class Pool:
    """A step of a branch: 3x3 pooling, "max" or "mean". With stride 2 it has no padding, else it keeps the size."""

    kind: str
    stride: int = 1


Branch = tuple[Conv | Pool, ...]


class InceptionModule(nn.ModuleList):
    """Branches side by side (Szegedy et al. 2015, arXiv:1409.4842), each a sequence of steps:
    [N, in_channels, H, W] -> [N, out_channels, H', W'], with H' = (H - 1) // 2 where the branches stride, else H.

    >>> module = InceptionModule(8, [(Conv(4),), (Conv(4), Conv(6, 3)), (Pool("mean"), Conv(2))])
    >>> module(torch.zeros(1, 8, 5, 5)).shape, module.out_channels
    (torch.Size([1, 12, 5, 5]), 12)
    """

    def __init__(self, in_channels: int, branches: Sequence[Branch], norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = 0
        for steps in branches:
            branch, channels = nn.Sequential(), in_channels
            for step in steps:
                if isinstance(step, Conv):
                    padding: Padding | int = 0 if step.stride > 1 else "symmetric"
                    branch.append(
                        ConvNormAct(channels, step.width, step.kernel, step.stride, padding=padding, norm=norm)
                    )
                    channels = step.width
                elif step.stride > 1:
                    branch.append(nn.MaxPool2d(3, step.stride) if step.kind == "max" else nn.AvgPool2d(3, step.stride))
                else:
                    branch.append(Pool2d("max" if step.kind == "max" else "mean", 3))
            self.append(branch)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class InceptionResidual(nn.Module):
    """An Inception module as a residual (Szegedy et al. 2017, arXiv:1602.07261): `branches`, `project` (1x1 with bias,
    back to the input's width), times `scale`, added to the input, ReLU unless `rectify` is False.
    [N, channels, H, W] -> the same.

    >>> InceptionResidual(16, [(Conv(4),), (Conv(4), Conv(6, (1, 7)))], scale=0.1)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 16, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[Branch],
        scale: float,
        *,
        rectify: bool = True,
        norm: Norm = nn.BatchNorm2d,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.branches = InceptionModule(channels, branches, norm)
        self.project = nn.Conv2d(self.branches.out_channels, channels, 1)
        self.scale, self.rectify = scale, rectify
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.add(x, self.drop_path(self.project(self.branches(x))), alpha=self.scale)
        return F.relu(y) if self.rectify else y

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}" + ("" if self.rectify else ", rectify=False")
