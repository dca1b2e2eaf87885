"""RetinaNet (Lin et al. 2017): its settings, the switches of the anchor ablation, and the names torchvision, detectron2
and mmdetection give to its layers. Losses and postprocessing are `dense_detector.py`, the head is `head/dense.py`."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from cvops.models.config import Paper, coco_by_torchvision
from cvops.models.dense_detector import DenseDetector, DenseDetectorConfig
from cvops.models.detection import (
    AnchorGrid,
    ATSSAssigner,
    DeltaCoder,
    IoUAssigner,
    anchor_shapes,
)
from cvops.models.detection.images import MSRA_INPUT
from cvops.models.detector import detector_variant
from cvops.models.head import DenseHead
from cvops.models.head.dense import mmdet_towers
from cvops.models.neck import FeaturePyramid
from cvops.models.neck.fpn import Extra, detectron2_fpn, mmdet_fpn, torchvision_fpn
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap
from cvops.nn import NormName, make_norm

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(DenseDetectorConfig):
    """What makes a RetinaNet.

    extra: P6 is made of `c5` (the paper, detectron2, mmdetection) or of `p5` (torchvision).
    head_norm: of the towers; None for a bias instead.
    torchvision_anchors: sizes and corners of anchors are whole pixels, and spacing follows the maps' sizes.
    scales, ratios: anchors of a cell: sides relative to four strides, and height / width.
    assigner: `iou` (0.5 / 0.4) or `atss`.
    centerness, level_scales: FCOS' branch, and its learned factor of each level's box codes.
    """

    channels: int = 256
    extra: Extra = "c5"
    head_convs: int = 4
    head_norm: NormName | None = None
    torchvision_anchors: bool = False
    scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    assigner: Literal["iou", "atss"] = "iou"
    centerness: bool = False
    level_scales: bool = False


PAPER = Paper(
    title="Focal Loss for Dense Object Detection",
    authors="Lin et al.",
    year=2017,
    url="https://arxiv.org/abs/1708.02002",
)

STRIDES = (8, 16, 32, 64, 128)
LEVELS = (2, 3, 4)  # C3 to C5 among the maps of a ResNet

_PAPER = RetinaNetConfig()
_TORCHVISION = replace(
    _PAPER,
    num_classes=91,  # COCO's category ids, of which 80 are in use
    extra="p5",
    torchvision_anchors=True,
    normaliser="image",
    max_detections=300,
)
# The comparison of Zhang et al. 2020 (arXiv:1912.02424, section 3): one anchor, and everything that FCOS has, each a
# switch of its own; and their assigner.
_ATSS = replace(
    _PAPER,
    extra="p5",
    scales=(2.0,),
    ratios=(1.0,),
    head_norm="group",
    box_loss="giou",
    in_box=True,
    centerness=True,
    level_scales=True,
    weigh_by_centerness=True,
    assigner="atss",
    iou_threshold=0.6,
)

VARIANTS = {
    "retinanet_resnet50_fpn": detector_variant(_TORCHVISION, 34_014_999, accuracy=coco_by_torchvision(36.4)),
    "retinanet_resnet50_fpn_v2": detector_variant(
        replace(_TORCHVISION, norm="batch", extra="c5", head_norm="group", box_loss="giou"),
        38_198_935,
        accuracy=coco_by_torchvision(41.5),
    ),
    "retinanet_resnet50_fpn_c5": detector_variant(_PAPER, 37_915_572),
    "retinanet_resnet50_fpn_atss": detector_variant(_ATSS, 32_242_202),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def anchor_grid(config: RetinaNetConfig) -> AnchorGrid:
    """Nine anchors a cell, of 4, 5.04 and 6.35 strides and three ratios (section 4 of the paper)."""
    sizes = [[4 * stride * scale for scale in config.scales] for stride in STRIDES]
    if config.torchvision_anchors:
        sizes = [[float(int(size)) for size in level] for level in sizes]
    return AnchorGrid(
        shapes=tuple(anchor_shapes(level, config.ratios) for level in sizes),
        strides=STRIDES,
        spacing="quotient" if config.torchvision_anchors else "stride",
        rounded=config.torchvision_anchors,
    )


def build_retinanet(config: RetinaNetConfig) -> DenseDetector:
    """A RetinaNet with fresh weights.

    >>> model = build_retinanet(RetinaNetConfig(num_classes=20)).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    grid = anchor_grid(config)
    backbone = config.build_backbone()
    head = DenseHead(
        config.channels,
        grid.per_cell[0],
        config.num_classes,
        convs=config.head_convs,
        norm=make_norm(config.head_norm) if config.head_norm is not None else None,
        centerness=config.centerness,
        levels=len(STRIDES) if config.level_scales else 0,
    )
    return DenseDetector(
        config,
        backbone,
        FeaturePyramid([backbone.feature_info.channels[i] for i in LEVELS], config.channels, config.extra),
        head,
        levels=LEVELS,
        grid=grid,
        assigner=ATSSAssigner() if config.assigner == "atss" else IoUAssigner(0.5, 0.4, rescue=True),
        coder=DeltaCoder(),
    )


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: RetinaNetConfig) -> dict[str, str]:
    """torchvision: units of the towers are (convolution, norm)."""
    paths = config.backbone_modules("torchvision", "backbone.body.")
    paths |= torchvision_fpn(len(LEVELS), config.extra)
    for theirs, ours in (("classification_head", "class_tower"), ("regression_head", "box_tower")):
        for i in range(config.head_convs):
            paths[f"head.{theirs}.conv.{i}.0"] = f"head.{ours}.{i}.conv"
            paths[f"head.{theirs}.conv.{i}.1"] = f"head.{ours}.{i}.norm"
            if config.head_norm is None:  # checkpoints from before torchvision 0.13 have the convolutions alone
                paths[f"head.{theirs}.conv.{2 * i}"] = f"head.{ours}.{i}.conv"
    return paths | {
        "head.classification_head.cls_logits": "head.classes",
        "head.regression_head.bbox_reg": "head.boxes",
    }


