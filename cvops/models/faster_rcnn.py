"""Faster R-CNN (Ren et al. 2015) with a feature pyramid: its settings, and the names torchvision, detectron2 and
mmdetection give to its layers. Losses and postprocessing are `roi_detector.py`; the parts are `head/rpn.py`,
`head/box.py`."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from cvops.models.config import Paper
from cvops.models.detection import AnchorGrid, anchor_shapes
from cvops.models.detection.images import MSRA_INPUT
from cvops.models.head import BoxHead, RPNHead
from cvops.models.neck import FeaturePyramid
from cvops.models.neck.fpn import detectron2_fpn, mmdet_fpn, torchvision_fpn
from cvops.models.registry import Family, Variant, backbone_modules, create_backbone, register
from cvops.models.roi_detector import RegionPool, RoIDetector, RoIDetectorConfig
from cvops.models.weights import KeyMap
from cvops.nn import NormName

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(RoIDetectorConfig):
    """What makes a Faster R-CNN.

    backbone, norm: a classification model of the zoo, and the normalisation in it; `norm_eps` of it. `levels` are its
        maps at strides 4 to 32.
    stride_first: bottlenecks stride in their first convolution (detectron2's MSRA weights).
    torchvision_anchors: corners of anchors are whole pixels, and spacing follows the maps' sizes.
    aligned, sampling_ratio: of RoIAlign. torchvision has False and 2, detectron2 and mmdetection True and 0.
    background: the logit of the background is the `first` or the `last`.
    """

    backbone: str = "resnet50"
    norm: NormName | None = "frozen"
    norm_eps: float = 1e-5
    levels: tuple[int, int, int, int] = (1, 2, 3, 4)
    stride_first: bool = False
    channels: int = 256
    torchvision_anchors: bool = False
    aligned: bool = True
    sampling_ratio: int = 0
    background: Literal["first", "last"] = "last"


PAPER = Paper(
    title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    authors="Ren et al.",
    year=2015,
    url="https://arxiv.org/abs/1506.01497",
)

STRIDES = (4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)
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
    "fasterrcnn_resnet50_fpn": Variant(_TORCHVISION, _TORCHVISION.transform, 41_755_286),
    "fasterrcnn_resnet50_fpn_aligned": Variant(_LAST, _LAST.transform, 41_699_936),
    "fasterrcnn_mobilenetv2_fpn": Variant(
        replace(_LAST, backbone="mobilenetv2_100", norm=None), _LAST.transform, 19_194_528
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_faster_rcnn(config: FasterRCNNConfig) -> RoIDetector:
    """A Faster R-CNN with fresh weights.

    >>> model = build_faster_rcnn(FasterRCNNConfig(num_classes=20)).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    backbone = create_backbone(config.backbone, in_chans=config.in_chans, **backbone_settings(config))
    info = backbone.feature_info
    return RoIDetector(
        config,
        backbone,
        FeaturePyramid([info.channels[i] for i in config.levels], config.channels, "pool"),
        RPNHead(config.channels, len(RATIOS)),
        BoxHead(config.channels, POOL_SIZE, config.num_classes, background=config.background),
        levels=config.levels,
        grid=anchor_grid(config),
        pool=RegionPool(POOL_SIZE, tuple(1 / stride for stride in STRIDES[:-1]), config.sampling_ratio, config.aligned),
    )


def anchor_grid(config: FasterRCNNConfig) -> AnchorGrid:
    """One size a level, three ratios (Lin et al. 2017, arXiv:1612.03144, section 4.1)."""
    return AnchorGrid(
        shapes=tuple(anchor_shapes((size,), RATIOS) for size in SIZES),
        strides=STRIDES,
        spacing="quotient" if config.torchvision_anchors else "stride",
        rounded=config.torchvision_anchors,
    )


def backbone_settings(config: FasterRCNNConfig) -> dict[str, Any]:
    """Settings of the classification model that the backbone is taken from."""
    settings: dict[str, Any] = {}
    if config.norm is not None:
        settings |= {"norm": config.norm, "norm_eps": config.norm_eps}
    return settings | ({"stride_first": True} if config.stride_first else {})


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: FasterRCNNConfig) -> dict[str, str]:
    """torchvision."""
    paths = backbone_modules(config.backbone, "torchvision", "backbone.body.", **backbone_settings(config))
    return (
        paths
        | torchvision_fpn(len(config.levels), "pool")
        | {
            "rpn.head.conv.0.0": "rpn.conv.conv",
            "rpn.head.conv": "rpn.conv.conv",  # before torchvision 0.13
            "rpn.head.cls_logits": "rpn.objectness",
            "rpn.head.bbox_pred": "rpn.boxes",
            "roi_heads.box_head.fc6": "head.fc1",
            "roi_heads.box_head.fc7": "head.fc2",
            "roi_heads.box_predictor.cls_score": "head.classes",
            "roi_heads.box_predictor.bbox_pred": "head.boxes",
        }
    )


