"""Blocks made of several layers: squeeze-and-excitation, pointwise attention, the independent-component layer, cascaded
cross-channel pooling, the inverted residual. The single convolution is in `conv.py`, residual blocks are in
`residual.py` and `csp.py`, stages and whole networks in `cvops.models`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from cvops.nn.conv import ConvNormAct, Padding, make_activation, round_channels
from cvops.nn.drop import DropPath
from cvops.nn.norm import Norm

SEStyle = Literal["efficientnet", "mobilenet_v3"]


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): scales each channel by a gate in (0, 1) computed from
    the mean of all channels through a bottleneck of `squeeze_channels`; the gate is a `sigmoid`, or a `hard_sigmoid`.
    [N, C, H, W] -> [N, C, H, W].

    >>> SqueezeExcite(32, 8)(torch.zeros(2, 32, 5, 5)).shape
    torch.Size([2, 32, 5, 5])
    """

    def __init__(self, channels: int, squeeze_channels: int, act: str = "relu", gate: str = "sigmoid") -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeeze_channels, 1)
        self.act = make_activation(act)
        self.expand = nn.Conv2d(squeeze_channels, channels, 1)
        self.gate = make_activation(gate)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))
        return x * gate


class PointwiseAttention(nn.Module):
    """YOLOv4's modified spatial attention module (Bochkovskiy et al. 2020, arXiv:2004.10934, figure 5): scales every
    element by a gate in (0, 1) that a 1x1 convolution, norm and sigmoid make of its pixel, where the original pools the
    channels to one gate for the pixel. Part `gate`. [N, C, H, W] -> [N, C, H, W].

    >>> PointwiseAttention(8)(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.gate = ConvNormAct(channels, channels, norm=norm, act="sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(x)
        return y


class IndependentComponent(nn.Module):
    """Independent-component layer (Chen et al. 2019, arXiv:1905.05928): batch norm, which whitens each channel, then
    dropout of single elements, which lowers the dependence between them. It goes right before a convolution.
    [N, C, H, W] -> [N, C, H, W].

    >>> IndependentComponent(8, 0.05).eval()(torch.ones(1, 8, 2, 2)).shape
    torch.Size([1, 8, 2, 2])
    """

    def __init__(self, channels: int, dropout: float = 0.05, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.norm(x))
        return y


class CascadedCrossChannelPooling(nn.Module):
    """Cascaded cross-channel parametric pooling, the mlpconv layer of Network in Network (Lin et al. 2014,
    arXiv:1312.4400): a convolution followed by 1x1 convolutions of the widths in `channels`, each with an activation
    and, instead of the paper's biases, a norm. [N, in_channels, H, W] -> [N, channels[-1], H / stride, W / stride].

    >>> CascadedCrossChannelPooling(3, (192, 160, 96), kernel_size=5)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 96, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        kernel_size: int = 1,
        stride: int = 1,
        *,
        norm: Norm = nn.BatchNorm2d,
        act: str = "relu",
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must list the width of at least one convolution, got none")
        units = [ConvNormAct(in_channels, channels[0], kernel_size, stride, norm=norm, act=act)]
        units += [ConvNormAct(a, b, norm=norm, act=act) for a, b in pairwise(channels)]
        self.layers = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class InvertedResidual(nn.Module):
    """Inverted residual with linear bottleneck (Sandler et al. 2018, arXiv:1801.04381), called MBConv where it has
    squeeze-and-excitation (Tan and Le 2019, arXiv:1905.11946).

    `expand` (1x1 to `in_channels * expansion`, rounded to a multiple of 8 where expansion is no whole number; absent at
    expansion 1), `depthwise`, `se` (absent at `se_ratio` 0), `project` (1x1, no activation). The shortcut is there when
    stride is 1 and the widths agree. [N, C, H, W] -> [N, out_channels, H / stride, W / stride].

    se_style: `efficientnet`, whose bottleneck is `se_ratio` of the block's input, with the block's activation; or
        `mobilenet_v3` (Howard et al. 2019, arXiv:1905.02244), `se_ratio` of the expansion rounded to a multiple of 8,
        with a ReLU and a hard sigmoid.

    >>> InvertedResidual(16, 24, stride=2, expansion=6)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        expansion: float = 6,
        se_ratio: float = 0.0,
        se_style: SEStyle = "efficientnet",
        act: str = "relu6",
        norm: Norm = nn.BatchNorm2d,
        padding: Padding = "symmetric",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = round_channels(in_channels * expansion) if expansion % 1 else in_channels * int(expansion)
        self.expand = ConvNormAct(in_channels, hidden, norm=norm, act=act) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNormAct(
            hidden,
            hidden,
            kernel_size,
            stride,
            groups=hidden,
            dilation=dilation,
            padding=padding,
            norm=norm,
            act=act,
        )
        self.se: nn.Module = nn.Identity()
        if se_ratio > 0 and se_style == "efficientnet":
            self.se = SqueezeExcite(hidden, max(1, int(in_channels * se_ratio)), act)
        elif se_ratio > 0:
            self.se = SqueezeExcite(hidden, round_channels(hidden * se_ratio), gate="hard_sigmoid")
        self.project = ConvNormAct(hidden, out_channels, norm=norm, act=None)
        self.shortcut = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path) if self.shortcut and drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.expand(x), x)

    def contract(self, expanded: Tensor, x: Tensor) -> Tensor:
        """What follows the expansion of `x`, for those who need the expanded map too."""
        y: Tensor = self.project(self.se(self.depthwise(expanded)))
        return x + self.drop_path(y) if self.shortcut else y
