"""The backbone of ResNet, ResNeXt and SENet: stem, max pool, and stages of residual blocks, with everything that the
families and their users switch on it. Which settings make which network, and the names that others give to the layers,
are in the family files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cvops.models.config import ModelConfig
from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import (
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    IndependentComponent,
    NormName,
    ResidualOptions,
    SEPlacement,
    init_convnet,
    make_activation,
    make_norm,
    recompute,
)

STAGE_CHANNELS = (64, 128, 256, 512)  # of the 3x3 convolutions of ResNet; a bottleneck puts out four times as many
EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(ModelConfig):
    """What makes a residual network.

    depths: blocks of each stage.
    block: `basic` or `bottleneck`; `groups` and `group_width` (channels of a group in the first stage) are those of the
        bottleneck's 3x3 convolution, `halve_reduction` gives the 1x1 before it half the channels.
    stem: `7x7`, or `3x3x3` for three 3x3 convolutions.
    pool: `padded` (3x3, stride 2, padding 1), or `ceil` (no padding, a last partial window): Caffe's.
    stride_first: bottlenecks stride in their first 1x1 convolution (the originals) instead of the 3x3.
    shortcut_kernel: size of the convolution in the shortcuts of stages 2 to 4.
    se, se_reduction: squeeze-and-excitation, and its place in the block; None for none.
    norm: `batch`; `frozen`, batch norm with fixed statistics, for detectors; `group`.
    zero_init_residual: start with every block as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    output_stride: 8, 16 or 32; the stages beyond it are dilated instead of strided.
    checkpointing: keep only the stages' inputs for the backward pass, and compute the rest again there.
    dropout: before the classifier. drop_path: probability of leaving out the last block's branch, growing linearly over
        the blocks from nearly 0. drop_block: rate of stage 4, a quarter of it in stage 3, for blocks of
        `drop_block_size` pixels (Ghiasi et al. 2018, arXiv:1810.12890); `cvops.nn.set_drop_progress` raises it over
        training. drop_channel: rate of whole channels, before the last convolution of each branch.
    ic_dropout: a rate, not None, makes an IC network (Chen et al. 2019, arXiv:1905.05928): blocks of
        {ReLU, batch norm, dropout, convolution}; the paper has 0.05.
    """

    depths: tuple[int, int, int, int]
    block: Literal["basic", "bottleneck"] = "bottleneck"
    groups: int = 1
    group_width: int = 64
    halve_reduction: bool = False
    stem: Literal["7x7", "3x3x3"] = "7x7"
    pool: Literal["padded", "ceil"] = "padded"
    stride_first: bool = False
    shortcut_kernel: int = 1
    se: SEPlacement | None = None
    se_reduction: int = 16
    norm: NormName = "batch"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    zero_init_residual: bool = False
    output_stride: int = 32
    checkpointing: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_block: float = 0.0
    drop_block_size: int = 7
    drop_channel: float = 0.0
    ic_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (
            ("block", self.block, ("basic", "bottleneck")),
            ("stem", self.stem, ("7x7", "3x3x3")),
            ("pool", self.pool, ("padded", "ceil")),
            ("output_stride", self.output_stride, (8, 16, 32)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        for name in ("dropout", "drop_path", "drop_block", "drop_channel", "ic_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")
        if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
            raise ValueError("groups and group_width are for bottleneck blocks")

    @property
    def stem_channels(self) -> tuple[int, ...]:
        """Widths of the stem's convolutions."""
        return (64,) if self.stem == "7x7" else (64, 64, 128)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Widths of the four stages' maps."""
        return tuple(c * (1 if self.block == "basic" else EXPANSION) for c in STAGE_CHANNELS)

    @property
    def num_features(self) -> int:
        """Width of the last map."""
        return self.out_channels[-1]


