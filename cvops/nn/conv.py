"""Convolution + normalisation + activation, the unit every network here is made of, and the two padding
conventions it comes in. Blocks made of several such units are in `blocks.py`; initial values in `init.py`."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn.norm import FrozenBatchNorm2d, Norm, apply_norm_, fold_norm, is_fixed, is_traced, is_watched
from cvops.ops._activation import FUSED_ACTIVATIONS
from cvops.ops._register import transforming
from cvops.ops.depthwise_conv2d import DepthwiseConv2d, same_padding

Padding = Literal["symmetric", "same"]
"""`symmetric`: (kernel - 1) // 2 on each side, as torch models do. `same`: as TensorFlow does, ceil(size / stride)
outputs, the odd pixel at the bottom and right; the amount depends on the input size."""

LEAK = 0.1  # slope of `leaky_relu` below 0, as Darknet has it

_ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "leaky_relu": lambda inplace: nn.LeakyReLU(LEAK, inplace),
    "hard_swish": nn.Hardswish,
    "sigmoid": lambda inplace: nn.Sigmoid(),
    "hard_sigmoid": nn.Hardsigmoid,
}


Size = int | tuple[int, int]
"""Of a kernel or stride: one number, or (vertical, horizontal)."""


def make_activation(name: str, inplace: bool = True) -> nn.Module:
    """The activation layer called `name`, which may write into its input unless `inplace` is False; raises `ValueError`
    for a name that is not known.

    >>> make_activation("relu6")
    ReLU6(inplace=True)
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}, expected one of {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name](inplace)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, never less than 90 % of it: the rule of MobileNetV2's and
    EfficientNet's reference code for scaled widths.

    >>> [round_channels(32 * width) for width in (0.35, 1.0, 1.4)]
    [16, 32, 48]
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def as_pair(size: Size) -> tuple[int, int]:
    """(vertical, horizontal) of a size given either way.

    >>> as_pair(3), as_pair((1, 7))
    ((3, 3), (1, 7))
    """
    return size if isinstance(size, tuple) else (size, size)


