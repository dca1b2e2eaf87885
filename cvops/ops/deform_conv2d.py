"""Deformable convolution, v1 and v2: a convolution whose taps are displaced by learned offsets and, in v2, weighted.

Kernels are in csrc/{ops,cpu,cuda}/deform_conv2d*. On the CPU sampled columns are multiplied while they are in cache; on
CUDA a bounded piece of them exists at a time. Neither holds the im2col buffer of an image, let alone of the batch.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvops.ops._register import autocast_to, differentiable, double_backward, empty_maps, follows_channels_last

GRAD_INPUT, GRAD_WEIGHT, GRAD_OFFSET = 1, 2, 4  # DeformGradient in csrc/ops/deform_conv2d.h


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution v1 (Dai et al. 2017, arXiv:1703.06211) and, with `mask`, v2 (Zhu et al. 2018,
    arXiv:1811.11168).

    Tap k of output position p samples the input bilinearly at its place in an ordinary convolution plus ``offset``;
    v2 multiplies the sample by ``mask``. Outside of the input everything is zero, and a point at or beyond one pixel
    from the border (or NaN) samples nothing.

    Args:
        input: ``[N, C, H, W]``; float64, float32, float16 or bfloat16, any strides.
        offset: ``[N, 2 * offset_groups * kh * kw, H', W']``, y before x for every tap, in pixels. The number of offset
            groups, which must divide C, follows from the shape.
        weight: ``[C', C / groups, kh, kw]``; the number of groups follows from the shape.
        bias: ``[C']`` or None.
        stride, padding, dilation: one number, or (vertical, horizontal).
        mask: ``[N, offset_groups * kh * kw, H', W']`` or None.

    Returns:
        ``[N, C', H', W']`` in the dtype and memory format of `input`. Half types compute in float32.

    Raises:
        ValueError: for a bad stride, padding or dilation, or an offset that fits no number of offset groups.
        RuntimeError: for shapes, dtypes or devices that do not fit.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> shift_right = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    >>> deform_conv2d(x, shift_right, torch.ones(1, 1, 1, 1))
    tensor([[[[1., 2., 0.],
              [4., 5., 0.],
              [7., 8., 0.]]]])
    """
    if input.ndim != 4 or weight.ndim != 4 or offset.ndim != 4:
        raise ValueError(
            "input must be [N, C, H, W], weight [C', C / groups, kh, kw] and offset [N, 2 * offset_groups * kh * kw, "
            f"H', W'], got {list(input.shape)}, {list(weight.shape)} and {list(offset.shape)}"
        )
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    padding = _pair("padding", padding, 0)
    taps = weight.shape[2] * weight.shape[3]
    offset_groups = offset.shape[1] // max(2 * taps, 1)
    if offset_groups == 0:
        raise RuntimeError(
            "deform_conv2d: the shape of the offset is not valid: dimension 1 must be a multiple of "
            f"2 * kh * kw = {2 * taps}, got {list(offset.shape)}"
        )
    groups = input.shape[1] // max(weight.shape[1], 1)
    return _conv(input, weight, offset, mask, bias, stride, padding, dilation, max(groups, 1), offset_groups)


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} must be one or two integers >= {least}, got {value!r}")
    return pair