class ResidualNet(Backbone):
    """[N, in_chans, H, W] -> maps at strides 2 (stem), 4, 8, 16 and 32 (stages), or less with `output_stride`.

    Parts: `stem`, `pool`, `stages` (a sequence of blocks each); in IC networks `last`, the activation and norm of the
    last map. With `pool="ceil"` maps after the pool round an odd size down.

    >>> net = ResidualNet(ResidualConfig(depths=(1, 1, 1, 1), block="basic", output_stride=8))
    >>> [list(f.shape) for f in net.features(torch.zeros(1, 3, 64, 64))]
    [[1, 64, 32, 32], [1, 64, 16, 16], [1, 128, 8, 8], [1, 256, 8, 8], [1, 512, 8, 8]]
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        norm = make_norm(config.norm, config.norm_eps, config.norm_momentum)
        self.checkpointing = config.checkpointing
        self.stem: nn.Module
        if config.stem == "7x7":
            self.stem = ConvNormAct(config.in_chans, config.stem_channels[0], 7, 2, norm=norm)
            self.input_keys = ("stem.conv.weight",)
        else:
            a, b, c = config.stem_channels
            self.stem = nn.Sequential(
                ConvNormAct(config.in_chans, a, 3, 2, norm=norm),
                ConvNormAct(a, b, 3, norm=norm),
                ConvNormAct(b, c, 3, norm=norm),
            )
            self.input_keys = ("stem.0.conv.weight",)
        if config.pool == "padded":
            self.pool = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.min_size = 3

        self.stages = nn.ModuleList()
        stride, strides, dilation = 4, [2], 1
        channels = config.stem_channels[-1]
        for i in range(4):
            step, before = 1 if i == 0 else 2, dilation
            if stride * step > config.output_stride:
                step, dilation = 1, dilation * 2
            stride *= step
            strides.append(stride)
            blocks = []
            for j in range(config.depths[i]):
                index = sum(config.depths[:i]) + j
                options = _options(config, i, index)
                first = before if j == 0 else dilation
                blocks.append(_block(config, i, channels, step if j == 0 else 1, dilation, first, options))
                channels = config.out_channels[i]
            self.stages.append(nn.Sequential(*blocks))
        self.last: nn.Module = nn.Identity()
        if config.ic_dropout is not None:
            self.last = nn.Sequential(make_activation("relu"), IndependentComponent(channels, config.ic_dropout, norm))
        self.feature_info = FeatureInfo((config.stem_channels[-1], *config.out_channels), tuple(strides))

    def features(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        x = self.pool(maps[0])
        for stage in self.stages:
            x = recompute(stage, x) if self.checkpointing else stage(x)
            maps.append(x)
        maps[-1] = self.last(x)
        return maps


def _options(config: ResidualConfig, stage: int, index: int) -> ResidualOptions:
    """The settings of the block that is `index` from the network's start."""
    return ResidualOptions(
        norm=make_norm(config.norm, config.norm_eps, config.norm_momentum),
        se=config.se,
        se_reduction=config.se_reduction,
        drop_path=config.drop_path * (index + 1) / sum(config.depths),
        drop_block=config.drop_block * (0.0, 0.0, 0.25, 1.0)[stage],
        drop_block_size=config.drop_block_size,
        drop_channel=config.drop_channel,
        ic_dropout=config.ic_dropout,
        shortcut_kernel=1 if stage == 0 else config.shortcut_kernel,
    )


def _block(
    config: ResidualConfig,
    stage: int,
    in_channels: int,
    stride: int,
    dilation: int,
    first_dilation: int,
    options: ResidualOptions,
) -> nn.Module:
    out_channels = config.out_channels[stage]
    if config.block == "basic":
        return BasicBlock(
            in_channels, out_channels, stride, dilation=dilation, first_dilation=first_dilation, options=options
        )
    # A group is group_width wide in the first stage and widens with the stages.
    width = STAGE_CHANNELS[stage] * config.group_width // 64 * config.groups
    return Bottleneck(
        in_channels,
        out_channels,
        stride,
        width=width,
        reduced=width // 2 if config.halve_reduction else None,
        groups=config.groups,
        stride_first=config.stride_first,
        # The block that would stride keeps the dilation before it, as in torchvision.
        dilation=first_dilation,
        options=options,
    )


def init_residual(module: nn.Module, config: ResidualConfig) -> None:
    """`init_convnet`, and zeros where `config.zero_init_residual` asks for them: the scale of the norm that ends a
    branch or, in IC networks, where none does, the last convolution."""
    init_convnet(module)
    if config.zero_init_residual:
        for block in module.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                part = block.last.get_submodule("norm" if config.ic_dropout is None else "conv")
                with torch.no_grad():
                    part.weight.zero_()  # type: ignore[operator, union-attr]


def blocks_of(config: ResidualConfig) -> Iterator[tuple[int, int, str]]:
    """(stage index, index in the stage, our module path) of every block, in order: what key maps iterate over."""
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            yield i, j, f"backbone.stages.{i}.{j}"


def layer_modules(config: ResidualConfig, se: str = "se") -> dict[str, str]:
    """Module paths of the stages in ours, as torchvision and all who started from it name them: `layer1.0.conv1`,
    `.bn1`, `.downsample.0`; `se` is the name of squeeze-and-excitation, whose convolutions are `fc1`, `fc2`."""
    paths = {}
    for i, j, ours in blocks_of(config):
        theirs = f"layer{i + 1}.{j}"
        for k in range(1, 3 if config.block == "basic" else 4):
            paths[f"{theirs}.conv{k}"] = f"{ours}.conv{k}.conv"
            paths[f"{theirs}.bn{k}"] = f"{ours}.conv{k}.norm"
        if j == 0:
            paths[f"{theirs}.downsample.0"] = f"{ours}.shortcut.conv"
            paths[f"{theirs}.downsample.1"] = f"{ours}.shortcut.norm"
        if config.se is not None:
            paths[f"{theirs}.{se}.fc1"] = f"{ours}.se.reduce"
            paths[f"{theirs}.{se}.fc2"] = f"{ours}.se.expand"
    return paths
