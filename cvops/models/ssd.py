"""SSD (Liu et al. 2016) and SSDLite (Sandler et al. 2018): their settings, assembly, losses and postprocessing, and the
names torchvision and mmdetection give to their layers. The parts are `backbone/vgg.py`, `neck/extra.py`,
`head/ssd.py`."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cvops.models.backbone.vgg import BLOCKS, VGG16SSD
from cvops.models.config import IMAGENET_MEAN, IMAGENET_STD, Accuracy, Paper, coco_by_torchvision
from cvops.models.detection import (
    AnchorGrid,
    DeltaCoder,
    DenseOutput,
    Detections,
    ImageBatch,
    ImageTransform,
    IoUAssigner,
    box_loss,
    clip_boxes,
    flatten_map,
)
from cvops.models.detection.assigners import take
from cvops.models.detection.hard_negatives import hard_negative_loss
from cvops.models.detector import BackboneConfig, Detector, Losses, detector_variant
from cvops.models.head import SSDHead
from cvops.models.model import Backbone
from cvops.models.neck import ExtraLayer, ExtraLayers
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap
from cvops.nn import NormName, init_glorot, make_norm

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SSDConfig(BackboneConfig):
    """What makes an SSD.

    backbone: `vgg16`, which is SSD's own, or a classification model of the zoo, whose maps `levels` are taken.
    norm, norm_eps, norm_momentum: of extra layers and, in SSDLite, of the head; None for biases instead.
    widen: a 1x1 convolution on the backbone's last map, to so many channels.
    extra: the layers that make the smaller maps. lite: they and the head are depthwise separable.
    strides, sizes, ratios: for each level pixels between anchors, their side in pixels, and the ratios beside 1 of
        their sides; a level has one square more, of the geometric mean of its size and the next one.
    limit: no side of an anchor is longer, pixels.
    background: its logit is the `first` (torchvision) or the `last` (mmdetection).
    candidates: so many of a class enter NMS.
    negatives: backgrounds for each positive in the loss of classes.
    """

    backbone: str = "vgg16"
    norm: NormName | None = None
    norm_momentum: float = 0.1
    levels: tuple[int, ...] = (0, 1)
    widen: int | None = None
    extra: tuple[ExtraLayer, ...] = ()
    lite: bool = False
    strides: tuple[int, ...] = ()
    sizes: tuple[float, ...] = ()
    ratios: tuple[tuple[float, ...], ...] = ()
    limit: float = math.inf
    background: Literal["first", "last"] = "first"
    candidates: int = 400
    negatives: float = 3.0
    score_threshold: float = 0.01
    iou_threshold: float = 0.45
    max_detections: int = 200

    @property
    def backbone_settings(self) -> dict[str, Any]:
        if self.norm is None:
            return {}
        return {"norm_eps": self.norm_eps, "norm_momentum": self.norm_momentum}


PAPER = Paper(
    title="SSD: Single Shot MultiBox Detector",
    authors="Liu et al.",
    year=2016,
    url="https://arxiv.org/abs/1512.02325",
)
LITE_PAPER = Paper(
    title="MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    authors="Sandler et al.",
    year=2018,
    url="https://arxiv.org/abs/1801.04381",
)

# Sizes of COCO's models in the authors' code, as shares of 300 pixels.
SHARES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
_VGG = SSDConfig(
    num_classes=90,  # COCO's category ids less 1, of which 80 are in use
    transform=ImageTransform("stretch", (300, 300), divisor=1, mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3),
    extra=(
        ExtraLayer(256, 512),
        ExtraLayer(128, 256),
        ExtraLayer(128, 256, stride=1, padding=0),
        ExtraLayer(128, 256, stride=1, padding=0),
    ),
    strides=(8, 16, 32, 64, 100, 300),
    sizes=tuple(share * 300 for share in SHARES),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    limit=300,
)
_MOBILE = SSDConfig(
    num_classes=80,
    transform=ImageTransform("stretch", (300, 300), divisor=1, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    backbone="mobilenetv2_100",
    norm="batch",
    norm_eps=1e-3,
    norm_momentum=0.03,
    levels=(3, 4),
    widen=1280,
    extra=(ExtraLayer(256, 512), ExtraLayer(128, 256), ExtraLayer(128, 256), ExtraLayer(64, 128)),
    strides=(16, 30, 60, 100, 150, 300),
    sizes=tuple(share * 300 for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)),  # of TensorFlow's model
    ratios=((2, 3),) * 6,
    background="last",
)
_LITE = replace(
    _MOBILE,
    transform=replace(_MOBILE.transform, size=(320, 320)),
    lite=True,
    strides=(16, 32, 64, 107, 160, 320),
    sizes=(48, 100, 150, 202, 253, 304, 320),
    score_threshold=0.02,
)

VARIANTS = {
    "ssd300_vgg16": detector_variant(_VGG, 35_641_826, accuracy=coco_by_torchvision(25.1)),
    "ssd300_mobilenetv2": detector_variant(_MOBILE, 16_119_476),
}
_MMDETECTION = Accuracy(
    21.3, "mmdetection", "https://github.com/open-mmlab/mmdetection/blob/main/configs/ssd/metafile.yml", metric="AP"
)
LITE_VARIANTS = {"ssdlite320_mobilenetv2": detector_variant(_LITE, 4_228_788, accuracy=_MMDETECTION)}

# --- assembly ---------------------------------------------------------------------------------------------------------


class SSD(Detector[DenseOutput]):
    """A single-shot detector. Parts: `backbone`, `neck`, `head`; `grid`, `assigner` and `coder` hold no weights. The
    logits of `network` have a class more than there are: the background."""

    config: SSDConfig

    def __init__(
        self, config: SSDConfig, backbone: Backbone, neck: ExtraLayers, head: SSDHead, grid: AnchorGrid
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.neck, self.head, self.grid = backbone, neck, head, grid
        self.assigner = IoUAssigner(0.5, 0.5, force=True)
        self.coder = DeltaCoder((10.0, 10.0, 5.0, 5.0))

    def network(self, pixels: Tensor) -> DenseOutput:
        maps = self.backbone.features(pixels)
        output: DenseOutput = self.head(self.neck([maps[i] for i in self.config.levels]))
        return output

    def losses(self, raw: DenseOutput, batch: ImageBatch) -> Losses:
        anchors = self.grid.over(raw.codes, batch.shape)
        boxes, labels, valid = batch.truth
        index = self.assigner(anchors, boxes, valid)
        positive = index >= 0
        count = positive.sum(dtype=boxes.dtype).clamp(min=1)
        wanted = torch.where(positive, take(labels, index), self.config.num_classes)
        classes = hard_negative_loss(self._logits(raw), wanted, self.config.num_classes, self.config.negatives)

        image, anchor = positive.nonzero(as_tuple=True)
        codes = torch.cat([flatten_map(m, 4) for m in raw.codes], 1)[image, anchor]
        weight = (1 / count).expand(len(codes))
        truth = take(boxes, index)[image, anchor]
        return {
            "classes": classes / count,
            "boxes": box_loss("smooth_l1", codes, truth, anchors.boxes[anchor], self.coder, weight),
        }

    def postprocess(self, raw: DenseOutput, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        anchors = self.grid.over(raw.codes, image).boxes
        codes = torch.cat([flatten_map(m, 4) for m in raw.codes], 1).to(anchors.dtype)
        boxes = clip_boxes(self.coder.decode(codes, anchors), sizes)
        scores = self._logits(raw).to(anchors.dtype).softmax(2)[..., :-1].transpose(1, 2)  # [B, C, N]
        scores = torch.where(scores > config.score_threshold, scores, 0)
        best, which = scores.topk(min(config.candidates, scores.shape[2]), dim=2)
        labels = torch.arange(scores.shape[1], device=scores.device)[:, None].expand_as(which)
        boxes = boxes.gather(1, which.flatten(1)[:, :, None].expand(-1, -1, 4))
        return self.suppress(boxes, best.flatten(1), labels.flatten(1))

    def _logits(self, raw: DenseOutput) -> Tensor:
        """[B, N, num_classes + 1], the background last."""
        logits = torch.cat([flatten_map(m, self.config.num_classes + 1) for m in raw.classes], 1)
        return logits.roll(-1, 2) if self.config.background == "first" else logits


def build_ssd(config: SSDConfig) -> SSD:
    """An SSD with fresh weights.

    >>> model = build_ssd(replace(LITE_VARIANTS["ssdlite320_mobilenetv2"].config, num_classes=2)).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    backbone = VGG16SSD(config.in_chans) if config.backbone == "vgg16" else config.build_backbone()
    channels = [backbone.feature_info.channels[i] for i in config.levels]
    norm = make_norm(config.norm, config.norm_eps, config.norm_momentum) if config.norm is not None else None
    neck = ExtraLayers(
        channels[-1],
        config.extra,
        widen=config.widen,
        separable=config.lite,
        norm=norm,
        act="relu" if norm is None else "relu6",
    )
    grid = default_boxes(config)
    head = SSDHead(
        (*channels[:-1], *neck.out_channels), grid.per_cell, config.num_classes, norm=norm if config.lite else None
    )
    model = SSD(config, backbone, neck, head, grid)
    for part in (neck, head) if config.backbone != "vgg16" else (model,):
        init_glorot(part)
    return model


