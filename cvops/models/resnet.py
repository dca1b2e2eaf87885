"""ResNet (He et al. 2016): its table, and the names torchvision, timm and detectron2 give to its layers. The network is
`backbone/resnet.py`, the blocks are `cvops.nn.BasicBlock` and `cvops.nn.Bottleneck`."""

from dataclasses import dataclass
from typing import Any

from cvops.models.backbone.resnet import ResidualConfig, ResidualNet, init_residual, layer_modules
from cvops.models.classifier import ImageClassifier
from cvops.models.config import Paper, Preprocess, by_timm, by_torchvision
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ResidualConfig):
    """The settings are those of every residual network. Bottlenecks stride in the 3x3 convolution, as those do whose
    weights are in use; `stride_first=True` is the original network, and detectron2's MSRA weights.
    `ic_dropout=0.05` makes an IC-ResNet."""


PAPER = Paper(
    title="Deep Residual Learning for Image Recognition",
    authors="He et al.",
    year=2016,
    url="https://arxiv.org/abs/1512.03385",
)

# Table 1 of the paper: kind of block, blocks of the stages conv2_x to conv5_x.
TABLE = {
    18: ResNetConfig(block="basic", depths=(2, 2, 2, 2)),
    34: ResNetConfig(block="basic", depths=(3, 4, 6, 3)),
    50: ResNetConfig(block="bottleneck", depths=(3, 4, 6, 3)),
    101: ResNetConfig(block="bottleneck", depths=(3, 4, 23, 3)),
    152: ResNetConfig(block="bottleneck", depths=(3, 8, 36, 3)),
}

_TORCHVISION_INPUT = Preprocess(size=224, resize=256, interpolation="bilinear")
_TIMM_INPUT = Preprocess(size=224, resize=238)

VARIANTS = {
    "resnet18": Variant(TABLE[18], _TORCHVISION_INPUT, 11_689_512, macs=1_814_073_344, accuracy=by_torchvision(69.758)),
    "resnet34": Variant(TABLE[34], _TORCHVISION_INPUT, 21_797_672, macs=3_663_761_408, accuracy=by_torchvision(73.314)),
    "resnet50": Variant(TABLE[50], _TORCHVISION_INPUT, 25_557_032, macs=4_089_184_256, accuracy=by_torchvision(76.130)),
    "resnet50_gn": Variant(
        ResNetConfig(depths=(3, 4, 6, 3), norm="group"),
        _TIMM_INPUT,
        25_557_032,
        macs=4_089_184_256,
        accuracy=by_timm(81.216, "a1h_in1k", size=288),
    ),
    "resnet101": Variant(
        TABLE[101], _TORCHVISION_INPUT, 44_549_160, macs=7_801_405_440, accuracy=by_torchvision(77.374)
    ),
    "resnet152": Variant(
        TABLE[152], _TORCHVISION_INPUT, 60_192_808, macs=11_513_626_624, accuracy=by_torchvision(78.312)
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_residual(config: ResidualConfig) -> ImageClassifier:
    """A residual network with fresh weights: [N, in_chans, H, W] -> [N, num_classes].

    >>> build_residual(ResNetConfig(block="basic", depths=(2, 2, 2, 2)))(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1000])
    """
    backbone = ResidualNet(config)
    head = ClassificationHead(config.num_features, config.num_classes, dropout=config.dropout)
    model = ImageClassifier(config, backbone, head)
    init_residual(model, config)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: ResidualConfig) -> dict[str, str]:
    """torchvision's names, which timm took over."""
    paths = {"conv1": "backbone.stem.conv", "bn1": "backbone.stem.norm"}
    return paths | layer_modules(config) | {"fc": "head.fc"}


def torchvision_convention(config: ResidualConfig) -> dict[str, Any] | str:
    if config.norm == "group":
        return "torchvision has batch norm only"
    return timm_convention(config)


def timm_convention(config: ResidualConfig) -> dict[str, Any] | str:
    if config.ic_dropout is not None:
        return "nobody publishes weights of IC networks"
    return {"stride_first": False}


def detectron2_modules(config: ResidualConfig) -> dict[str, str]:
    """detectron2: stages `res2` to `res5`, each norm inside its convolution. The classifier is `linear` in its networks
    and `stem.fc` in weights it converted from torchvision."""
    paths = {"stem.conv1": "backbone.stem.conv", "stem.conv1.norm": "backbone.stem.norm"}
    for theirs, ours in layer_modules(config).items():
        stage, block, layer = theirs.removeprefix("layer").split(".", 2)
        layer = layer.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        if layer.startswith("bn"):
            layer = f"conv{layer[2:]}.norm"
        paths[f"res{int(stage) + 1}.{block}.{layer}"] = ours
    return paths | {"linear": "head.fc", "stem.fc": "head.fc"}


def detectron2_convention(config: ResidualConfig) -> dict[str, Any] | str:
    # Its MSRA weights stride first, those from torchvision do not, and nothing in the file tells: the user's choice.
    return "nobody publishes weights of IC networks" if config.ic_dropout is not None else {}


KEY_MAPS = (
    KeyMap("torchvision", torchvision_modules, torchvision_convention),
    KeyMap("timm", torchvision_modules, timm_convention),
    KeyMap("detectron2", detectron2_modules, detectron2_convention),
)

register(
    Family(
        name="ResNet",
        task="classification",
        paper=PAPER,
        build=build_residual,
        variants=VARIANTS,
        key_maps=KEY_MAPS,
    )
)
