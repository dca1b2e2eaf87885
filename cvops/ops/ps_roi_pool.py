"""Position-sensitive RoIPool: every bin reads channels of its own.

Kernels are in csrc/{ops,cpu,cuda}/ps_roi_pool* and position_sensitive*, geometry in csrc/ops/roi_geometry.h.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvops.ops._register import differentiable
from cvops.ops._roi import (
    Size,
    batch_into_images,
    checked,
    new_maps,
    pair_of,
    pooled_bin,
    rois_of,
    scaled_rows,
    shifted,
    split_batch,
)


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: Size,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Average the pixels in the bins of each region of interest, every bin from its own channels.

    Position-sensitive RoIPool (Dai et al., "R-FCN", arXiv:1605.06409).
    Bin (i, j) of output channel ``c`` reads input channel ``(c * height + i) * width + j``.

    Args:
        input: ``[N, C * height * width, H, W]``; float64, float32, float16 or bfloat16, any strides.
        boxes: ``[K, 5]`` rows of (index of the image, x1, y1, x2, y2), or a list with one ``[L, 4]`` tensor per image;
            in pixels of the image. No gradient reaches them.
        output_size: bins: one number, or (height, width).
        spatial_scale: pixels of the map per pixel of the image.

    Returns:
        ``[K, C, height, width]`` in the dtype of `input`; channels_last if `input` is. Corners are rounded to
        whole pixels; as in torchvision, the last row and column of the map belong to no bin. An empty bin is 0.
        Half types compute in float32. The gradient is deterministic.

    Raises:
        ValueError: for a bad output_size, or boxes of a wrong shape.
        RuntimeError: for channels that are no multiple of the bins, dtypes or devices that do not fit; on the CPU,
            for an image index that is not in ``[0, N)`` (on CUDA, which does not wait for the host, such a RoI gives
            zeros).

    >>> x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 5, 5)
    >>> ps_roi_pool(x, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    checked(input)
    size = pair_of(output_size)
    return _pool(input, rois_of(boxes), float(spatial_scale), *size)[0]  # type: ignore[no-any-return]


class PSRoIPool(nn.Module):
    """:func:`ps_roi_pool` as a module; the arguments are those of the function.

    >>> PSRoIPool(7, 1 / 16)(torch.zeros(1, 98, 50, 50), [torch.tensor([[10.0, 10.0, 90.0, 120.0]])]).shape
    torch.Size([1, 2, 7, 7])
    """

    def __init__(self, output_size: Size, spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


@torch.library.register_fake("cvops::ps_roi_pool")
def _fake(input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], input.shape[1] // (height * width), height, width)
    return new_maps(input, shape), new_maps(input, shape, torch.int32)


@torch.library.register_fake("cvops::ps_roi_pool_backward")
def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    channel_mapping: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    return new_maps(grad, (batch, channels, height, width))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, *ctx.geometry = inputs
    ctx.shape = input.shape
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(rois, output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grad_input = _pool_gradient(grad, *ctx.saved_tensors, *ctx.geometry, *ctx.shape)
    return grad_input, *[None] * 4


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rois, _, *rest = inputs
    ctx.geometry = rest[:-4]
    ctx.save_for_backward(rois)


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    # Linear in the input: the derivative of the gradient is the op itself.
    (rois,) = ctx.saved_tensors
    return _pool(grad_grad, rois, *ctx.geometry)[0], *[None] * 9


def _vmap(
    info: Any, in_dims: tuple[Any, ...], input: Tensor, rois: Tensor, *rest: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    out, channel_mapping = torch.ops.cvops.ps_roi_pool(*batch_into_images(info, in_dims, input, rois), *rest)
    return (split_batch(info, out), split_batch(info, channel_mapping)), (0, 0)


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], grad: Tensor, rois: Tensor, channel_mapping: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    size, (*geometry, batch, channels, height, width) = info.batch_size, rest
    grad, channel_mapping = (
        t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in ((grad, in_dims[0]), (channel_mapping, in_dims[2]))
    )
    out = torch.ops.cvops.ps_roi_pool_backward(
        grad.flatten(0, 1),
        shifted(info, in_dims[1], rois, batch),
        channel_mapping.flatten(0, 1),
        *geometry,
        size * batch,
        channels,
        height,
        width,
    )
    return split_batch(info, out), 0


_pool = differentiable("ps_roi_pool", _save, _backward, _vmap)
_pool_gradient = differentiable("ps_roi_pool_backward", _save_backward, _double_backward, _vmap_backward)


def reference_ps_roi_pool(input: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """Pure-torch oracle: a mean of a slice per bin."""
    height, width = pair_of(output_size)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    maps = input.to(dtype).unflatten(1, (-1, height, width))
    out = []
    for image, x1, y1, x2, y2 in scaled_rows(rois, spatial_scale, dtype):
        for p in range(height):
            rows = pooled_bin(y1, y2, height, p, input.shape[2], False, dtype)
            for q in range(width):
                bin = maps[image, :, p, q, rows, pooled_bin(x1, x2, width, q, input.shape[3], False, dtype)]
                out.append(bin.mean((1, 2)) if bin.numel() else bin.sum((1, 2)))
    if not out:
        return input.new_zeros(0, maps.shape[1], height, width)
    return torch.stack(out, 1).unflatten(1, (-1, height, width)).movedim(1, 0).to(input.dtype)
