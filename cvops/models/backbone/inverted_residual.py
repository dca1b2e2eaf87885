"""The backbone of MobileNetV2, MobileNetV3 and EfficientNet: a strided 3x3 stem and stages of inverted residuals, one
stage for each row of the papers' tables, and the settings that the families share. The rows, and the names that others
give to the layers, are in the family files."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from cvops.models.config import ModelConfig
from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct, InvertedResidual, Padding, recompute, round_channels
from cvops.nn.blocks import SEStyle


@dataclass(frozen=True, kw_only=True)
class InvertedResidualConfig(ModelConfig):
    """What MobileNetV2, MobileNetV3 and EfficientNet can be told alike.

    width, depth: multiply the channels and the repeats of the table.
    padding, norm_eps, norm_momentum: the TensorFlow originals run with "same", 1e-3 and 0.01.
    output_stride: 8, 16 or 32; the stages beyond it are dilated instead of strided. As torch has it, the block that
        would stride keeps the dilation before it.
    checkpointing: keep only the stages' inputs for the backward pass, and compute the rest again there.
    dropout: before the classifier. drop_path: stochastic depth rate that a block after the last would have; it grows
        linearly from 0 over the blocks.
    """

    width: float = 1.0
    depth: float = 1.0
    padding: Padding = "symmetric"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    output_stride: int = 32
    checkpointing: bool = False
    dropout: float = 0.2
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {self.output_stride}")
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")

    @property
    def norm(self) -> partial[nn.BatchNorm2d]:
        """Makes the batch norm of a number of channels."""
        return partial(nn.BatchNorm2d, eps=self.norm_eps, momentum=self.norm_momentum)


@dataclass(frozen=True)
class Stage:
    """One row of the table: `repeats` blocks to `channels`, the first of them with `stride`. Without an `act` they have
    the network's."""

    expansion: float
    channels: int
    repeats: int
    stride: int
    kernel: int = 3
    se_ratio: float = 0.0
    se_style: SEStyle = "efficientnet"
    act: str | None = None


def scale_table(table: Sequence[Stage], config: InvertedResidualConfig, scale_ends: bool) -> tuple[Stage, ...]:
    """`table` with the config's width and depth; without `scale_ends` the first and the last stage keep their depth.

    >>> scale_table([Stage(1, 16, 1, 1)], InvertedResidualConfig(width=1.4, depth=1.2), scale_ends=True)[0].channels
    24
    """
    rows = []
    for i, row in enumerate(table):
        deepen = scale_ends or 0 < i < len(table) - 1
        rows.append(
            replace(
                row,
                channels=round_channels(row.channels * config.width),
                repeats=math.ceil(row.repeats * config.depth) if deepen else row.repeats,
            )
        )
    return tuple(rows)


class InvertedResidualNet(Backbone):
    """[N, in_chans, H, W] -> the last map of each resolution, at strides 2, 4, 8, 16 and 32 for the published tables,
    or less with `output_stride`.

    Parts: `stem` (3x3, stride 2), `stages` (a sequence of blocks for each row of the table, which is taken as it is),
    `last` (1x1 to `last_channels` that ends the last map, absent when None).

    >>> net = InvertedResidualNet(InvertedResidualConfig(), 32, [Stage(1, 16, 1, 1), Stage(6, 24, 2, 2)])
    >>> [list(f.shape) for f in net.features(torch.zeros(1, 3, 64, 64))], net.feature_info
    ([[1, 16, 32, 32], [1, 24, 16, 16]], FeatureInfo(channels=(16, 24), strides=(2, 4)))
    """

    input_keys = ("stem.conv.weight",)

    def __init__(
        self,
        config: InvertedResidualConfig,
        stem_channels: int,
        table: Sequence[Stage],
        act: str = "relu6",
        last_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.checkpointing = config.checkpointing
        padding, norm = config.padding, config.norm
        self.stem = ConvNormAct(config.in_chans, stem_channels, 3, 2, padding=padding, norm=norm, act=act)
        self.stages = nn.ModuleList()
        channels, index, total = stem_channels, 0, sum(row.repeats for row in table)
        stride, strides, dilation = 2, [], 1
        for row in table:
            step, before = row.stride, dilation
            if stride * step > config.output_stride:
                step, dilation = 1, dilation * step
            stride *= step
            strides.append(stride)
            blocks = []
            for i in range(row.repeats):
                blocks.append(
                    InvertedResidual(
                        channels,
                        row.channels,
                        row.kernel,
                        step if i == 0 else 1,
                        dilation=before if i == 0 else dilation,
                        expansion=row.expansion,
                        se_ratio=row.se_ratio,
                        se_style=row.se_style,
                        act=row.act or act,
                        norm=norm,
                        padding=padding,
                        drop_path=config.drop_path * index / total,
                    )
                )
                channels, index = row.channels, index + 1
            self.stages.append(nn.Sequential(*blocks))

        self.last: nn.Module = nn.Identity()
        if last_channels is not None:
            self.last = ConvNormAct(channels, last_channels, norm=norm, act=act)

        # A map is complete where the next stage shrinks it, or would without dilation, and at the end.
        self._emits = [row.stride > 1 for row in table] + [True]
        widths, strides = [stem_channels, *(row.channels for row in table)], [2, *strides]
        widths[-1] = last_channels or widths[-1]
        self.feature_info = FeatureInfo(
            channels=tuple(width for width, emit in zip(widths, self._emits, strict=True) if emit),
            strides=tuple(s for s, emit in zip(strides, self._emits, strict=True) if emit),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = [x] if self._emits[0] else []
        for stage, emit in zip(self.stages, self._emits[1:], strict=True):
            x = recompute(stage, x) if self.checkpointing else stage(x)
            if emit:
                maps.append(x)
        maps[-1] = self.last(maps[-1])
        return maps


def blocks_of(table: Sequence[Stage]) -> Iterator[tuple[int, int, Stage, str]]:
    """(stage index, index in the stage, row, our module path) of every block, in order: what key maps iterate over.

    >>> [path for *_, path in blocks_of([Stage(1, 16, 1, 1), Stage(6, 24, 2, 2)])]
    ['backbone.stages.0.0', 'backbone.stages.1.0', 'backbone.stages.1.1']
    """
    for i, row in enumerate(table):
        for j in range(row.repeats):
            yield i, j, row, f"backbone.stages.{i}.{j}"


def timm_modules(table: Sequence[Stage]) -> dict[str, str]:
    """timm's module paths in ours; it names the layers of both families alike."""
    paths = {"conv_stem": "backbone.stem.conv", "bn1": "backbone.stem.norm"}
    for i, j, row, ours in blocks_of(table):
        theirs = f"blocks.{i}.{j}"
        # Without an expansion timm numbers the norms one lower and calls the projection conv_pw.
        if row.expansion == 1:
            layers = [("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project")]
        else:
            layers = [("conv_pw", "bn1", "expand"), ("conv_dw", "bn2", "depthwise"), ("conv_pwl", "bn3", "project")]
        for conv, norm, unit in layers:
            paths[f"{theirs}.{conv}"] = f"{ours}.{unit}.conv"
            paths[f"{theirs}.{norm}"] = f"{ours}.{unit}.norm"
        if row.se_ratio > 0:
            paths[f"{theirs}.se.conv_reduce"] = f"{ours}.se.reduce"
            paths[f"{theirs}.se.conv_expand"] = f"{ours}.se.expand"
    return paths | {"conv_head": "head.conv.conv", "bn2": "head.conv.norm", "classifier": "head.fc"}
