"""Layers and blocks that models share. Whole networks live in `cvops.models`, kernels in `cvops.ops`."""

from cvops.nn.blocks import (
    CascadedCrossChannelPooling,
    IndependentComponent,
    InvertedResidual,
    PointwiseAttention,
    SqueezeExcite,
)
from cvops.nn.cells import CellSpec, SearchedCell
from cvops.nn.conv import Conv2dSame, ConvNormAct, Padding, make_activation, round_channels
from cvops.nn.csp import CSPStage, DarknetBlock
from cvops.nn.deform import DeformConvNormAct
from cvops.nn.drop import DropPath, ScheduledDropBlock2d, set_drop_progress
from cvops.nn.fuse import fuse
from cvops.nn.init import init_convnet, init_glorot
from cvops.nn.norm import FrozenBatchNorm2d, Norm, NormName, make_norm
from cvops.nn.pool import Pool2d, SpatialPyramidPool
from cvops.nn.recompute import recompute
from cvops.nn.residual import BasicBlock, Bottleneck, ICConv, ResidualOptions, SEPlacement
from cvops.nn.separable import SeparableConvNormAct, SeparableTwice
from cvops.ops.depthwise_conv2d import same_padding

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CSPStage",
    "CascadedCrossChannelPooling",
    "CellSpec",
    "Conv2dSame",
    "ConvNormAct",
    "DarknetBlock",
    "DeformConvNormAct",
    "DropPath",
    "FrozenBatchNorm2d",
    "ICConv",
    "IndependentComponent",
    "InvertedResidual",
    "Norm",
    "NormName",
    "Padding",
    "PointwiseAttention",
    "Pool2d",
    "ResidualOptions",
    "SEPlacement",
    "ScheduledDropBlock2d",
    "SearchedCell",
    "SeparableConvNormAct",
    "SeparableTwice",
    "SpatialPyramidPool",
    "SqueezeExcite",
    "fuse",
    "init_convnet",
    "init_glorot",
    "make_activation",
    "make_norm",
    "recompute",
    "round_channels",
    "same_padding",
    "set_drop_progress",
]
