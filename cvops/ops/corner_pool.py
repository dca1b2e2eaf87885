"""Corner pooling: the running maximum of a map towards one of its sides.

Kernels are in csrc/{ops,cpu,cuda}/corner_pool*. Only the input is kept for the gradient, which finds the maxima again:
no tensor of indices is made. The gradient of the gradient, and the derivative in forward mode, is a third op,
``corner_pool_gather``, that takes values from where the maxima are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cvops.ops._random import check_floating
from cvops.ops._register import batch_first, differentiable, empty_dense_like

DIRECTIONS = ("top", "bottom", "left", "right")  # the index is the argument of the kernels


def corner_pool(input: Tensor, direction: str) -> Tensor:
    """Corner pooling of CornerNet (Law & Deng, "CornerNet: Detecting Objects as Paired Keypoints", arXiv:1808.01244).

    Every pixel becomes the maximum of itself and of all pixels on one side of it. The name says which way the maximum
    moves, as in mmcv and in the authors' code: ``'top'`` takes pixels from y to the bottom of the map, ``'bottom'``
    from the top of the map to y, ``'left'`` from x to the right end, ``'right'`` from the left end to x.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; float64, float32, float16 or bfloat16, any strides.
        direction: ``'top'``, ``'bottom'``, ``'left'`` or ``'right'``.

    Returns:
        The shape and dtype of `input`; channels_last if `input` is. NaN is larger than any number, so it reaches all
        pixels after it. The gradient goes to the pixel that holds the maximum; of equal ones, to the one nearest to
        the output pixel (as ``torch.cummax`` along the walk does); of NaNs as well.

    Raises:
        ValueError: for another direction, rank or dtype.

    >>> x = torch.tensor([[[1.0, 3.0, 2.0], [2.0, 0.0, 1.0]]])
    >>> corner_pool(x, "top")
    tensor([[[2., 3., 2.],
             [2., 0., 1.]]])
    >>> corner_pool(x, "left")
    tensor([[[3., 3., 2.],
             [2., 1., 1.]]])
    """
    index = _index_of(direction)
    if input.ndim not in (3, 4):
        raise ValueError(f"input must be [N, C, H, W] or [C, H, W], got {list(input.shape)}")
    check_floating(input)
    if input.ndim == 3:
        return _pool(input.unsqueeze(0), index).squeeze(0)  # type: ignore[no-any-return]
    return _pool(input, index)  # type: ignore[no-any-return]


class CornerPool(nn.Module):
    """:func:`corner_pool` as a module.

    >>> CornerPool("right")(torch.tensor([[[1.0, 0.0, 4.0, 2.0]]]))
    tensor([[[1., 1., 4., 4.]]])
    """

    def __init__(self, direction: str) -> None:
        super().__init__()
        _index_of(direction)
        self.direction = direction

    def forward(self, input: Tensor) -> Tensor:
        return corner_pool(input, self.direction)

    def extra_repr(self) -> str:
        return f"direction={self.direction!r}"


def _index_of(direction: str) -> int:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
    return DIRECTIONS.index(direction)


@torch.library.register_fake("cvops::corner_pool")
def _fake(input: Tensor, direction: int) -> Tensor:
    return empty_dense_like(input)


@torch.library.register_fake("cvops::corner_pool_backward")
@torch.library.register_fake("cvops::corner_pool_gather")
def _fake_moved(moved: Tensor, input: Tensor, direction: int) -> Tensor:
    return empty_dense_like(input)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, ctx.direction = inputs
    ctx.save_for_backward(input)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _spread(grad, ctx.saved_tensors[0], ctx.direction), None


# Moving a tensor to or from the maxima is linear in it, and does not change while the maxima stay where they are.
def _save_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, input, ctx.direction = inputs
    ctx.save_for_backward(input)


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _gather(grad, ctx.saved_tensors[0], ctx.direction), None, None


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _spread(grad, ctx.saved_tensors[0], ctx.direction), None, None


def _more_images(op: str) -> Callable[..., Any]:
    """The vmap rule: a batch of maps is more images."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        *maps, direction = args
        flat = (t.flatten(0, 1) for t in batch_first(info, in_dims, maps))
        out = getattr(torch.ops.cvops, op)(*flat, direction)
        return out.unflatten(0, (info.batch_size, out.shape[0] // info.batch_size)), 0

    return rule


_pool = differentiable("corner_pool", _save, _backward, _more_images("corner_pool"))
_spread = differentiable("corner_pool_backward", _save_input, _spread_backward, _more_images("corner_pool_backward"))
_gather = differentiable("corner_pool_gather", _save_input, _gather_backward, _more_images("corner_pool_gather"))


def reference_corner_pool(input: Tensor, direction: str) -> Tensor:
    """Pure-torch oracle: cummax, of the flipped tensor for the directions that start at the far end."""
    axis = -2 if direction in ("top", "bottom") else -1
    if direction in ("bottom", "right"):
        return input.cummax(axis).values
    return input.flip(axis).cummax(axis).values.flip(axis)
