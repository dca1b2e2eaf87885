"""Heads that families share: feature maps to raw predictions. Postprocessing is not theirs."""

from cvops.models.head.box import BoxHead, RegionOutput, RegionPool
from cvops.models.head.classification import ClassificationHead
from cvops.models.head.dense import DenseHead
from cvops.models.head.point import PointHead, PointOutput
from cvops.models.head.position_sensitive import PositionSensitiveHead
from cvops.models.head.rpn import RPNHead
from cvops.models.head.separable import SeparableHead
from cvops.models.head.ssd import SSDHead
from cvops.models.head.yolo import YOLOHead

__all__ = [
    "BoxHead",
    "ClassificationHead",
    "DenseHead",
    "PointHead",
    "PointOutput",
    "PositionSensitiveHead",
    "RPNHead",
    "RegionOutput",
    "RegionPool",
    "SSDHead",
    "SeparableHead",
    "YOLOHead",
]