def torchvision_convention(config: FasterRCNNConfig) -> dict[str, Any] | str:
    if config.background != "first":
        return "torchvision's background is the first class, take a name that is torchvision's"
    # The weights it publishes were trained, and are run, with frozen norms without an epsilon.
    return {"norm_eps": 0.0} if config.norm == "frozen" else {}


def detectron2_modules(config: FasterRCNNConfig) -> dict[str, str]:
    """detectron2."""
    paths = backbone_modules(config.backbone, "detectron2", "backbone.bottom_up.", **backbone_settings(config))
    return (
        paths
        | detectron2_fpn(2, 5)
        | {
            "proposal_generator.rpn_head.conv": "rpn.conv.conv",
            "proposal_generator.rpn_head.objectness_logits": "rpn.objectness",
            "proposal_generator.rpn_head.anchor_deltas": "rpn.boxes",
            "roi_heads.box_head.fc1": "head.fc1",
            "roi_heads.box_head.fc2": "head.fc2",
            "roi_heads.box_predictor.cls_score": "head.classes",
            "roi_heads.box_predictor.bbox_pred": "head.boxes",
        }
    )


def detectron2_convention(config: FasterRCNNConfig) -> dict[str, Any] | str:
    if config.background != "last":
        return "detectron2's background is the last class, take the name with _aligned"
    return {"stride_first": True, "transform": MSRA_INPUT}


def mmdet_modules(config: FasterRCNNConfig) -> dict[str, str]:
    """mmdetection."""
    paths = backbone_modules(config.backbone, "torchvision", "backbone.", **backbone_settings(config))
    return (
        paths
        | mmdet_fpn(len(config.levels), "pool")
        | {
            "rpn_head.rpn_conv": "rpn.conv.conv",
            "rpn_head.rpn_cls": "rpn.objectness",
            "rpn_head.rpn_reg": "rpn.boxes",
            "roi_head.bbox_head.shared_fcs.0": "head.fc1",
            "roi_head.bbox_head.shared_fcs.1": "head.fc2",
            "roi_head.bbox_head.fc_cls": "head.classes",
            "roi_head.bbox_head.fc_reg": "head.boxes",
        }
    )


def mmdet_convention(config: FasterRCNNConfig) -> dict[str, Any] | str:
    if config.background != "last":
        return "mmdetection's background is the last class, take the name with _aligned"
    return {"stride_first": False} if config.stride_first else {}


register(
    Family(
        name="Faster R-CNN",
        task="detection",
        paper=PAPER,
        build=build_faster_rcnn,
        variants=VARIANTS,
        key_maps=(
            KeyMap("torchvision", torchvision_modules, torchvision_convention),
            KeyMap("detectron2", detectron2_modules, detectron2_convention),
            KeyMap("mmdetection", mmdet_modules, mmdet_convention),
        ),
    )
)
