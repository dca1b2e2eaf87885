"""The region proposal network (Ren et al. 2015) on a feature pyramid, as a detector of its own: boxes of anything. Its
settings, and the names detectron2, mmdetection and torchvision give to its layers. Faster R-CNN takes its anchors and
backbones from here; proposals and their losses are `detection/proposals.py`, the head is `head/rpn.py`."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cvops.models.config import Accuracy, Paper
from cvops.models.detection import (
    AnchorGrid,
    DenseOutput,
    Detections,
    ImageBatch,
    ProposalSettings,
    above,
    anchor_shapes,
    proposal_losses,
    propose,
    within,
)
from cvops.models.detection.images import MSRA_INPUT
from cvops.models.detection.proposals import DEFAULT_PROPOSALS
from cvops.models.detector import BackboneConfig, Detector, Losses, detector_variant
from cvops.models.head import RPNHead
from cvops.models.model import Backbone
from cvops.models.neck import FeaturePyramid
from cvops.models.neck.fpn import detectron2_fpn, mmdet_fpn, torchvision_fpn
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(BackboneConfig):
    """Settings of the detectors that propose regions on a pyramid from stride 4 on.

    levels: the backbone's maps at strides 4, 8, 16 and 32.
    torchvision_anchors: corners of anchors are whole pixels, and spacing follows the maps' sizes.
    rpn: of the proposals.
    """

    levels: tuple[int, ...] = (1, 2, 3, 4)
    channels: int = 256
    torchvision_anchors: bool = False
    rpn: ProposalSettings = DEFAULT_PROPOSALS


@dataclass(frozen=True, kw_only=True)
class RPNConfig(PyramidConfig):
    """The settings of `PyramidConfig`; there is one class, "something". `iou_threshold` and `max_detections` stand for
    those of `rpn`."""

    num_classes: int = 1
    score_threshold: float = 0.0
    iou_threshold: float = 0.7
    max_detections: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes != 1:
            raise ValueError(f"num_classes must be 1 for a region proposal network, got {self.num_classes}")


PAPER = Paper(
    title="Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    authors="Ren et al.",
    year=2015,
    url="https://arxiv.org/abs/1506.01497",
)

STRIDES = (4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)

_CONFIG = RPNConfig()
_MMDETECTION = Accuracy(
    58.2,
    "mmdetection",
    "https://github.com/open-mmlab/mmdetection/blob/main/configs/rpn/metafile.yml",
    metric="AR@1000",
)
VARIANTS = {"rpn_resnet50_fpn": detector_variant(_CONFIG, 27_393_231, accuracy=_MMDETECTION)}

# --- assembly ---------------------------------------------------------------------------------------------------------


class RegionProposalNetwork(Detector[DenseOutput]):
    """A detector of one class, "something". Parts: `backbone`, `neck`, `rpn`; `grid` holds no weights."""

    config: RPNConfig

    def __init__(self, config: RPNConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.neck = pyramid_of(config, backbone)
        self.rpn = RPNHead(config.channels, len(RATIOS))
        self.grid = anchor_grid(config)

    def network(self, pixels: Tensor) -> DenseOutput:
        maps = self.backbone.features(pixels)
        output: DenseOutput = self.rpn(self.neck([maps[i] for i in self.config.levels]))
        return output

    @property
    def class_keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return ()

    def losses(self, raw: DenseOutput, batch: ImageBatch) -> Losses:
        return proposal_losses(raw, self.grid.over(raw.codes, batch.shape), batch, self.config.rpn)

    def postprocess(self, raw: DenseOutput, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        settings = replace(config.rpn, iou_threshold=config.iou_threshold, proposals=config.max_detections)
        boxes, logits, counts = propose(raw, self.grid.over(raw.codes, image), sizes, settings, training=False)
        scores = logits.sigmoid() * within(counts, boxes.shape[1])
        return above(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), config.score_threshold)


def build_rpn(config: RPNConfig) -> RegionProposalNetwork:
    """A region proposal network with fresh weights.

    >>> model = build_rpn(RPNConfig(max_detections=5)).eval()
    >>> [len(result["boxes"]) for result in model([torch.rand(3, 64, 80)])]
    [5]
    """
    return RegionProposalNetwork(config, config.build_backbone())


def pyramid_of(config: PyramidConfig, backbone: Backbone) -> FeaturePyramid:
    """The pyramid on the backbone's maps: strides 4 to 64."""
    channels = [backbone.feature_info.channels[i] for i in config.levels]
    return FeaturePyramid(channels, config.channels, "pool")


def anchor_grid(config: PyramidConfig) -> AnchorGrid:
    """One size a level, three ratios (Lin et al. 2017, arXiv:1612.03144, section 4.1)."""
    return AnchorGrid(
        shapes=tuple(anchor_shapes((size,), RATIOS) for size in SIZES),
        strides=STRIDES,
        spacing="quotient" if config.torchvision_anchors else "stride",
        rounded=config.torchvision_anchors,
    )


# --- key map ----------------------------------------------------------------------------------------------------------


def torchvision_modules(config: PyramidConfig) -> dict[str, str]:
    """torchvision: the RPN inside its Faster R-CNN."""
    paths = config.backbone_modules("torchvision", "backbone.body.")
    return (
        paths
        | torchvision_fpn(len(config.levels), "pool")
        | {
            "rpn.head.conv.0.0": "rpn.conv.conv",
            "rpn.head.conv": "rpn.conv.conv",  # before torchvision 0.13
            "rpn.head.cls_logits": "rpn.objectness",
            "rpn.head.bbox_pred": "rpn.boxes",
        }
    )


def detectron2_modules(config: PyramidConfig) -> dict[str, str]:
    """detectron2."""
    paths = config.backbone_modules("detectron2", "backbone.bottom_up.")
    return (
        paths
        | detectron2_fpn(2, 5)
        | {
            "proposal_generator.rpn_head.conv": "rpn.conv.conv",
            "proposal_generator.rpn_head.objectness_logits": "rpn.objectness",
            "proposal_generator.rpn_head.anchor_deltas": "rpn.boxes",
        }
    )


def detectron2_convention(config: PyramidConfig) -> dict[str, Any] | str:
    if not config.backbone.startswith("resnet"):
        return "detectron2 has ResNets"
    return {"stride_first": True, "transform": MSRA_INPUT, "rpn": replace(config.rpn, min_size=0.0)}


def mmdet_modules(config: PyramidConfig) -> dict[str, str]:
    """mmdetection; a network that is all RPN calls it `bbox_head` after loading, `rpn_head` in its files."""
    paths = config.backbone_modules("torchvision", "backbone.")
    paths |= mmdet_fpn(len(config.levels), "pool")
    for head in ("rpn_head", "bbox_head"):
        paths |= {
            f"{head}.rpn_conv": "rpn.conv.conv",
            f"{head}.rpn_cls": "rpn.objectness",
            f"{head}.rpn_reg": "rpn.boxes",
        }
    return paths


def mmdet_convention(config: PyramidConfig) -> dict[str, Any] | str:
    if not config.backbone.startswith("resnet"):
        return "mmdetection has ResNets"
    return {"stride_first": False}


register(
    Family(
        name="RPN",
        task="detection",
        paper=PAPER,
        build=build_rpn,
        variants=VARIANTS,
        key_maps=(
            KeyMap("detectron2", detectron2_modules, detectron2_convention),
            KeyMap("mmdetection", mmdet_modules, mmdet_convention),
        ),
    )
)
