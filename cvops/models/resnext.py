"""ResNeXt (Xie et al. 2017): ResNet whose bottlenecks have grouped 3x3 convolutions. Cardinality and width here, the
assembly and the names that others give to the layers are ResNet's."""

from dataclasses import dataclass
from typing import Any

from cvops.models import resnet
from cvops.models.backbone.resnet import ResidualConfig
from cvops.models.config import Paper, Preprocess, by_timm, by_torchvision
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResNeXtConfig(ResidualConfig):
    """`groups` is the cardinality C, `group_width` the width d of a group in the first stage: "32x4d" is 32 and 4."""

    groups: int = 32
    group_width: int = 4


PAPER = Paper(
    title="Aggregated Residual Transformations for Deep Neural Networks",
    authors="Xie et al.",
    year=2017,
    url="https://arxiv.org/abs/1611.05431",
)

_R50, _R101 = resnet.TABLE[50].depths, resnet.TABLE[101].depths

VARIANTS = {
    "resnext50_32x4d": Variant(
        ResNeXtConfig(depths=_R50),
        Preprocess(size=224, resize=256, interpolation="bilinear"),
        25_028_904,
        macs=4_230_479_872,
        accuracy=by_torchvision(77.618),
    ),
    "resnext101_32x4d": Variant(
        ResNeXtConfig(depths=_R101),
        Preprocess(size=224, resize=256),
        44_177_704,
        macs=7_969_996_800,
        accuracy=by_timm(80.340, "gluon_in1k"),
    ),
    # Not in the paper: the width of the weakly supervised networks (Mahajan et al. 2018, arXiv:1805.00932).
    "resnext101_32x8d": Variant(
        ResNeXtConfig(depths=_R101, group_width=8),
        Preprocess(size=224, resize=256, interpolation="bilinear"),
        88_791_336,
        macs=16_414_015_488,
        accuracy=by_torchvision(79.312),
    ),
    "resnext101_64x4d": Variant(
        ResNeXtConfig(depths=_R101, groups=64),
        Preprocess(size=224, resize=232, interpolation="bilinear"),
        83_455_272,
        macs=15_460_270_080,
        accuracy=by_torchvision(83.246),
    ),
}

# --- assembly and key map ---------------------------------------------------------------------------------------------


def torchvision_convention(config: ResNeXtConfig) -> dict[str, Any] | str:
    if (config.depths, config.groups, config.group_width) == (_R101, 32, 4):
        return "torchvision has ResNeXt-101 as 32x8d and 64x4d only"
    return resnet.torchvision_convention(config)


register(
    Family(
        name="ResNeXt",
        task="classification",
        paper=PAPER,
        build=resnet.build_residual,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", resnet.torchvision_modules, torchvision_convention),
            KeyMap("timm", resnet.torchvision_modules, resnet.timm_convention),
        ),
    )
)
