"""Initial values for networks trained from scratch. Loading weights is `cvops.models.weights`."""

import math

from torch import nn

from cvops.ops.depthwise_conv2d import DepthwiseConv2d


def init_convnet(module: nn.Module) -> None:
    """Initialises every layer of `module` in place: convolutions normal with variance 2 / fan_out (He et al. 2015,
    arXiv:1502.01852; fan_out counts one group), linear layers normal with deviation 0.01, biases zero, norms one.

    >>> layer = nn.Conv2d(3, 8, 3); init_convnet(layer); layer.bias.abs().max().item()
    0.0
    """
    for layer in module.modules():
        if isinstance(layer, DepthwiseConv2d):
            channels_out, _, height, width = layer.weight.shape
            fan_out = height * width * channels_out // layer.channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(layer, nn.Conv2d):
            channels_out, _, height, width = layer.weight.shape
            fan_out = height * width * channels_out // layer.groups
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def init_glorot(module: nn.Module) -> None:
    """Initialises every convolution of `module` in place: uniform with variance 2 / (fan_in + fan_out), counted in one
    group, and biases zero (Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    networks"; TensorFlow's default).

    >>> layer = nn.Conv2d(3, 8, 3); init_glorot(layer); layer.bias.abs().max().item()
    0.0
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | DepthwiseConv2d):
            channels_out, channels_in, height, width = layer.weight.shape
            groups = layer.channels if isinstance(layer, DepthwiseConv2d) else layer.groups
            limit = math.sqrt(6 / (height * width * (channels_in + channels_out // groups)))
            nn.init.uniform_(layer.weight, -limit, limit)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