def default_boxes(config: SSDConfig) -> AnchorGrid:
    """Section 2.2 of the paper: a square of the level's size, one of the geometric mean with the next, and two boxes,
    wide and high, for each ratio."""
    shapes = []
    for size, following, ratios in zip(config.sizes, config.sizes[1:], config.ratios, strict=False):
        between = math.sqrt(size * following)
        level = [(size, size), (between, between)]
        for ratio in ratios:
            longer, shorter = size * math.sqrt(ratio), size / math.sqrt(ratio)
            level += [(longer, shorter), (shorter, longer)]
        shapes.append(tuple((min(w, config.limit), min(h, config.limit)) for w, h in level))
    return AnchorGrid(shapes=tuple(shapes), strides=config.strides, offset=0.5)


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: SSDConfig) -> dict[str, str]:
    """torchvision: VGG's layers numbered through up to conv4_3, the rest in the first of its extra layers."""
    paths = {"backbone": "backbone"}  # scale_weight
    number = 0
    for i, (count, _) in enumerate(BLOCKS):
        for j in range(count):
            theirs = f"backbone.features.{number + 2 * j}" if i < 4 else f"backbone.extra.0.{1 + 2 * j}"
            paths[theirs] = f"backbone.blocks.{i}.{j}.conv"
        number += 2 * count + 1
    paths |= {"backbone.extra.0.7.1": "backbone.fc6.conv", "backbone.extra.0.7.3": "backbone.fc7.conv"}
    for i in range(len(config.extra)):
        paths |= {f"backbone.extra.{i + 1}.{2 * j}": f"neck.layers.{i}.{j}.conv" for j in range(2)}
    for i in range(len(config.strides)):
        paths[f"head.classification_head.module_list.{i}"] = f"head.classes.{i}"
        paths[f"head.regression_head.module_list.{i}"] = f"head.boxes.{i}"
    return paths


