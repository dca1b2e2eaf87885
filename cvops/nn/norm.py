"""Normalisation by name, batch norm with fixed statistics, and what such a norm can be instead of a layer: a fold into
the convolution before it, or one pass with the activation after it. Where a norm goes in a block is in `conv.py` and
`residual.py`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.ops._register import transforming
from cvops.ops.batch_norm import batch_norm_act_, fold_batch_norm, frozen_batch_norm

Norm = Callable[[int], nn.Module]
"""Makes a normalisation layer for a number of channels, e.g. `partial(nn.BatchNorm2d, eps=1e-3)`."""

NormName = Literal["batch", "frozen", "group"]
GROUPS = 32  # of group norm, as published


class FrozenBatchNorm2d(nn.Module):
    """Batch norm that never learns: statistics, scale and shift are buffers, used alike in train and eval mode. What
    detectors run a pretrained backbone with, as their batches are too small for statistics. [N, C, H, W] ->
    [N, C, H, W]; loads the entries of `nn.BatchNorm2d`.

    >>> layer = FrozenBatchNorm2d(4).train()
    >>> layer(torch.full((2, 4, 3, 3), 5.0)).mean().round(), list(layer.parameters())
    (tensor(5.), [])
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        if takes_frozen_norm(self, x):
            return apply_frozen_norm(self, x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps:g}"


def takes_frozen_norm(norm: Any, x: Any) -> bool:
    """Whether `apply_frozen_norm` can stand in for the forward of `norm`, which may be anybody's frozen batch norm."""
    return (
        not is_traced(x)
        and x.is_floating_point()
        and x.ndim == 4
        and all((t.shape, t.dtype, t.device) == (x.shape[1:2], x.dtype, x.device) for t in _attributes(norm))
    )


def is_traced(x: Any) -> bool:
    """Whether layers called with `x` are being recorded, and stay apart for it: compilers and exporters merge parts
    better, and a proxy of torch.fx, or a subclass of tensors, sees them."""
    return type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._is_tracing()


def is_watched(layer: nn.Module) -> bool:
    """Whether hooks wait for `layer` to be called."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()
    )


def apply_frozen_norm(norm: Any, x: Tensor) -> Tensor:
    """`x` [N, C, H, W] after `norm`, with gradients, and keeping nothing of the size of `x` for them."""
    return frozen_batch_norm(x, *_attributes(norm), norm.eps)


def _attributes(norm: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return norm.running_mean, norm.running_var, norm.weight, norm.bias


FixedNorm = nn.BatchNorm2d | FrozenBatchNorm2d
"""A batch norm whose statistics do not depend on the batch: the second always, the first in eval mode."""


def is_fixed(norm: nn.Module) -> TypeGuard[FixedNorm]:
    """Whether `norm`, in the mode that it is in, multiplies and shifts each channel by fixed numbers.

    >>> is_fixed(nn.BatchNorm2d(4)), is_fixed(nn.BatchNorm2d(4).eval()), is_fixed(FrozenBatchNorm2d(4))
    (False, True, True)
    """
    if isinstance(norm, nn.BatchNorm2d):
        return not norm.training and norm._buffers["running_mean"] is not None
    return isinstance(norm, FrozenBatchNorm2d)


def fold_norm(norm: FixedNorm, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals `norm` after a convolution of `weight` [C, ...] and `bias` [C].
    Differentiable; in the dtype of `weight`. The norm has to be fixed (`is_fixed`), or anybody's frozen one.

    >>> x, conv, norm = torch.randn(1, 3, 5, 5), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    >>> torch.allclose(F.conv2d(x, *fold_norm(norm, conv.weight, conv.bias)), norm(conv(x)), atol=1e-6)
    True
    """
    entries = _entries(norm, weight.dtype)
    weight, shift = fold_batch_norm(weight, bias, *entries, norm.eps)
    if not transforming() and not any(t is not None and t.requires_grad for t in (bias, *entries)):
        shift = shift.detach()  # made of constants: nobody is to sum its gradient over the maps
    return weight, shift


def apply_norm_(norm: FixedNorm, x: Tensor, activation: str | None) -> Tensor:
    """`x` [N, C, ...] after `norm`, which has to be fixed (`is_fixed`), and one of the activations of
    `cvops.ops.depthwise_conv2d` or None; in the place of `x`, and without gradients."""
    return batch_norm_act_(x, *_entries(norm, x.dtype), norm.eps, activation)


def _entries(norm: FixedNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mean, variance, scale and shift."""
    # Not norm.weight: attributes of a module are slow to find, which adds up over the layers of a network.
    buffers = norm._buffers
    learned: Mapping[str, Tensor | None] = norm._parameters or buffers
    if "weight" not in learned or "bias" not in learned:  # pruned
        learned = {"weight": norm.weight, "bias": norm.bias}
    entries = buffers["running_mean"], buffers["running_var"], learned["weight"], learned["bias"]
    mean, var, gain, offset = [t if t is None or t.dtype == dtype else t.to(dtype) for t in entries]
    assert mean is not None
    assert var is not None
    return mean, var, gain, offset


def make_norm(name: NormName, eps: float = 1e-5, momentum: float = 0.1) -> Norm:
    """The maker of normalisation layers called `name`: `batch`, `frozen` (`FrozenBatchNorm2d`) or `group` (Wu and He
    2018, arXiv:1803.08494, 32 groups); `momentum` is of the first only. Raises `ValueError` for
    another name.

    >>> make_norm("group")(64).num_groups
    32
    """
    if name == "batch":
        return partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
    if name == "frozen":
        return partial(FrozenBatchNorm2d, eps=eps)
    if name == "group":
        return partial(nn.GroupNorm, GROUPS, eps=eps)
    raise ValueError(f"norm must be 'batch', 'frozen' or 'group', got {name!r}")
