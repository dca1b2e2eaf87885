"""Necks: feature maps of a backbone to the pyramid that heads work on."""

from cvops.models.neck.bifpn import BiFPN
from cvops.models.neck.fpn import FeaturePyramid

__all__ = ["BiFPN", "FeaturePyramid"]