def torchvision_convention(config: SSDConfig) -> dict[str, Any] | str:
    if config.backbone != "vgg16":
        return "torchvision has SSD on VGG-16, and SSDLite on MobileNetV3 only"
    return {}


def mmdet_modules(config: SSDConfig) -> dict[str, str]:
    """mmdetection's SSDLite: the inverted residuals of a stage in a layer, each unit (conv, bn)."""
    paths = {}

    def unit(theirs: str, ours: str) -> None:
        paths[f"{theirs}.conv"] = f"{ours}.conv"
        paths[f"{theirs}.bn"] = f"{ours}.norm"

    unit("backbone.conv1", "backbone.stem")
    unit("backbone.conv2", "neck.widen")
    for i, repeats in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for j in range(repeats):
            theirs, ours = f"backbone.layer{i + 1}.{j}", f"backbone.stages.{i}.{j}"
            unit(f"{theirs}.expand_conv", f"{ours}.expand")
            unit(f"{theirs}.depthwise_conv", f"{ours}.depthwise")
            unit(f"{theirs}.linear_conv", f"{ours}.project")
    for i in range(len(config.extra)):
        unit(f"neck.extra_layers.{i}.0", f"neck.layers.{i}.0")
        unit(f"neck.extra_layers.{i}.1.depthwise_conv", f"neck.layers.{i}.1")
        unit(f"neck.extra_layers.{i}.1.pointwise_conv", f"neck.layers.{i}.2")
    for i in range(len(config.strides)):
        for theirs, ours in (("cls_convs", "classes"), ("reg_convs", "boxes")):
            unit(f"bbox_head.{theirs}.{i}.0", f"head.{ours}.{i}.0")
            paths[f"bbox_head.{theirs}.{i}.1"] = f"head.{ours}.{i}.1"
    return paths


def mmdet_convention(config: SSDConfig) -> dict[str, Any] | str:
    return {} if config.lite else "mmdetection's MobileNetV2 carries SSDLite, take ssdlite320_mobilenetv2"


for _name, _paper, _variants in (("SSD", PAPER, VARIANTS), ("SSDLite", LITE_PAPER, LITE_VARIANTS)):
    register(
        Family(
            name=_name,
            task="detection",
            paper=_paper,
            build=build_ssd,
            variants=_variants,
            key_maps=(
                KeyMap("torchvision", torchvision_modules, torchvision_convention),
                KeyMap("mmdetection", mmdet_modules, mmdet_convention),
            ),
        )
    )
