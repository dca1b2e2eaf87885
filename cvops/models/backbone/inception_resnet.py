"""The backbone of Inception-ResNet: an unpadded stem and stages that begin with an Inception module and go on with
Inception residuals. Tables and the names that others give to the layers are in the family file."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct, Norm, recompute
from cvops.nn.inception import Branch, InceptionModule, InceptionResidual


@dataclass(frozen=True)
class InceptionStage:
    """A row of the table: the module that the stage begins with, its residual, how often, and its scale. `plain_end`
    adds one residual more, without scale and ReLU."""

    begin: tuple[Branch, ...]
    residual: tuple[Branch, ...]
    repeats: int
    scale: float
    plain_end: bool = False


class InceptionResNet(Backbone):
    """[N, in_chans, H, W] -> maps at strides 2, 4, 8, 16 and 32: two of the stem, one of each stage, the last after
    `tail`. Convolutions with stride have no padding, so maps are up to four pixels smaller than H / stride.

    Parts: `stem` (two halves), `stages`, `tail` (1x1). `drop_path` is the stochastic depth rate that the last residual
    would have; it grows linearly from 0. `checkpointing` recomputes each block in the backward pass.
    """

    input_keys = ("stem.0.0.conv.weight",)
    min_size = 75

    def __init__(
        self,
        in_chans: int,
        table: Sequence[InceptionStage],
        tail_channels: int,
        *,
        norm: Norm = nn.BatchNorm2d,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = nn.ModuleList(
            [
                nn.Sequential(
                    ConvNormAct(in_chans, 32, 3, 2, padding=0, norm=norm),
                    ConvNormAct(32, 32, 3, padding=0, norm=norm),
                    ConvNormAct(32, 64, 3, norm=norm),
                ),
                nn.Sequential(
                    nn.MaxPool2d(3, 2), ConvNormAct(64, 80, norm=norm), ConvNormAct(80, 192, 3, padding=0, norm=norm)
                ),
            ]
        )
        self.pool = nn.MaxPool2d(3, 2)
        self.stages = nn.ModuleList()
        channels, widths = 192, [64, 192]
        index, total = 0, sum(row.repeats + row.plain_end for row in table)
        for row in table:
            begin = InceptionModule(channels, row.begin, norm)
            stage = nn.Sequential(begin)
            channels = begin.out_channels
            for i in range(row.repeats + row.plain_end):
                plain = i == row.repeats
                stage.append(
                    InceptionResidual(
                        channels,
                        row.residual,
                        1.0 if plain else row.scale,
                        rectify=not plain,
                        norm=norm,
                        drop_path=drop_path * index / total,
                    )
                )
                index += 1
            self.stages.append(stage)
            widths.append(channels)
        self.tail = ConvNormAct(channels, tail_channels, norm=norm)
        self.feature_info = FeatureInfo(channels=(*widths[:-1], tail_channels), strides=(2, 4, 8, 16, 32))

    def features(self, x: Tensor) -> list[Tensor]:
        maps = []
        for half in self.stem:
            x = half(x)
            maps.append(x)
        x = self.pool(x)
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for block in stage:
                x = recompute(block, x) if self.checkpointing else block(x)
            maps.append(x)
        return [*maps[:-1], self.tail(x)]
