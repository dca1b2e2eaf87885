"""Activations that a kernel can apply in its own pass over the output, in the order of Activation in
csrc/ops/activation.h; shared by depthwise_conv2d and batch_norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _hardswish(x: Tensor) -> Tensor:
    """torch's own, but for float64 on CUDA, where it multiplies by a float32 1/6."""
    return x * F.relu6(x + 3) / 6 if x.is_cuda and x.dtype == torch.float64 else F.hardswish(x)


ACTIVATIONS = (None, "relu", "relu6", "silu", "hardswish")
FUNCTIONS = (lambda x: x, F.relu, F.relu6, F.silu, _hardswish)
FUSED_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
"""Layers that a depthwise convolution in front of them can apply."""


def activation_index(activation: str | None) -> int:
    """The number that the kernels know it by. Raises ValueError for one they do not have."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    return ACTIVATIONS.index(activation)
