"""Pasting the masks of boxes into whole images, as Mask R-CNN ends.

Kernels are in csrc/{ops,cpu,cuda}/mask_paste*, geometry in csrc/ops/paste_geometry.h.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvops.ops._register import batch_first, differentiable


def mask_paste(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float | None = 0.5) -> Tensor:
    """Draw the mask of each box into an image of its own (He et al. 2017, "Mask R-CNN", arXiv:1703.06870).

    Coordinates are continuous, as in detectron2's ``paste_masks_in_image``: pixel x has its centre at ``x + 0.5``,
    which lies at ``(x + 0.5 - x1) / (x2 - x1) * w - 0.5`` among the w cells of the mask; cells are blended bilinearly,
    with zeros around the mask. torchvision's function of that name pads the mask by a cell and rounds the enlarged box
    to whole pixels, so its masks are up to a pixel or two off; it is a Python loop over the masks.

    Args:
        masks: ``[K, 1, h, w]`` or ``[K, h, w]`` probabilities; float64, float32, float16 or bfloat16 (computed in
            float32).
        boxes: ``[K, 4]`` as ``(x1, y1, x2, y2)`` in pixels, floating; they may reach out of the image. No gradient
            reaches them.
        image_size: (height, width) of the image.
        threshold: > 0. None: the values themselves.

    Returns:
        bool ``[K, height, width]``: whether the blended value is at least `threshold`. With ``threshold=None`` the
        values, in the dtype of `masks` and differentiable by them. A box without positive finite extents, or with a
        NaN, holds nothing. No temporary of the size of the images is made.

    Raises:
        ValueError: shapes or a threshold that do not fit. RuntimeError: dtypes or devices that do not.

    >>> mask_paste(torch.ones(1, 1, 2, 2), torch.tensor([[1.0, 0.0, 3.0, 2.0]]), (3, 4)).int()
    tensor([[[0, 1, 1, 0],
             [0, 1, 1, 0],
             [0, 0, 0, 0]]], dtype=torch.int32)
    """
    if masks.ndim not in (3, 4) or (masks.ndim == 4 and masks.shape[1] != 1):
        raise ValueError(f"masks must be [K, 1, h, w] or [K, h, w], got {list(masks.shape)}")
    if boxes.ndim != 2 or boxes.shape != (masks.shape[0], 4):
        raise ValueError(f"boxes must be [{masks.shape[0]}, 4], got {list(boxes.shape)}")
    height, width = image_size
    if height < 0 or width < 0:
        raise ValueError(f"image_size must be (height, width) >= 0, got {tuple(image_size)}")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be > 0, or None for the values, got {threshold}")
    masks = masks.squeeze(1) if masks.ndim == 4 else masks
    if threshold is None:
        return _paste(masks, boxes.detach(), height, width)  # type: ignore[no-any-return]
    return torch.ops.cvops.mask_paste_binary(  # type: ignore[no-any-return]
        masks.detach(), boxes.detach(), height, width, threshold
    )


@torch.library.register_fake("cvops::mask_paste")
def _fake(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    return masks.new_empty((masks.shape[0], height, width))


@torch.library.register_fake("cvops::mask_paste_binary")
def _fake_binary(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool)


@torch.library.register_fake("cvops::mask_paste_backward")
def _fake_backward(grad: Tensor, boxes: Tensor, mask_height: int, mask_width: int) -> Tensor:
    return grad.new_empty((grad.shape[0], mask_height, mask_width))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].shape[1:]
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient(grad, *ctx.saved_tensors, *ctx.size), None, None, None


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    # Linear in the masks: the derivative of the gradient is the op itself.
    return _paste(grad_grad, *ctx.saved_tensors, *ctx.size), None, None, None


def _vmap_of(op: str) -> Any:
    """The samples of vmap are more masks."""

    def vmap(info: Any, in_dims: tuple[Any, ...], maps: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, int]:
        tensors = [t.flatten(0, 1) for t in batch_first(info, in_dims, [maps, boxes])]
        return getattr(torch.ops.cvops, op)(*tensors, *rest).unflatten(0, (info.batch_size, -1)), 0

    return vmap


_paste = differentiable("mask_paste", _save, _backward, _vmap_of("mask_paste"))
_gradient = differentiable("mask_paste_backward", _save, _double_backward, _vmap_of("mask_paste_backward"))
torch.library.register_vmap("cvops::mask_paste_binary", _vmap_of("mask_paste_binary"))


def reference_mask_paste(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pure-torch oracle of the values of ``[K, h, w]`` masks: `F.grid_sample` over the whole image."""
    dtype = torch.float64 if masks.dtype == torch.float64 else torch.float32
    height, width = image_size
    x1, y1, x2, y2 = boxes.to(dtype)[:, :, None].unbind(1)
    x = (torch.arange(width, dtype=dtype, device=masks.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height, dtype=dtype, device=masks.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    proper = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] - boxes[:, :2]).isfinite()).all(1)[:, None]
    x, y = (torch.where(proper & t.isfinite(), t, 1e6).clamp(-1e6, 1e6) for t in (x, y))
    size = (len(boxes), height, width)
    if 0 in (*size, *masks.shape):
        return masks.new_zeros(size)
    grid = torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], -1)
    return F.grid_sample(masks.to(dtype)[:, None], grid, align_corners=False)[:, 0].to(masks.dtype)
