"""Depthwise convolution: every output channel reads one input channel; forward, three gradients, fused activation.

Kernels are in csrc/{ops,cpu,cuda}/depthwise_conv2d*.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.ops._activation import ACTIVATIONS, FUNCTIONS, activation_index
from cvops.ops._register import autocast_to, differentiable, empty_maps, follows_channels_last

GRAD_INPUT, GRAD_WEIGHT, GRAD_BIAS = 1, 2, 4  # DepthwiseGradient there


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
) -> Tensor:
    """Convolve every channel with its own kernels; equals ``F.conv2d(..., groups=C)``.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; float64, float32, float16 or bfloat16, any strides.
        weight: ``[C * m, 1, kh, kw]``; output channel ``i`` reads input channel ``i // m``.
        bias: ``[C * m]`` or None.
        stride: one number, or (vertical, horizontal).
        padding: zeros on each side: one number, (vertical, horizontal), (top, left, bottom, right), ``'valid'``, or
            ``'same'`` as in TensorFlow: the output has ``ceil(size / stride)`` positions, and an odd total of zeros
            has the larger half below and to the right. (torch's ``'same'`` has no stride.)
        dilation: one number, or (vertical, horizontal).
        activation: None, ``'relu'``, ``'relu6'``, ``'silu'`` or ``'hardswish'``, applied to the result; fused when no
            gradient is needed.

    Returns:
        ``[N, C * m, H', W']`` in the dtype and memory format of `input`. Half types compute in float32.

    Raises:
        ValueError: for a bad stride, padding, dilation or activation.
        RuntimeError: for shapes, dtypes or devices that do not fit.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> depthwise_conv2d(x, torch.ones(1, 1, 2, 2), stride=2, padding="same")
    tensor([[[[ 8.,  7.],
              [13.,  8.]]]])
    """
    index = activation_index(activation)
    if input.ndim == 3:
        return depthwise_conv2d(input.unsqueeze(0), weight, bias, stride, padding, dilation, activation).squeeze(0)
    if input.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"input must be [N, C, H, W] or [C, H, W] and weight [C * m, 1, kh, kw], "
            f"got {list(input.shape)} and {list(weight.shape)}"
        )
    stride, dilation = _pair("stride", stride), _pair("dilation", dilation)
    padding = _sides(padding, input.shape[-2:], weight.shape[-2:], stride, dilation)
    if not all(isinstance(side, int) for side in padding):
        # 'same' of sizes that a trace leaves free; the op takes numbers.
        top, left, bottom, right = padding
        input, padding = F.pad(input, (left, right, top, bottom)), [0] * 4
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if index and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return FUNCTIONS[index](_conv(input, weight, bias, stride, padding, dilation, 0))
    return _conv(input, weight, bias, stride, padding, dilation, index)


def _pair(name: str, value: int | Sequence[int]) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be one or two integers >= 1, got {value!r}")
    return pair


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) padding in pixels of one axis that gives ceil(size / stride) outputs.

    >>> same_padding(224, kernel=3, stride=2), same_padding(225, kernel=3, stride=2)
    ((0, 1), (1, 1))
    """
    reach = (kernel - 1) * dilation + 1
    total = reach - stride + -size % stride
    # Without max where it changes nothing, for sizes that a trace leaves free.
    total = total if reach >= stride else max(total, 0)
    return total // 2, total - total // 2


def _sides(
    padding: int | Sequence[int] | str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: list[int],
    dilation: list[int],
) -> list[int]:
    """Padding as top, left, bottom, right."""
    if isinstance(padding, int):
        sides = [padding] * 4
    elif padding == "valid":
        sides = [0] * 4
    elif padding == "same":
        axes = [same_padding(*axis) for axis in zip(size, kernel, stride, dilation, strict=True)]
        sides = [before for before, _ in axes] + [after for _, after in axes]
    else:
        sides = [] if isinstance(padding, str) else list(padding)
        sides = sides * 2 if len(sides) == 2 else sides
    if len(sides) != 4 or min(sides) < 0:
        raise ValueError(f"padding must be 'same', 'valid', or one, two or four integers >= 0, got {padding!r}")
    return sides


class DepthwiseConv2d(nn.Module):
    """:func:`depthwise_conv2d` with parameters; ``state_dict`` and initial values as of ``nn.Conv2d(groups=C)``.

    Args:
        channels: channels of the input, ``C``.
        kernel_size: one number, or (vertical, horizontal).
        multiplier: output channels per input channel, ``m``.
        bias: whether to learn a bias.
        stride, padding, dilation, activation: as in :func:`depthwise_conv2d`.

    >>> DepthwiseConv2d(8, 3, stride=2, padding="same")(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        multiplier: int = 1,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        activation_index(activation)
        self.channels, self.multiplier = channels, multiplier
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride, self.dilation = _pair("stride", stride), _pair("dilation", dilation)
        self.padding = padding if isinstance(padding, int | str) else tuple(padding)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels * multiplier, 1, *self.kernel_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels * multiplier, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(math.prod(self.kernel_size))  # what nn.Conv2d draws from, with a fan-in of kh * kw
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias, self.activation)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None
    ) -> Tensor:
        return depthwise_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, activation)

    def extra_repr(self) -> str:
        parts = [f"{self.channels}", f"kernel_size={tuple(self.kernel_size)}", f"stride={tuple(self.stride)}"]
        parts += [f"padding={self.padding!r}", f"dilation={tuple(self.dilation)}"]
        parts += [f"multiplier={self.multiplier}"] if self.multiplier != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"activation={self.activation!r}"] if self.activation else []
        return ", ".join(parts)


@torch.library.register_fake("cvops::depthwise_conv2d")
def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> Tensor:
    top, left, bottom, right = padding
    height = (input.shape[2] + top + bottom - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    width = (input.shape[3] + left + right - dilation[1] * (weight.shape[3] - 1) - 1) // stride[1] + 1
    return empty_maps(input, (input.shape[0], weight.shape[0], height, width), follows_channels_last(input))


@torch.library.register_fake("cvops::depthwise_conv2d_backward")
def _fake_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    gradients: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_maps(input, list(input.shape), follows_channels_last(input))
        if gradients & GRAD_INPUT
        else input.new_empty(0),
        weight.new_empty(weight.shape) if gradients & GRAD_WEIGHT else input.new_empty(0),
        weight.new_empty(weight.shape[:1]) if gradients & GRAD_BIAS else input.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, *ctx.geometry, ctx.activation = inputs
    ctx.save_for_backward(input, weight, bias if ctx.activation else None)


def _slope(activation: int, x: Tensor) -> Tensor:
    """Derivative of an activation at `x`."""
    if ACTIVATIONS[activation] == "relu":
        return (x > 0).to(x.dtype)
    if ACTIVATIONS[activation] == "relu6":
        return ((x > 0) & (x < 6)).to(x.dtype)
    if ACTIVATIONS[activation] == "silu":
        gate = torch.sigmoid(x)
        return gate * (1 + x * (1 - gate))
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, x / 3 + 0.5)).to(x.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, bias = ctx.saved_tensors
    if ctx.activation:  # fused all the same: only reached by calling the op itself, so it is recomputed, not kept
        before = _conv(input, weight, bias, *ctx.geometry, 0)
        grad = grad * _slope(ctx.activation, before)
    wanted = [need * flag for need, flag in zip(ctx.needs_input_grad, (1, 2, 4), strict=False)]
    grads = _gradients(grad, input, weight, *ctx.geometry, sum(wanted))
    return *(g if flag else None for g, flag in zip(grads, wanted, strict=True)), None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.gradients = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(
    ctx: Any, grad_input: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    # The op is bilinear, so the derivatives of its gradients are the op and its gradients again.
    grad, input, weight = ctx.saved_tensors
    geometry = ctx.stride, ctx.padding, ctx.dilation
    by_input = grad_input if ctx.gradients & GRAD_INPUT else None
    by_weight = grad_weight if ctx.gradients & GRAD_WEIGHT else None
    by_bias = grad_bias if ctx.gradients & GRAD_BIAS else None
    out_grad = out_input = out_weight = None
    if ctx.needs_input_grad[0]:
        parts = []
        if by_input is not None:
            parts.append(_conv(by_input, weight, by_bias, *geometry, 0))
            by_bias_left = None
        else:
            by_bias_left = by_bias
        if by_weight is not None:
            parts.append(_conv(input, by_weight, by_bias_left, *geometry, 0))
        elif by_bias_left is not None:
            parts.append(by_bias_left[:, None, None].expand_as(grad))
        out_grad = parts[0] if len(parts) == 1 else parts[0] + parts[1] if parts else None
    if ctx.needs_input_grad[1] and by_weight is not None:
        out_input = _gradients(grad, input, by_weight, *geometry, GRAD_INPUT)[0]
    if ctx.needs_input_grad[2] and by_input is not None:
        out_weight = _gradients(grad, by_input, weight, *geometry, GRAD_WEIGHT)[1]
    return out_grad, out_input, out_weight, None, None, None, None


def _into_channels(tensor: Tensor, dim: int | None, size: int, at: int) -> Tensor:
    """Moves the batch dimension of vmap in front of dimension `at` (expanding if there is none) and merges the two."""
    tensor = tensor.unsqueeze(at) if dim is None else tensor.movedim(dim, at)
    shape = list(tensor.shape)
    shape[at] = size
    return tensor.expand(shape).flatten(at, at + 1)


def _vmap(
    info: Any, in_dims: tuple[Any, ...], input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    input_dim, weight_dim, bias_dim = in_dims[:3]
    if weight_dim is None and bias_dim is None:  # a larger batch
        flat = torch.ops.cvops.depthwise_conv2d(_into_channels(input, input_dim, size, 0), weight, bias, *geometry)
        return flat.unflatten(0, (size, -1) if flat.shape[0] else (size, 0)), 0
    input, weight = _into_channels(input, input_dim, size, 1), _into_channels(weight, weight_dim, size, 0)
    bias = None if bias is None else _into_channels(bias, bias_dim, size, 0)
    out = torch.ops.cvops.depthwise_conv2d(input, weight, bias, *geometry)
    return out.unflatten(1, (size, -1)), 1


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], grad: Tensor, input: Tensor, weight: Tensor, *rest: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int | None, int | None, int | None]]:
    grad, input = (_into_channels(t, dim, info.batch_size, 1) for t, dim in zip((grad, input), in_dims, strict=False))
    weight = _into_channels(weight, in_dims[2], info.batch_size, 0)
    grads = torch.ops.cvops.depthwise_conv2d_backward(grad, input, weight, *rest)
    wanted = [bool(rest[-1] & flag) for flag in (GRAD_INPUT, GRAD_WEIGHT, GRAD_BIAS)]
    axes = (1, 0, 0)
    out = tuple(
        g.unflatten(axis, (info.batch_size, -1)) if want else g
        for g, axis, want in zip(grads, axes, wanted, strict=True)
    )
    return out, tuple(axis if want else None for axis, want in zip(axes, wanted, strict=True))  # type: ignore[return-value]


_conv = differentiable("depthwise_conv2d", _save, _backward, _vmap)
_gradients = differentiable("depthwise_conv2d_backward", _save_backward, _double_backward, _vmap_backward)
autocast_to("depthwise_conv2d", None)


def reference_depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    activation: str | None = None,
) -> Tensor:
    """Pure-torch oracle: a sum of shifted, strided slices; padding is (top, left, bottom, right)."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    planes, _, kh, kw = weight.shape
    top, left, bottom, right = padding
    x = F.pad(input.to(dtype).repeat_interleave(planes // input.shape[1], 1), (left, right, top, bottom))
    height = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = torch.zeros(x.shape[0], planes, height, width, dtype=dtype, device=x.device)
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    for ky in range(kh):
        for kx in range(kw):
            y, z = ky * dilation[0], kx * dilation[1]
            rows = slice(y, y + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(z, z + (width - 1) * stride[1] + 1, stride[1])
            out = out + x[:, :, rows, columns] * weight.to(dtype)[:, 0, ky, kx, None, None]
    return FUNCTIONS[activation_index(activation)](out).to(input.dtype)
