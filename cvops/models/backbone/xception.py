"""The backbone of Xception: an unpadded stem, residual blocks of separable convolutions in three flows, and two wider
separable convolutions at the end. Settings and the names that others give to the layers are in the family file."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct, DropPath, Norm, Padding, Pool2d, SeparableConvNormAct, recompute


@dataclass(frozen=True)
class Flow:
    """One residual block of figure 5: the widths its separable convolutions give, and the stride of its pooling."""

    widths: tuple[int, ...]
    stride: int = 1


class XceptionBlock(nn.Module):
    """ReLU and separable convolution, as often as there are `widths`, then max pooling if `stride` is 2; added to the
    input, which a 1x1 convolution brings to the same shape where they differ. `rectify` False leaves out the first
    ReLU. [N, in_channels, H, W] -> [N, widths[-1], H / stride, W / stride].

    >>> XceptionBlock(64, (128, 128), stride=2)(torch.zeros(1, 64, 9, 9)).shape
    torch.Size([1, 128, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        stride: int = 1,
        *,
        pool: bool | None = None,
        dilation: int = 1,
        rectify: bool = True,
        norm: Norm = nn.BatchNorm2d,
        padding: Padding = "symmetric",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.rectify = rectify
        pool = stride > 1 if pool is None else pool
        self.units = nn.Sequential()
        for i, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            act = "relu" if i < len(widths) - 1 else None
            self.units.append(
                SeparableConvNormAct(before, after, 3, dilation=dilation, padding=padding, norm=norm, act=act)
            )
        self.pool = Pool2d("max", 3, stride, dilation=dilation, padding=padding) if pool else nn.Identity()
        self.shortcut = (
            ConvNormAct(in_channels, widths[-1], 1, stride, padding=padding, norm=norm, act=None)
            if pool or in_channels != widths[-1]
            else nn.Identity()
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.units(F.relu(x) if self.rectify else x))
        out: Tensor = self.drop_path(y) + self.shortcut(x)
        return out


class XceptionNet(Backbone):
    """[N, in_chans, H, W] -> maps at strides 2, 4, 8, 16 and 32: the stem, the last block of each resolution, the end.

    Parts: `stem` (two convolutions without padding, so maps are up to three pixels smaller than H / stride), `blocks`,
    `tail`. `output_stride` 16 or 8 keeps the resolution from there on and dilates the convolutions instead: the values
    at every second (fourth) pixel are those of the strided network. `drop_path` is the stochastic depth rate that the
    last block would have; it grows linearly from 0. `checkpointing` recomputes each block in the backward pass.

    >>> net = XceptionNet(3, (8, 16), [Flow((32, 32), 2), Flow((32, 32))], (48,))
    >>> [list(f.shape) for f in net.features(torch.zeros(1, 3, 64, 64))]
    [[1, 16, 29, 29], [1, 48, 15, 15]]
    """

    input_keys = ("stem.0.conv.weight",)
    min_size = 7

    def __init__(
        self,
        in_chans: int,
        stem_channels: tuple[int, int],
        flows: Sequence[Flow],
        tail_channels: Sequence[int],
        *,
        norm: Norm = nn.BatchNorm2d,
        padding: Padding = "symmetric",
        output_stride: int = 32,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        self.checkpointing = checkpointing
        first, second = stem_channels
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, first, 3, 2, padding=0, norm=norm),
            ConvNormAct(first, second, 3, padding=0, norm=norm),
        )
        self.blocks = nn.ModuleList()
        # `stride` is what the map has, `dilation` what it would have had besides.
        channels, stride, dilation = second, 2, 1
        widths, strides = [channels], [stride]
        for i, flow in enumerate(flows):
            kept = flow.stride > 1 and stride * flow.stride > output_stride
            self.blocks.append(
                XceptionBlock(
                    channels,
                    flow.widths,
                    1 if kept else flow.stride,
                    pool=flow.stride > 1,
                    dilation=dilation,
                    rectify=i > 0,
                    norm=norm,
                    padding=padding,
                    drop_path=drop_path * i / len(flows),
                )
            )
            channels = flow.widths[-1]
            if kept:
                dilation *= flow.stride
            else:
                stride *= flow.stride
            widths.append(channels)
            strides.append(stride)
        self.tail = nn.Sequential()
        for after in tail_channels:
            self.tail.append(SeparableConvNormAct(channels, after, 3, dilation=dilation, padding=padding, norm=norm))
            channels = after
        # A map is complete where the next block pools (in its own resolution or a dilated one), or at the end.
        pools = [flow.stride > 1 for flow in flows]
        self._emits = [*pools, False]
        self.feature_info = FeatureInfo(
            channels=(*(w for w, emit in zip(widths, self._emits, strict=True) if emit), channels),
            strides=(*(s for s, emit in zip(strides, self._emits, strict=True) if emit), stride),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for block, emit in zip(self.blocks, self._emits, strict=False):
            if emit:
                maps.append(F.relu(x))  # as the next block takes it
            x = recompute(block, x) if self.checkpointing else block(x)
        return [*maps, self.tail(x)]
