"""Necks: feature maps of a backbone to the pyramid that heads work on."""

from cvops.models.neck.bifpn import BiFPN
from cvops.models.neck.extra import ExtraLayer, ExtraLayers
from cvops.models.neck.fpn import FeaturePyramid
from cvops.models.neck.pan import PathAggregation

__all__ = ["BiFPN", "ExtraLayer", "ExtraLayers", "FeaturePyramid", "PathAggregation"]