class Conv2dSame(nn.Conv2d):
    """`nn.Conv2d` with TensorFlow's 'same' padding at any stride (torch's own `padding="same"` takes stride 1 only).

    [N, C, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]. Parameters as `nn.Conv2d`, less `padding`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        axes = zip(input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        (top, bottom), (left, right) = (same_padding(*axis) for axis in axes)
        return super()._conv_forward(F.pad(input, (left, right, top, bottom)), weight, bias)


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation: parts `conv`, `norm`, `act`.

    [N, in_channels, H, W] -> [N, out_channels, H', W'] with H' = ceil(H / stride) for odd kernels. A convolution with
    `groups == in_channels > 1` runs through `cvops.ops.depthwise_conv2d`. `norm=None` and `act=None` leave these out.
    The convolution has a bias where there is no norm, or as `bias` says. A `padding` in pixels instead of a convention
    is put on all sides.

    On the CPU, a batch norm of fixed statistics (in inference, or frozen) is no layer of its own: where that is less
    work, each call scales the convolution's weights instead; otherwise, without gradients, norm and activation go over
    the maps together, in place (`_way`). Gradients and state_dict stay those of the parts. To scale the weights once
    and for all, see `cvops.nn.fuse`.

    >>> ConvNormAct(3, 32, 3, stride=2, padding="same")(torch.zeros(1, 3, 65, 64)).shape
    torch.Size([1, 32, 33, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 1,
        stride: Size = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        padding: Padding | int = "symmetric",
        norm: Norm | None = nn.BatchNorm2d,
        act: str | None = "relu",
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        bias = norm is None if bias is None else bias
        if padding not in ("symmetric", "same") and not isinstance(padding, int):
            raise ValueError(f"padding must be 'symmetric' or 'same', got {padding!r}")
        kernel, strides = as_pair(kernel_size), as_pair(stride)
        if isinstance(padding, int):
            centred = (padding, padding)
        else:
            centred = ((kernel[0] - 1) // 2 * dilation, (kernel[1] - 1) // 2 * dilation)
        # At stride 1 and odd kernels the two conventions agree, and the fixed amount is the cheaper one.
        fixed = padding != "same" or all(s == 1 and k % 2 == 1 for k, s in zip(kernel, strides, strict=True))
        self.conv: nn.Module
        if groups == in_channels > 1:
            if out_channels % in_channels:
                raise ValueError(f"a depthwise convolution of {in_channels} channels cannot give {out_channels}")
            self.conv = DepthwiseConv2d(
                in_channels,
                kernel,
                stride=strides,
                padding=centred if fixed else "same",
                dilation=dilation,
                bias=bias,
                multiplier=out_channels // in_channels,
            )
        elif fixed:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel, strides, centred, dilation, groups, bias=bias)
        else:
            self.conv = Conv2dSame(
                in_channels, out_channels, kernel, strides, groups=groups, dilation=dilation, bias=bias
            )
        self.norm = norm(out_channels) if norm is not None else nn.Identity()
        self.act = make_activation(act) if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Not self.conv: attributes of a module are slow to find, which adds up in a batch of one image.
        parts: dict[str, Any] = self._modules
        conv, norm, act = parts["conv"], parts["norm"], parts["act"]
        way, fused = _way(conv, norm, act, x)
        if way == "fold":
            weight, bias = fold_norm(norm, conv.weight, conv.bias)
            if type(conv) is DepthwiseConv2d:
                y = conv._conv_forward(x, weight, bias, fused)
            else:
                y, fused = conv._conv_forward(x, weight, bias), None
        elif way == "in place":
            y = apply_norm_(norm, conv(x), fused)
        else:
            y, fused = norm(conv(x)), None
        return act(y) if fused is None else y


# What is merged; but no subclass, whose forward may do anything.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame, DepthwiseConv2d)
_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
_EXACT = (torch.float32, torch.float64)  # scaled weights of half types would be rounded

# What a fold of weights costs beside its pass over them, in elements that the norm would get through meanwhile: when it
# is differentiated, and when it takes the place of `apply_norm_`, which is cheaper.
_OVERHEAD_GRAD, _OVERHEAD, _OVERHEAD_DEPTHWISE = 1 << 19, 1 << 17, 1 << 15


Way = Literal["parts", "fold", "in place"]
"""Of a norm: a layer of its own, in the weights before it, or in the place of the maps."""


def _way(conv: Any, norm: Any, act: nn.Module, x: Tensor) -> tuple[Way, str | None]:
    """How to compute a unit for `x`, and the name of the activation that a kernel can apply.

    Only where nobody can tell: on the CPU, in full precision, with fixed statistics. Who traces a layer sees the parts;
    hooks see every part's output. Few calls, since each is run with cold caches."""
    if (
        type(norm) not in _NORMS
        or not is_fixed(norm)
        or type(conv) not in _CONVOLUTIONS
        or is_traced(x)
        or not x.is_cpu
        or torch.is_autocast_enabled("cpu")
        or is_watched(conv)
        or is_watched(norm)
    ):
        return "parts", None
    weight, dtype = conv._parameters.get("weight"), x.dtype
    # No weight: a hook makes it of others, as torch.nn.utils.prune does.
    if weight is None or weight.dtype != dtype or dtype not in _EXACT or x.ndim != 4:
        return "parts", None
    depthwise = type(conv) is DepthwiseConv2d
    if depthwise and conv.activation is not None:  # before the norm
        return "parts", None
    fused = None if is_watched(act) else FUSED_ACTIVATIONS.get(type(act))
    otherwise: Way
    if torch.is_grad_enabled() or transforming():
        otherwise, overhead = "parts", _OVERHEAD_GRAD
    elif depthwise or fused is None:
        otherwise, overhead = "in place", _OVERHEAD_DEPTHWISE if depthwise else _OVERHEAD
    else:  # one pass over the maps in any case, for the activation, and it can take the norm along
        return "in place", fused
    (batch, _, height, width), (down, right) = x.shape, conv.stride
    outputs = weight.shape[0] * batch * height * width // (down * right)
    return ("fold" if outputs > weight.numel() + overhead else otherwise), fused
