"""Deformable convolution that finds its own offsets, with normalisation and activation. The op is
`cvops.ops.deform_conv2d`; plain convolutions are in `conv.py`."""

import torch
from torch import Tensor, nn

from cvops.nn.conv import make_activation
from cvops.nn.norm import Norm
from cvops.ops.deform_conv2d import DeformConv2d


class DeformConvNormAct(nn.Module):
    """Deformable convolution v2 (Zhu et al. 2018, arXiv:1811.11168), normalisation, activation: parts `offset` (an
    ordinary convolution to offsets and mask logits of every tap, zero at first: an ordinary convolution at half
    strength), `conv`, `norm`, `act`. [N, in_channels, H, W] -> [N, out_channels, H, W].

    >>> DeformConvNormAct(8, 16)(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        norm: Norm = nn.BatchNorm2d,
        act: str = "relu",
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.taps = kernel_size**2
        self.offset = nn.Conv2d(in_channels, 3 * self.taps, kernel_size, padding=kernel_size // 2)
        self.conv = DeformConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = norm(out_channels)
        self.act = make_activation(act)
        self.reset_offset()

    def reset_offset(self) -> None:
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        where = self.offset(x)
        offset, mask = where[:, : 2 * self.taps], where[:, 2 * self.taps :]
        y: Tensor = self.act(self.norm(self.conv(x, offset, torch.sigmoid(mask))))
        return y
