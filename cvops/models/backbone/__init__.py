"""Backbones that several families share: an image to feature maps of declared channels and strides."""

from cvops.models.backbone.inverted_residual import InvertedResidualNet, Stage

__all__ = ["InvertedResidualNet", "Stage"]
