"""Layers and blocks that models share. Whole networks live in `cvops.models`, kernels in `cvops.ops`."""

from cvops.nn.blocks import InvertedResidual, SqueezeExcite
from cvops.nn.conv import Conv2dSame, ConvNormAct, Norm, Padding, make_activation, round_channels, same_padding
from cvops.nn.drop import DropPath
from cvops.nn.fuse import fuse
from cvops.nn.init import init_convnet
from cvops.nn.pool import Pool2d
from cvops.nn.recompute import recompute
from cvops.nn.separable import SeparableConvNormAct, SeparableTwice

__all__ = [
    "Conv2dSame",
    "ConvNormAct",
    "DropPath",
    "InvertedResidual",
    "Norm",
    "Padding",
    "Pool2d",
    "SeparableConvNormAct",
    "SeparableTwice",
    "SqueezeExcite",
    "fuse",
    "init_convnet",
    "make_activation",
    "recompute",
    "round_channels",
    "same_padding",
]
