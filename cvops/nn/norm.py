"""Normalisation by name, and batch norm with fixed statistics. Where it goes in a block is in `conv.py` and
`residual.py`."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn.conv import Norm

NormName = Literal["batch", "frozen", "group"]
GROUPS = 32  # of group norm, as published


class FrozenBatchNorm2d(nn.Module):
    """Batch norm that never learns: statistics, scale and shift are buffers, used alike in train and eval mode. What
    detectors run a pretrained backbone with, as their batches are too small for statistics. [N, C, H, W] ->
    [N, C, H, W]; loads the entries of `nn.BatchNorm2d`.

    >>> layer = FrozenBatchNorm2d(4).train()
    >>> layer(torch.full((2, 4, 3, 3), 5.0)).mean().round(), list(layer.parameters())
    (tensor(5.), [])
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps:g}"


def make_norm(name: NormName, eps: float = 1e-5, momentum: float = 0.1) -> Norm:
    """The maker of normalisation layers called `name`: `batch`, `frozen` (`FrozenBatchNorm2d`) or `group` (Wu and He
    2018, arXiv:1803.08494, 32 groups); `momentum` is of the first only. Raises `ValueError` for
    another name.

    >>> make_norm("group")(64).num_groups
    32
    """
    if name == "batch":
        return partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
    if name == "frozen":
        return partial(FrozenBatchNorm2d, eps=eps)
    if name == "group":
        return partial(nn.GroupNorm, GROUPS, eps=eps)
    raise ValueError(f"norm must be 'batch', 'frozen' or 'group', got {name!r}")
