"""Backbones that several families share: an image to feature maps of declared channels and strides."""

from cvops.models.backbone.cspdarknet import CSPDarknet
from cvops.models.backbone.dla import DLANet
from cvops.models.backbone.hourglass import Hourglass, HourglassNet
from cvops.models.backbone.inverted_residual import InvertedResidualConfig, InvertedResidualNet, Stage
from cvops.models.backbone.resnet import ResidualConfig, ResidualNet

__all__ = [
    "CSPDarknet",
    "DLANet",
    "Hourglass",
    "HourglassNet",
    "InvertedResidualConfig",
    "InvertedResidualNet",
    "ResidualConfig",
    "ResidualNet",
    "Stage",
]
