"""FCOS (Tian et al. 2019): its settings, and the names torchvision and mmdetection give to its layers. Losses and
postprocessing are `dense_detector.py`, the head is `head/dense.py`."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from cvops.models.config import Paper, coco_by_torchvision
from cvops.models.dense_detector import DenseDetector, DenseDetectorConfig
from cvops.models.detection import AnchorGrid, ATSSAssigner, CenterAssigner, DistanceCoder
from cvops.models.detector import detector_variant
from cvops.models.head import DenseHead
from cvops.models.head.dense import mmdet_towers
from cvops.models.neck import FeaturePyramid
from cvops.models.neck.fpn import Extra, mmdet_fpn, torchvision_fpn
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap
from cvops.nn import make_norm

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FCOSConfig(DenseDetectorConfig):
    """What makes an FCOS.

    extra: P6 is made of `p5` (the paper's final networks, torchvision, mmdetection) or of `c5`.
    code: of the distances, in strides: `relu` (torchvision) or `exp` (the paper).
    conv_bias: of the towers' convolutions, beside their norms (torchvision).
    level_scales: a learned factor of each level's distances before that.
    offset: of the points, in strides: 0.5 (the paper) or 0 (torchvision).
    assigner: `center` (targets' middles, by size; `radius` in strides, None for whole targets) or `atss`.
    """

    channels: int = 256
    extra: Extra = "p5"
    head_convs: int = 4
    code: Literal["relu", "exp"] = "exp"
    conv_bias: bool = False
    level_scales: bool = True
    offset: float = 0.5
    torchvision_spacing: bool = False
    assigner: Literal["center", "atss"] = "center"
    radius: float | None = 1.5
    box_loss: Literal["iou", "giou", "diou", "ciou"] = "giou"
    iou_threshold: float = 0.6


PAPER = Paper(
    title="FCOS: Fully Convolutional One-Stage Object Detection",
    authors="Tian et al.",
    year=2019,
    url="https://arxiv.org/abs/1904.01355",
)

STRIDES = (8, 16, 32, 64, 128)
LEVELS = (2, 3, 4)  # C3 to C5 among the maps of a ResNet

_PAPER = FCOSConfig()
_TORCHVISION = replace(
    _PAPER,
    num_classes=91,  # COCO's category ids, of which 80 are in use
    code="relu",
    conv_bias=True,
    level_scales=False,
    offset=0.0,
    torchvision_spacing=True,
    score_threshold=0.2,
)

VARIANTS = {
    "fcos_resnet50_fpn": detector_variant(_TORCHVISION, 32_269_600, accuracy=coco_by_torchvision(39.2)),
    "fcos_resnet50_fpn_exp": detector_variant(_PAPER, 32_242_202),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_fcos(config: FCOSConfig) -> DenseDetector:
    """An FCOS with fresh weights.

    >>> model = build_fcos(FCOSConfig(num_classes=20)).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    backbone = config.build_backbone()
    head = DenseHead(
        config.channels,
        1,
        config.num_classes,
        convs=config.head_convs,
        norm=make_norm("group"),
        conv_bias=config.conv_bias,
        centerness=True,
        levels=len(STRIDES) if config.level_scales else 0,
        code=config.code,
    )
    return DenseDetector(
        config,
        backbone,
        FeaturePyramid([backbone.feature_info.channels[i] for i in LEVELS], config.channels, config.extra),
        head,
        levels=LEVELS,
        grid=AnchorGrid(
            shapes=tuple(((float(s), float(s)),) for s in STRIDES),
            strides=STRIDES,
            offset=config.offset,
            spacing="quotient" if config.torchvision_spacing else "stride",
        ),
        assigner=ATSSAssigner() if config.assigner == "atss" else CenterAssigner(config.radius),
        coder=DistanceCoder(),
    )


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: FCOSConfig) -> dict[str, str]:
    """torchvision: units of the towers are numbered through, activations included."""
    paths = config.backbone_modules("torchvision", "backbone.body.")
    paths |= torchvision_fpn(len(LEVELS), config.extra)
    for theirs, ours in (("classification_head", "class_tower"), ("regression_head", "box_tower")):
        for i in range(config.head_convs):
            paths[f"head.{theirs}.conv.{3 * i}"] = f"head.{ours}.{i}.conv"
            paths[f"head.{theirs}.conv.{3 * i + 1}"] = f"head.{ours}.{i}.norm"
    return paths | {
        "head.classification_head.cls_logits": "head.classes",
        "head.regression_head.bbox_reg": "head.boxes",
        "head.regression_head.bbox_ctrness": "head.centerness",
    }


def torchvision_convention(config: FCOSConfig) -> dict[str, Any] | str:
    if config.level_scales:
        return "torchvision's FCOS has no scales of levels, take the name without _exp"
    return {}


def mmdet_modules(config: FCOSConfig) -> dict[str, str]:
    """mmdetection."""
    paths = config.backbone_modules("torchvision", "backbone.")
    paths |= mmdet_fpn(len(LEVELS), config.extra) | mmdet_towers(config.head_convs, len(STRIDES))
    return paths | {
        "bbox_head.conv_cls": "head.classes",
        "bbox_head.conv_reg": "head.boxes",
        "bbox_head.conv_centerness": "head.centerness",
    }


def mmdet_convention(config: FCOSConfig) -> dict[str, Any] | str:
    return {} if config.level_scales else "mmdetection's FCOS has scales of levels, take the name with _exp"


register(
    Family(
        name="FCOS",
        task="detection",
        paper=PAPER,
        build=build_fcos,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", torchvision_modules, torchvision_convention),
            KeyMap("mmdetection", mmdet_modules, mmdet_convention),
        ),
    )
)