class DeformConv2d(nn.Module):
    """:func:`deform_conv2d` with parameters; ``state_dict`` and initial values as of ``torchvision.ops.DeformConv2d``.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel_size, stride, padding, dilation: one number, or (vertical, horizontal).
        groups: groups of the weight.
        bias: whether to learn a bias.

    >>> layer = DeformConv2d(4, 8, 3, padding=1)
    >>> layer(torch.zeros(1, 4, 5, 5), torch.zeros(1, 18, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {groups}, {in_channels} and {out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        self.padding = _pair("padding", padding, 0)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={tuple(self.kernel_size)}"]
        parts += [f"stride={tuple(self.stride)}", f"padding={tuple(self.padding)}", f"dilation={tuple(self.dilation)}"]
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        return ", ".join(parts)


@torch.library.register_fake("cvops::deform_conv2d")
def _fake(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    shape = [input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]]
    return empty_maps(input, shape, follows_channels_last(input))


@torch.library.register_fake("cvops::deform_conv2d_backward")
def _fake_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
    gradients: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    none = input.new_empty(0)
    return (
        empty_maps(input, input.shape, follows_channels_last(input)) if gradients & GRAD_INPUT else none,
        weight.new_empty(weight.shape) if gradients & GRAD_WEIGHT else none.clone(),
        offset.new_empty(offset.shape) if gradients & GRAD_OFFSET else none.clone(),
        mask.new_empty(mask.shape) if mask is not None and gradients & GRAD_OFFSET else none.clone(),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, offset, mask, _, *ctx.geometry = inputs
    ctx.save_for_backward(input, weight, offset, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, offset, mask = ctx.saved_tensors
    need_input, need_weight, need_offset, need_mask, need_bias = ctx.needs_input_grad[:5]
    wanted = GRAD_INPUT * need_input | GRAD_WEIGHT * need_weight | GRAD_OFFSET * (need_offset or need_mask)
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = _gradients(grad, input, weight, offset, mask, *ctx.geometry, wanted, deterministic)
    needs = (need_input, need_weight, need_offset, need_mask)
    by_bias = grad.sum((0, 2, 3)) if need_bias else None
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), by_bias, *[None] * 5


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.offset_groups, ctx.gradients, _ = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, input, weight, offset, mask = ctx.saved_tensors
    inputs = [input, weight, offset] + ([mask] if mask is not None else [])

    def convolve(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return reference_deform_conv2d(input, offset, weight, None, ctx.stride, ctx.padding, ctx.dilation, mask)

    # What was not wanted came back empty and has no second derivative.
    flags = (GRAD_INPUT, GRAD_WEIGHT, GRAD_OFFSET, GRAD_OFFSET)
    wanted = [g if ctx.gradients & flag else None for g, flag in zip(grad_grads, flags, strict=True)]
    second = double_backward(convolve, inputs, grad, wanted[: len(inputs)])
    return *second, *([None] if mask is None else []), *[None] * 7


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """A batch of inputs, offsets and masks under one weight is a larger batch; a weight per sample runs one by one."""
    size = info.batch_size
    weight, bias, geometry = args[1], args[4], args[5:]
    if in_dims[1] is None and in_dims[4] is None:
        flat = [None if t is None else _into_batch(t, d, size) for t, d in zip(args[:4], in_dims, strict=False)]
        out = _conv(flat[0], weight, flat[2], flat[3], bias, *geometry)
        return out.unflatten(0, (size, -1) if out.shape[0] else (size, 0)), 0
    rows = [[_take(t, d, i) for t, d in zip(args[:5], in_dims, strict=False)] for i in range(size)]
    return torch.stack([_conv(*row, *geometry) for row in rows]), 0


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    rows = [[_take(t, d, i) for t, d in zip(args[:5], in_dims, strict=False)] for i in range(info.batch_size)]
    grads = [_gradients(*row, *args[5:]) for row in rows]
    return tuple(torch.stack(g) for g in zip(*grads, strict=True)), (0, 0, 0, 0)


def _into_batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    moved = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def _take(tensor: Tensor | None, dim: int | None, i: int) -> Tensor | None:
    return tensor if tensor is None or dim is None else tensor.select(dim, i)


_conv = differentiable("deform_conv2d", _save, _backward, _vmap)
_gradients = differentiable("deform_conv2d_backward", _save_backward, _double_backward, _vmap_backward)
autocast_to("deform_conv2d", torch.float32)


def reference_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Pure-torch oracle: gathers the four pixels of every sample and multiplies; needs the whole im2col buffer."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    n, c, h, w = input.shape
    out_c, group_in, kh, kw = weight.shape
    height, width = offset.shape[2:]
    taps, groups = kh * kw, c // group_in
    offset_groups = offset.shape[1] // (2 * taps)
    moved = offset.to(dtype).reshape(n, offset_groups, taps, 2, height, width)
    line = torch.arange(height, device=input.device, dtype=dtype) * stride[0] - padding[0]
    column = torch.arange(width, device=input.device, dtype=dtype) * stride[1] - padding[1]
    tap_y = (torch.arange(kh, device=input.device, dtype=dtype) * dilation[0]).repeat_interleave(kw)
    tap_x = (torch.arange(kw, device=input.device, dtype=dtype) * dilation[1]).repeat(kh)
    y = moved[:, :, :, 0] + (tap_y[:, None] + line)[None, None, :, :, None]
    x = moved[:, :, :, 1] + (tap_x[:, None] + column)[None, None, :, None, :]
    inside = (y > -1) & (y < h) & (x > -1) & (x < w)
    y, x = torch.where(inside, y, 0.0), torch.where(inside, x, 0.0)
    top, left = y.detach().floor(), x.detach().floor()

    planes = input.to(dtype).reshape(n, offset_groups, c // offset_groups, h * w)
    sampled: Tensor | float = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            row, col = top + dy, left + dx
            share = (y - top if dy else row + 1 - y) * (x - left if dx else col + 1 - x)
            valid = inside & (row >= 0) & (row < h) & (col >= 0) & (col < w)
            at = torch.where(valid, row * w + col, 0.0).long().flatten(2)  # [n, offset_groups, taps * positions]
            pixels = planes.gather(3, at[:, :, None].expand(-1, -1, planes.shape[2], -1))
            part = torch.where(valid.flatten(2)[:, :, None], pixels * share.flatten(2)[:, :, None], 0.0)
            sampled = sampled + part
    assert isinstance(sampled, Tensor)
    if mask is not None:
        sampled = sampled * mask.to(dtype).reshape(n, offset_groups, 1, taps * height * width)
    columns = sampled.reshape(n, groups, group_in * taps, height * width)
    kernels = weight.to(dtype).reshape(groups, out_c // groups, group_in * taps)
    out = torch.matmul(kernels, columns).reshape(n, out_c, height, width)
    return out if bias is None else out + bias.to(dtype)[:, None, None]
