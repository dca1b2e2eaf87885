"""CSPDarknet-53, the backbone of YOLOv4: cross-stage partial stages of Darknet's residual blocks."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct, CSPStage, Norm

STEM = 32
CHANNELS = (64, 128, 256, 512, 1024)
DEPTHS = (1, 2, 8, 8, 4)


class CSPDarknet(Backbone):
    """[N, in_chans, H, W] -> maps at strides 2, 4, 8, 16 and 32, one a stage (Bochkovskiy et al. 2020,
    arXiv:2004.10934, section 3.4). The ways of the first stage are as wide as it is.

    Parts: `stem` (3x3), `stages`.

    >>> net = CSPDarknet(stem=8, channels=(8, 16), depths=(1, 2))
    >>> [list(f.shape) for f in net.features(torch.zeros(1, 3, 32, 48))]
    [[1, 8, 16, 24], [1, 16, 8, 12]]
    """

    input_keys = ("stem.conv.weight",)

    def __init__(
        self,
        in_chans: int = 3,
        *,
        stem: int = STEM,
        channels: Sequence[int] = CHANNELS,
        depths: Sequence[int] = DEPTHS,
        act: str = "mish",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if len(channels) != len(depths):
            raise ValueError(f"channels and depths must be one for each stage, got {channels} and {depths}")
        self.feature_info = FeatureInfo(tuple(channels), tuple(2 << i for i in range(len(channels))))
        self.stem = ConvNormAct(in_chans, stem, 3, norm=norm, act=act)
        self.stages = nn.ModuleList(
            CSPStage(before, after, depth, whole=i == 0, act=act, norm=norm)
            for i, ((before, after), depth) in enumerate(zip(pairwise((stem, *channels)), depths, strict=True))
        )

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
