"""Residual blocks: basic and bottleneck, with groups, dilation, squeeze-and-excitation in each published place, every
kind of drop, and the reordered block of IC networks. Single units are in `conv.py`, the network that stacks the blocks
is `cvops.models.backbone.resnet`."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from cvops.nn.blocks import IndependentComponent, SqueezeExcite
from cvops.nn.conv import ConvNormAct, make_activation
from cvops.nn.drop import DropPath, ScheduledDropBlock2d
from cvops.nn.norm import Norm
from cvops.ops.drop_path import DropChannel

SEPlacement = Literal["standard", "pre", "post", "identity", "3x3"]
"""Where a residual block has its squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507, section 6.4): `standard`
on the branch before the sum, `pre` on the branch before its first convolution, `post` after the sum and its
activation, `identity` on the shortcut, `3x3` inside the branch after the 3x3 convolution."""


@dataclass(frozen=True, kw_only=True)
class ResidualOptions:
    """What the blocks of a network share.

    se, se_reduction: squeeze-and-excitation, absent when None; its bottleneck has 1 / `se_reduction` of the channels.
    drop_path: probability of leaving the branch out, for each sample.
    drop_block, drop_block_size: share of elements dropped in blocks, after every convolution and on the shortcut.
    drop_channel: probability of dropping a channel of the last convolution's input.
    ic_dropout: not None makes it an IC block: {activation, batch norm, dropout of this rate, convolution} repeated,
        and no activation after the sum.
    shortcut_kernel: size of the convolution in the shortcut of blocks that change the shape.
    """

    norm: Norm = nn.BatchNorm2d
    act: str = "relu"
    se: SEPlacement | None = None
    se_reduction: int = 16
    drop_path: float = 0.0
    drop_block: float = 0.0
    drop_block_size: int = 7
    drop_channel: float = 0.0
    ic_dropout: float | None = None
    shortcut_kernel: int = 1


class ICConv(nn.Module):
    """Activation, independent-component layer, convolution: the unit of IC networks (Chen et al. 2019,
    arXiv:1905.05928), parts `act`, `ic`, `conv`. [N, in_channels, H, W] -> [N, out_channels, H', W'].

    >>> ICConv(8, 16, 3, stride=2)(torch.zeros(2, 8, 9, 8)).shape
    torch.Size([2, 16, 5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        dropout: float = 0.05,
        norm: Norm = nn.BatchNorm2d,
        act: str | None = "relu",
    ) -> None:
        super().__init__()
        # Not in place: the first unit's input is also the block's shortcut.
        self.act = make_activation(act, inplace=False) if act is not None else nn.Identity()
        self.ic = IndependentComponent(in_channels, dropout, norm)
        padding = (kernel_size - 1) // 2 * dilation
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.ic(self.act(x)))
        return y


def _unit(
    options: ResidualOptions,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    act: bool = True,
) -> ConvNormAct | ICConv:
    """A unit of the branch or the shortcut. `act` False leaves out the activation, wherever the unit has it."""
    name = options.act if act else None
    shape = (in_channels, out_channels, kernel_size, stride)
    if options.ic_dropout is None:
        return ConvNormAct(*shape, groups=groups, dilation=dilation, norm=options.norm, act=name)
    return ICConv(*shape, groups=groups, dilation=dilation, dropout=options.ic_dropout, norm=options.norm, act=name)


