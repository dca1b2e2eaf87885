"""Layers and blocks that models share. Whole networks live in `cvops.models`, kernels in `cvops.ops`."""

from cvops.nn.blocks import InvertedResidual, SqueezeExcite
from cvops.nn.conv import Conv2dSame, ConvNormAct, Norm, Padding, make_activation, round_channels, same_padding
from cvops.nn.drop import DropPath
from cvops.nn.fuse import fuse
from cvops.nn.init import init_convnet

__all__ = [
    "Conv2dSame",
    "ConvNormAct",
    "DropPath",
    "InvertedResidual",
    "Norm",
    "Padding",
    "SqueezeExcite",
    "fuse",
    "init_convnet",
    "make_activation",
    "round_channels",
    "same_padding",
]
