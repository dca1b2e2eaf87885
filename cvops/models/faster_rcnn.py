"""Faster R-CNN (Ren et al. 2015) with a feature pyramid: its settings, and the names torchvision, detectron2 and
mmdetection give to its layers. Backbone, pyramid and anchors are those of `rpn.py`, losses and postprocessing are
`roi_detector.py`, the head is `head/box.py`."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from cvops.models import rpn
from cvops.models.config import coco_by_torchvision
from cvops.models.detector import detector_variant
from cvops.models.head import BoxHead, RegionPool, RPNHead
from cvops.models.registry import Family, register
from cvops.models.roi_detector import RoIDetector, RoIDetectorConfig
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(rpn.PyramidConfig, RoIDetectorConfig):
    """What makes a Faster R-CNN, besides backbone, pyramid and proposals.

    aligned, sampling_ratio: of RoIAlign. torchvision has False and 2, detectron2 and mmdetection True and 0.
    background: the logit of the background is the `first` or the `last`.
    """

    aligned: bool = True
    sampling_ratio: int = 0
    background: Literal["first", "last"] = "last"


POOL_SIZE = 7

_LAST = FasterRCNNConfig()
_TORCHVISION = replace(
    _LAST,
    num_classes=90,  # COCO's category ids less 1, of which 80 are in use
    torchvision_anchors=True,
    aligned=False,
    sampling_ratio=2,
    background="first",
)

VARIANTS = {
    "fasterrcnn_resnet50_fpn": detector_variant(_TORCHVISION, 41_755_286, accuracy=coco_by_torchvision(37.0)),
    "fasterrcnn_resnet50_fpn_aligned": detector_variant(_LAST, 41_699_936),
    "fasterrcnn_mobilenetv2_fpn": detector_variant(replace(_LAST, backbone="mobilenetv2_100", norm=None), 19_194_528),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_faster_rcnn(config: FasterRCNNConfig) -> RoIDetector:
    """A Faster R-CNN with fresh weights.

    >>> model = build_faster_rcnn(FasterRCNNConfig(num_classes=20)).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    backbone = config.build_backbone()
    scales = tuple(1 / stride for stride in rpn.STRIDES[: len(config.levels)])
    pool = RegionPool(POOL_SIZE, scales, config.sampling_ratio, config.aligned)
    return RoIDetector(
        config,
        backbone,
        rpn.pyramid_of(config, backbone),
        RPNHead(config.channels, len(rpn.RATIOS)),
        BoxHead(config.channels, config.num_classes, pool, background=config.background),
        levels=config.levels,
        grid=rpn.anchor_grid(config),
    )


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: FasterRCNNConfig) -> dict[str, str]:
    """torchvision."""
    return rpn.torchvision_modules(config) | {
        "roi_heads.box_head.fc6": "head.fc1",
        "roi_heads.box_head.fc7": "head.fc2",
        "roi_heads.box_predictor.cls_score": "head.classes",
        "roi_heads.box_predictor.bbox_pred": "head.boxes",
    }


def torchvision_convention(config: FasterRCNNConfig) -> dict[str, Any] | str:
    if config.background != "first":
        return "torchvision's background is the first class, take a name that is torchvision's"
    # The weights it publishes were trained, and are run, with frozen norms without an epsilon.
    return {"norm_eps": 0.0} if config.norm == "frozen" else {}


def detectron2_modules(config: FasterRCNNConfig) -> dict[str, str]:
    """detectron2."""
    return rpn.detectron2_modules(config) | {
        "roi_heads.box_head.fc1": "head.fc1",
        "roi_heads.box_head.fc2": "head.fc2",
        "roi_heads.box_predictor.cls_score": "head.classes",
        "roi_heads.box_predictor.bbox_pred": "head.boxes",
    }


def detectron2_convention(config: FasterRCNNConfig) -> dict[str, Any] | str:
    if config.background != "last":
        return "detectron2's background is the last class, take the name with _aligned"
    return rpn.detectron2_convention(config)


def mmdet_modules(config: FasterRCNNConfig) -> dict[str, str]:
    """mmdetection."""
    return rpn.mmdet_modules(config) | {
        "roi_head.bbox_head.shared_fcs.0": "head.fc1",
        "roi_head.bbox_head.shared_fcs.1": "head.fc2",
        "roi_head.bbox_head.fc_cls": "head.classes",
        "roi_head.bbox_head.fc_reg": "head.boxes",
    }


def mmdet_convention(config: FasterRCNNConfig) -> dict[str, Any] | str:
    if config.background != "last":
        return "mmdetection's background is the last class, take the name with _aligned"
    return rpn.mmdet_convention(config)


register(
    Family(
        name="Faster R-CNN",
        task="detection",
        paper=rpn.PAPER,
        build=build_faster_rcnn,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", torchvision_modules, torchvision_convention),
            KeyMap("detectron2", detectron2_modules, detectron2_convention),
            KeyMap("mmdetection", mmdet_modules, mmdet_convention),
        ),
    )
)