class _ResidualBlock(nn.Module):
    """The sum of branch and shortcut and what surrounds it; subclasses add the convolutions of the branch."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        options: ResidualOptions,
        inner_channels: int | None = None,
    ) -> None:
        super().__init__()
        if options.se is not None and options.se not in get_args(SEPlacement):
            raise ValueError(f"se must be one of {', '.join(get_args(SEPlacement))}, got {options.se!r}")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            kernel = options.shortcut_kernel
            self.shortcut = _unit(options, in_channels, out_channels, kernel, stride, dilation=dilation, act=False)
        self.se_placement = options.se
        self.se: nn.Module = nn.Identity()
        if options.se is not None:
            channels = in_channels if options.se == "pre" else out_channels
            if options.se == "3x3":
                if inner_channels is None:
                    raise ValueError("se='3x3' is for bottleneck blocks")
                channels = inner_channels
            self.se = SqueezeExcite(channels, max(1, channels // options.se_reduction), options.act)
        block = options.drop_block
        self.drop_block = ScheduledDropBlock2d(block, options.drop_block_size) if block > 0 else nn.Identity()
        self.drop_channel = DropChannel(options.drop_channel) if options.drop_channel > 0 else nn.Identity()
        self.drop_path = DropPath(options.drop_path) if options.drop_path > 0 else nn.Identity()
        self.act = make_activation(options.act) if options.ic_dropout is None else nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def last(self) -> nn.Module:
        """The last unit of the branch."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(self.se(x) if self.se_placement == "pre" else x)
        if self.se_placement == "standard":
            y = self.se(y)
        shortcut = self.drop_block(self.shortcut(x))
        if self.se_placement == "identity":
            shortcut = self.se(shortcut)
        y = self.drop_path(y)
        y += shortcut
        y = self.act(y)
        return self.se(y) if self.se_placement == "post" else y


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385, figure 5 left): parts `conv1`, `conv2`,
    and `shortcut` where the shape changes. [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride].

    dilation: of the convolutions; `first_dilation` of the first one if it differs, as in the block that would stride.

    >>> BasicBlock(8, 16, stride=2)(torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 16, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int | None = None,
        options: ResidualOptions | None = None,
    ) -> None:
        options = options or ResidualOptions()
        first = first_dilation or dilation
        super().__init__(in_channels, out_channels, stride, first, options)
        self.conv1 = _unit(options, in_channels, out_channels, 3, stride, dilation=first)
        # In an IC block the activation comes before the convolution, so the last one has it too.
        self.conv2 = _unit(
            options, out_channels, out_channels, 3, dilation=dilation, act=options.ic_dropout is not None
        )

    def branch(self, x: Tensor) -> Tensor:
        y = self.drop_channel(self.drop_block(self.conv1(x)))
        out: Tensor = self.drop_block(self.conv2(y))
        return out

    @property
    def last(self) -> nn.Module:
        return self.conv2


class Bottleneck(_ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385, figure 5 right); with `groups`
    the block of ResNeXt (Xie et al. 2017, arXiv:1611.05431). Parts `conv1`, `conv2`, `conv3`, and `shortcut` where the
    shape changes. [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride].

    width: channels of the 3x3 convolution; those of the first 1x1 are as many unless `reduced` says so.
    stride_first: stride in the first 1x1 convolution, as the original networks do, instead of the 3x3.
    dilation: of the 3x3 convolution.

    >>> Bottleneck(64, 256, width=128, groups=32)(torch.zeros(1, 64, 6, 6)).shape
    torch.Size([1, 256, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        width: int,
        reduced: int | None = None,
        groups: int = 1,
        stride_first: bool = False,
        dilation: int = 1,
        options: ResidualOptions | None = None,
    ) -> None:
        options = options or ResidualOptions()
        super().__init__(in_channels, out_channels, stride, dilation, options, width)
        reduced = width if reduced is None else reduced
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = _unit(options, in_channels, reduced, 1, first)
        self.conv2 = _unit(options, reduced, width, 3, second, groups=groups, dilation=dilation)
        self.conv3 = _unit(options, width, out_channels, act=options.ic_dropout is not None)

    def branch(self, x: Tensor) -> Tensor:
        y = self.drop_block(self.conv2(self.drop_block(self.conv1(x))))
        if self.se_placement == "3x3":
            y = self.se(y)
        out: Tensor = self.drop_block(self.conv3(self.drop_channel(y)))
        return out

    @property
    def last(self) -> nn.Module:
        return self.conv3
