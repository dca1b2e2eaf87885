"""Folding for inference: normalisation into convolutions, activations into the depthwise kernel. Training and
checkpoints keep the layers apart, as `conv.py` builds them."""

import copy
from typing import TypeVar

import torch
from torch import nn

from cvops.nn.conv import ConvNormAct
from cvops.nn.norm import fold_norm, is_fixed
from cvops.ops._activation import FUSED_ACTIVATIONS
from cvops.ops.depthwise_conv2d import DepthwiseConv2d

M = TypeVar("M", bound=nn.Module)


def fuse(model: M) -> M:
    """A copy of `model` in eval mode for inference: in every `ConvNormAct` the batch norm becomes the convolution's
    scale and bias, and a depthwise convolution applies the activation in its own pass over the output. Outputs agree up
    to rounding; `model` is left as it is. The copy's state_dict has other entries, so keep checkpoints of the original.

    >>> model = cvops.create_model("mobilenetv2_035").eval()
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.allclose(fuse(model)(x), model(x), atol=1e-5)
    True
    """
    fused = copy.deepcopy(model).eval()
    for unit in fused.modules():
        if isinstance(unit, ConvNormAct):
            _fuse_unit(unit)
    return fused


@torch.no_grad()
def _fuse_unit(unit: ConvNormAct) -> None:
    conv, norm = unit.conv, unit.norm
    if is_fixed(norm):
        assert isinstance(conv, nn.Conv2d | DepthwiseConv2d)
        bias = None if conv.bias is None else conv.bias.double()
        weight, bias = fold_norm(norm, conv.weight.double(), bias)
        conv.weight.copy_(weight)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
        unit.norm = nn.Identity()
    activation = FUSED_ACTIVATIONS.get(type(unit.act))
    if isinstance(unit.norm, nn.Identity) and isinstance(conv, DepthwiseConv2d) and activation is not None:
        conv.activation = activation
        unit.act = nn.Identity()