def torchvision_convention(config: RetinaNetConfig) -> dict[str, Any] | str:
    if not config.torchvision_anchors:
        return "torchvision's anchors are rounded, take a name that is torchvision's"
    # The weights it publishes were trained, and are run, with frozen norms without an epsilon.
    return {"norm_eps": 0.0} if config.norm == "frozen" else {}


def detectron2_modules(config: RetinaNetConfig) -> dict[str, str]:
    """detectron2: units of the towers are numbered through, activations included."""
    paths = config.backbone_modules("detectron2", "backbone.bottom_up.")
    paths |= detectron2_fpn(3, 5) | {
        "backbone.top_block.p6": "neck.extra.0",
        "backbone.top_block.p7": "neck.extra.1",
        "head.cls_score": "head.classes",
        "head.bbox_pred": "head.boxes",
    }
    step = 2 if config.head_norm is None else 3
    for theirs, ours in (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower")):
        for i in range(config.head_convs):
            paths[f"head.{theirs}.{step * i}"] = f"head.{ours}.{i}.conv"
            if config.head_norm is not None:
                paths[f"head.{theirs}.{step * i + 1}"] = f"head.{ours}.{i}.norm"
    return paths


def detectron2_convention(config: RetinaNetConfig) -> dict[str, Any] | str:
    if config.torchvision_anchors or config.extra != "c5":
        return "detectron2 has P6 of C5 and anchors that are not rounded"
    return {"stride_first": True, "transform": MSRA_INPUT}


def mmdet_modules(config: RetinaNetConfig) -> dict[str, str]:
    """mmdetection."""
    paths = config.backbone_modules("torchvision", "backbone.")
    paths |= mmdet_fpn(len(LEVELS), config.extra) | mmdet_towers(config.head_convs, len(STRIDES))
    prefix = "atss" if config.assigner == "atss" else "retina"
    return paths | {
        f"bbox_head.{prefix}_cls": "head.classes",
        f"bbox_head.{prefix}_reg": "head.boxes",
        "bbox_head.atss_centerness": "head.centerness",
    }


def mmdet_convention(config: RetinaNetConfig) -> dict[str, Any] | str:
    if config.torchvision_anchors:
        return "mmdetection's anchors are not rounded"
    return {"stride_first": False}


register(
    Family(
        name="RetinaNet",
        task="detection",
        paper=PAPER,
        build=build_retinanet,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", torchvision_modules, torchvision_convention),
            KeyMap("detectron2", detectron2_modules, detectron2_convention),
            KeyMap("mmdetection", mmdet_modules, mmdet_convention),
        ),
    )
)
