"""Batch norm of fixed statistics: folded into the weight and bias of the layer before it, or applied in one pass, with
gradients, or in place with the activation after it.

Kernels are in csrc/{ops,cpu,cuda}/batch_norm*.
"""

from typing import Any

import torch
from torch import Tensor

from cvops.ops._activation import activation_index
from cvops.ops._register import autocast_to, batch_first, differentiable, empty_dense_like


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that equals a batch norm in eval mode after a convolution or a linear layer.

    scale = norm_weight / sqrt(running_var + eps); the results are weight * scale, for each output channel, and
    (bias - running_mean) * scale + norm_bias (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1).

    Args:
        weight: ``[C, ...]`` of two dimensions or more, output channels first; float64, float32, float16 or bfloat16,
            any strides.
        bias: ``[C]`` or None for 0; this and the others in the dtype of `weight`.
        running_mean, running_var: ``[C]``, the statistics.
        norm_weight, norm_bias: ``[C]``, scale and shift that the norm learned; None for 1 and 0.
        eps: added to the variance.

    Returns:
        (weight ``[C, ...]`` in the memory format of `weight`, bias ``[C]``). Differentiable by all tensors. Half types
        compute in float32.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    >>> fold_batch_norm(torch.ones(2, 1), None, torch.tensor([1.0, 3.0]), torch.tensor([4.0, 1.0]), eps=0.0)
    (tensor([[0.5000],
            [1.0000]]), tensor([-0.5000, -3.0000]))
    """
    return _fold(weight, bias, running_mean, running_var, norm_weight, norm_bias, eps)  # type: ignore[no-any-return]


def frozen_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(input - running_mean) / sqrt(running_var + eps) * norm_weight + norm_bias: batch norm of fixed statistics.

    What `FrozenBatchNorm2d` of torchvision and detectron2 computes, in one pass instead of two, and
    `torch.nn.functional.batch_norm` with ``training=False`` without keeping `input` for the backward: unless a
    statistic, scale or shift is differentiated, nothing of the size of the maps is saved.

    Args:
        input: ``[N, C, ...]`` of two dimensions or more; float64, float32, float16 or bfloat16, any strides.
        running_mean, running_var, norm_weight, norm_bias, eps: as in `fold_batch_norm`, in the dtype of `input`.

    Returns:
        ``[N, C, ...]`` in the memory format of `input`. Differentiable by all tensors. Half types compute in float32.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    >>> frozen_batch_norm(torch.tensor([[3.0, 7.0]]), torch.tensor([1.0, 3.0]), torch.tensor([4.0, 1.0]), eps=0.0)
    tensor([[1., 4.]])
    """
    return _frozen(input, running_mean, running_var, norm_weight, norm_bias, eps)  # type: ignore[no-any-return]


