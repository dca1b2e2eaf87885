"""MobileNetV3 (Howard et al. 2019): its two tables, its published widths, and the names torchvision and timm give to
its layers. Stem and stages are `backbone/inverted_residual.py`, the block is `cvops.nn.InvertedResidual`."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from cvops.models.backbone.inverted_residual import (
    InvertedResidualConfig,
    InvertedResidualNet,
    Stage,
    blocks_of,
    scale_table,
)
from cvops.models.classifier import ImageClassifier
from cvops.models.config import Paper, Preprocess, by_torchvision
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap
from cvops.nn import init_convnet, round_channels

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MobileNetV3Config(InvertedResidualConfig):
    """table: `large` or `small`, tables 1 and 2 of the paper."""

    table: Literal["large", "small"] = "large"
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table not in TABLES:
            raise ValueError(f"table must be one of {', '.join(map(repr, TABLES))}, got {self.table!r}")


PAPER = Paper(
    title="Searching for MobileNetV3",
    authors="Howard et al.",
    year=2019,
    url="https://arxiv.org/abs/1905.02244",
)


def _row(expansion: float, channels: int, repeats: int, stride: int, kernel: int, se: bool, act: str) -> Stage:
    return Stage(expansion, channels, repeats, stride, kernel, 0.25 if se else 0.0, "mobilenet_v3", act)


# Rows of the paper's tables, equal ones together: t, c, n, s, k, SE, NL. Expansions are given relative to the input.
TABLES = {
    "large": (
        _row(1, 16, 1, 1, 3, False, "relu"),
        _row(4, 24, 1, 2, 3, False, "relu"),
        _row(3, 24, 1, 1, 3, False, "relu"),
        _row(3, 40, 3, 2, 5, True, "relu"),
        _row(6, 80, 1, 2, 3, False, "hard_swish"),
        _row(2.5, 80, 1, 1, 3, False, "hard_swish"),
        _row(2.3, 80, 2, 1, 3, False, "hard_swish"),
        _row(6, 112, 2, 1, 3, True, "hard_swish"),
        _row(6, 160, 3, 2, 5, True, "hard_swish"),
    ),
    "small": (
        _row(1, 16, 1, 2, 3, True, "relu"),
        _row(4.5, 24, 1, 2, 3, False, "relu"),
        _row(3.67, 24, 1, 1, 3, False, "relu"),
        _row(4, 40, 1, 2, 5, True, "hard_swish"),
        _row(6, 40, 2, 1, 5, True, "hard_swish"),
        _row(3, 48, 2, 1, 5, True, "hard_swish"),
        _row(6, 96, 3, 2, 5, True, "hard_swish"),
    ),
}
STEM_CHANNELS = 16
HIDDEN_CHANNELS = {"large": 1280, "small": 1024}
LAST_EXPANSION = 6  # of the last 1x1 convolution

_INPUT = Preprocess(size=224, resize=256, interpolation="bilinear")
_TIMM_INPUT = Preprocess(size=224, resize=256)

VARIANTS = {
    "mobilenetv3_large_075": Variant(MobileNetV3Config(width=0.75), _INPUT, 3_993_528, macs=154_560_624),
    "mobilenetv3_large_100": Variant(
        MobileNetV3Config(),
        _INPUT,
        5_483_032,
        macs=216_589_760,
        aliases=("mobilenet_v3_large",),
        accuracy=by_torchvision(74.042),
    ),
    "mobilenetv3_small_075": Variant(
        MobileNetV3Config(table="small", width=0.75), _TIMM_INPUT, 2_041_872, macs=43_399_344
    ),
    "mobilenetv3_small_100": Variant(
        MobileNetV3Config(table="small"),
        _INPUT,
        2_542_856,
        macs=56_510_400,
        aliases=("mobilenet_v3_small",),
        accuracy=by_torchvision(67.668),
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def scaled_table(config: MobileNetV3Config) -> tuple[Stage, ...]:
    return scale_table(TABLES[config.table], config, scale_ends=True)


def build_backbone(config: MobileNetV3Config, last_expansion: int = LAST_EXPANSION) -> InvertedResidualNet:
    """Stem, stages and last convolution, with fresh weights."""
    # As in timm, the narrowest networks keep the stem.
    stem = round_channels(STEM_CHANNELS * config.width) if config.width >= 0.75 else STEM_CHANNELS
    table = scaled_table(config)
    return InvertedResidualNet(config, stem, table, "hard_swish", last_channels=last_expansion * table[-1].channels)


def build_mobilenet_v3(config: MobileNetV3Config) -> ImageClassifier:
    """A MobileNetV3 with fresh weights: [N, in_chans, H, W] -> [N, num_classes].

    >>> build_mobilenet_v3(MobileNetV3Config(table="small"))(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 1000])
    """
    backbone = build_backbone(config)
    head = ClassificationHead(
        backbone.feature_info.channels[-1],
        config.num_classes,
        hidden_channels=HIDDEN_CHANNELS[config.table],
        dropout=config.dropout,
        act="hard_swish",
    )
    model = ImageClassifier(config, backbone, head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def _blocks(config: MobileNetV3Config) -> Iterator[tuple[int, int, Stage, str]]:
    """(stage in timm's count, index in it, row, our module path): its stages are the rows of one width."""
    table = TABLES[config.table]
    groups = [list(group) for _, group in groupby(blocks_of(table), key=lambda block: block[2].channels)]
    for i, group in enumerate(groups):
        for j, (_, _, row, ours) in enumerate(group):
            yield i, j, row, ours


def _units(row: Stage) -> list[str]:
    return ["depthwise", "project"] if row.expansion == 1 else ["expand", "depthwise", "project"]


def torchvision_modules(config: MobileNetV3Config) -> dict[str, str]:
    """torchvision numbers stem, blocks and last convolution in one sequence, and the layers inside a block."""
    paths = {"features.0.0": "backbone.stem.conv", "features.0.1": "backbone.stem.norm"}
    index = 0
    for index, (_, _, row, ours) in enumerate(_blocks(config), start=1):
        number = 0
        for unit in _units(row):
            theirs = f"features.{index}.block.{number}"
            if unit == "project" and row.se_ratio > 0:
                paths |= {f"{theirs}.fc1": f"{ours}.se.reduce", f"{theirs}.fc2": f"{ours}.se.expand"}
                number += 1
                theirs = f"features.{index}.block.{number}"
            paths |= {f"{theirs}.0": f"{ours}.{unit}.conv", f"{theirs}.1": f"{ours}.{unit}.norm"}
            number += 1
    last = f"features.{index + 1}"
    return paths | {
        f"{last}.0": "backbone.last.conv",
        f"{last}.1": "backbone.last.norm",
        "classifier.0": "head.hidden.0",
        "classifier.3": "head.fc",
    }


def timm_modules(config: MobileNetV3Config) -> dict[str, str]:
    """timm: the last convolution is a stage of its own, and the linear layer before the classifier `conv_head`."""
    paths = {"conv_stem": "backbone.stem.conv", "bn1": "backbone.stem.norm"}
    stage = 0
    for stage, j, row, ours in _blocks(config):
        theirs = f"blocks.{stage}.{j}"
        names = ("conv_dw", "conv_pw") if row.expansion == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        for i, (name, unit) in enumerate(zip(names, _units(row), strict=True), start=1):
            paths |= {f"{theirs}.{name}": f"{ours}.{unit}.conv", f"{theirs}.bn{i}": f"{ours}.{unit}.norm"}
        if row.se_ratio > 0:
            paths |= {f"{theirs}.se.conv_reduce": f"{ours}.se.reduce", f"{theirs}.se.conv_expand": f"{ours}.se.expand"}
    last = f"blocks.{stage + 1}.0"
    return paths | {
        f"{last}.conv": "backbone.last.conv",
        f"{last}.bn1": "backbone.last.norm",
        "conv_head": "head.hidden.0",
        "classifier": "head.fc",
    }


def timm_convention(config: MobileNetV3Config) -> dict[str, Any]:
    return {"padding": "symmetric", "norm_eps": 1e-5}


def torchvision_convention(config: MobileNetV3Config) -> dict[str, Any] | str:
    if config.width != 1:
        return "torchvision rounds the expansions of other widths otherwise"
    return {"padding": "symmetric", "norm_eps": 1e-3}


register(
    Family(
        name="MobileNetV3",
        task="classification",
        paper=PAPER,
        build=build_mobilenet_v3,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", torchvision_modules, torchvision_convention),
            KeyMap("timm", timm_modules, timm_convention),
        ),
    )
)
