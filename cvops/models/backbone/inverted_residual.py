"""The backbone of MobileNetV2 and EfficientNet: a strided 3x3 stem and stages of inverted residuals, one stage for each
row of the papers' tables. The rows, and the names that others give to the layers, are in the family files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct, InvertedResidual, Norm, Padding


@dataclass(frozen=True)
class Stage:
    """One row of the table: `repeats` blocks to `channels`, the first of them with `stride`."""

    expansion: int
    channels: int
    repeats: int
    stride: int
    kernel: int = 3
    se_ratio: float = 0.0


class InvertedResidualNet(Backbone):
    """[N, in_chans, H, W] -> the last map of each resolution, at strides 2, 4, 8, 16 and 32 for the published tables.

    Parts: `stem` (3x3, stride 2), `stages` (a sequence of blocks for each row). `drop_path` is the stochastic depth
    rate that the last block would have; it grows linearly from 0 over the blocks.

    >>> net = InvertedResidualNet(3, 32, [Stage(1, 16, 1, 1), Stage(6, 24, 2, 2)])
    >>> [list(f.shape) for f in net.features(torch.zeros(1, 3, 64, 64))], net.feature_info
    ([[1, 16, 32, 32], [1, 24, 16, 16]], FeatureInfo(channels=(16, 24), strides=(2, 4)))
    """

    input_keys = ("stem.conv.weight",)

    def __init__(
        self,
        in_chans: int,
        stem_channels: int,
        table: Sequence[Stage],
        *,
        act: str = "relu6",
        norm: Norm = nn.BatchNorm2d,
        padding: Padding = "symmetric",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_chans, stem_channels, 3, 2, padding=padding, norm=norm, act=act)
        self.stages = nn.ModuleList()
        channels, index, total = stem_channels, 0, sum(row.repeats for row in table)
        for row in table:
            blocks = []
            for i in range(row.repeats):
                blocks.append(
                    InvertedResidual(
                        channels,
                        row.channels,
                        row.kernel,
                        row.stride if i == 0 else 1,
                        expansion=row.expansion,
                        se_ratio=row.se_ratio,
                        act=act,
                        norm=norm,
                        padding=padding,
                        drop_path=drop_path * index / total,
                    )
                )
                channels, index = row.channels, index + 1
            self.stages.append(nn.Sequential(*blocks))

        # A map is complete where the next stage shrinks it, or at the end.
        stride, strides = 2, []
        for row in table:
            stride *= row.stride
            strides.append(stride)
        self._emits = [a != b for a, b in zip(strides, [*strides[1:], None], strict=True)]
        self.feature_info = FeatureInfo(
            channels=tuple(row.channels for row, emit in zip(table, self._emits, strict=True) if emit),
            strides=tuple(s for s, emit in zip(strides, self._emits, strict=True) if emit),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage, emit in zip(self.stages, self._emits, strict=True):
            x = stage(x)
            if emit:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


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