def batch_norm_act_(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    """activation((input - running_mean) / sqrt(running_var + eps) * norm_weight + norm_bias) in the place of `input`.

    The inner call of `cvops.nn.ConvNormAct` in inference: no gradient, no vmap.

    Args:
        input: ``[N, C, ...]``, contiguous or channels_last; float64, float32, float16 or bfloat16.
        running_mean, running_var, norm_weight, norm_bias, eps: as in `fold_batch_norm`, in the dtype of `input`.
        activation: None, ``'relu'``, ``'relu6'``, ``'silu'`` or ``'hardswish'``.

    Returns:
        `input`.

    Raises:
        ValueError: for another activation.
        RuntimeError: for shapes, memory formats, dtypes or devices that do not fit.

    >>> batch_norm_act_(torch.tensor([[1.0, -2.0]]), torch.zeros(2), torch.ones(2), eps=0.0, activation="relu")
    tensor([[1., 0.]])
    """
    _act(input, running_mean, running_var, norm_weight, norm_bias, eps, activation_index(activation))
    return input


_act = torch.ops.cvops.batch_norm_act_.default


@torch.library.register_fake("cvops::batch_norm_act_")
def _fake_act(input: Tensor, *rest: Any) -> None:
    return None


@torch.library.register_fake("cvops::fold_batch_norm")
def _fake(weight: Tensor, bias: Tensor | None, running_mean: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_dense_like(weight), running_mean.new_empty(running_mean.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_weight: Tensor | None, grad_bias: Tensor | None) -> tuple[Tensor | None, ...]:
    weight, bias, mean, var, gain, _ = ctx.saved_tensors
    wide = torch.promote_types(weight.dtype, torch.float32)
    deviation = (var.to(wide) + ctx.eps).rsqrt()
    scale = deviation if gain is None else deviation * gain
    rows = scale.view(-1, *[1] * (weight.ndim - 1))
    by_weight = weight.new_zeros(weight.shape) if grad_weight is None else grad_weight
    by_shift = mean.new_zeros(mean.shape, dtype=wide) if grad_bias is None else grad_bias.to(wide)
    by_centred = by_shift * scale
    by_gain = by_var = None
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
        by_rows = (by_weight.to(wide) * weight).flatten(1).sum(1)
        by_gain = (by_rows + by_shift * (-mean if bias is None else bias - mean)) * deviation
        by_var = -0.5 * by_gain * scale * deviation
    found = (by_weight * rows, by_centred, -by_centred, by_var, by_gain, by_shift)
    wanted = zip(ctx.saved_tensors, found, ctx.needs_input_grad, strict=False)
    return *(grad.to(t.dtype) if need else None for t, grad, need in wanted), None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """A batch of layers is one of more channels."""
    size = info.batch_size
    *tensors, eps = args
    flat = [_merged(size, entry, dim) for entry, dim in zip(tensors, in_dims[:6], strict=True)]
    weight, bias = torch.ops.cvops.fold_batch_norm(*flat, eps)
    channels = bias.shape[0] // size
    return (weight.unflatten(0, (size, channels)), bias.unflatten(0, (size, channels))), (0, 0)


def _merged(size: int, entry: Tensor | None, dim: int | None) -> Tensor | None:
    """Entries of a batch of layers in a row."""
    if entry is None:
        return None
    batched = entry.expand(size, *entry.shape) if dim is None else entry.movedim(dim, 0)
    return batched.flatten(0, 1)


_fold = differentiable("fold_batch_norm", _save, _backward, _vmap)
autocast_to("fold_batch_norm", torch.float32)


@torch.library.register_fake("cvops::frozen_batch_norm")
def _fake_frozen(input: Tensor, *rest: Any) -> Tensor:
    return empty_dense_like(input)


def _save_frozen(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, mean, var, gain, _, ctx.eps = inputs
    ctx.save_for_backward(input if any(ctx.needs_input_grad[1:4]) else None, mean, var, gain)


def _backward_frozen(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, mean, var, gain = ctx.saved_tensors
    by_input = by_mean = by_var = by_gain = by_offset = None
    if ctx.needs_input_grad[0]:
        by_input = frozen_batch_norm(grad, torch.zeros_like(mean), var, gain, None, ctx.eps)
    wide = torch.promote_types(grad.dtype, torch.float32)
    axes = [axis for axis in range(grad.ndim) if axis != 1]
    if ctx.needs_input_grad[4]:
        by_offset = grad.sum(axes, dtype=wide)
    if input is not None:
        deviation = (var.to(wide) + ctx.eps).rsqrt()
        scale = deviation if gain is None else deviation * gain
        centred = input - mean.to(wide).view(-1, *[1] * (grad.ndim - 2))
        by_mean = -grad.sum(axes, dtype=wide) * scale
        by_gain = (grad * centred).sum(axes) * deviation
        by_var = -0.5 * by_gain * scale * deviation
    found = (by_input, by_mean, by_var, by_gain, by_offset)
    wanted = zip(found, ctx.needs_input_grad, strict=False)
    return *(g.to(grad.dtype) if g is not None and need else None for g, need in wanted), None


def _vmap_frozen(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """A batch of maps is one of more images, if all have the same norm, and otherwise one of more channels."""
    input, *entries, eps = args
    size = info.batch_size
    maps = batch_first(info, in_dims, [input])[0]
    if all(dim is None for dim in in_dims[1:5]):
        return torch.ops.cvops.frozen_batch_norm(maps.flatten(0, 1), *entries, eps).unflatten(0, (size, -1)), 0
    flat = [_merged(size, entry, dim) for entry, dim in zip(entries, in_dims[1:5], strict=True)]
    out = torch.ops.cvops.frozen_batch_norm(maps.movedim(0, 1).flatten(1, 2), *flat, eps)
    return out.unflatten(1, (size, -1)), 1


_frozen = differentiable("frozen_batch_norm", _save_frozen, _backward_frozen, _vmap_frozen)
autocast_to("frozen_batch_norm", torch.float32)


def reference_fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Pure-torch oracle, in float32 or float64."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale = 1 / (running_var.to(wide) + eps).sqrt()
    scale = scale if norm_weight is None else scale * norm_weight
    shift = (-running_mean.to(wide) if bias is None else bias.to(wide) - running_mean) * scale
    shift = shift if norm_bias is None else shift + norm_bias
    scaled = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def reference_frozen_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Pure-torch oracle, in float32 or float64."""
    wide = torch.promote_types(input.dtype, torch.float32)
    scale = 1 / (running_var.to(wide) + eps).sqrt()
    scale = scale if norm_weight is None else scale * norm_weight
    shift = -running_mean * scale
    shift = shift if norm_bias is None else shift + norm_bias
    ones = [1] * (input.ndim - 2)
    return (input * scale.view(-1, *ones) + shift.view(-1, *ones)).to(input.dtype)
