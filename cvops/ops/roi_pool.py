"""RoIPool: the largest value in the bins of each region of interest.

Kernels are in csrc/{ops,cpu,cuda}/roi_pool*, geometry in csrc/ops/roi_geometry.h.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvops.ops._roi import (
    Size,
    checked,
    pair_of,
    pooled_bin,
    pooling_with_indices,
    rois_of,
    scaled_rows,
)


def roi_pool(input: Tensor, boxes: Tensor | Sequence[Tensor], output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """Take the largest value in the bins of each region of interest (Girshick, "Fast R-CNN", arXiv:1504.08083).

    Corners are rounded to whole pixels, the last one belongs to the RoI, and bins may share a row or column.

    Args:
        input: ``[N, C, H, W]``; float64, float32, float16 or bfloat16, any strides.
        boxes: ``[K, 5]`` rows of (index of the image, x1, y1, x2, y2), or a list with one ``[L, 4]`` tensor per image;
            in pixels of the image. No gradient reaches them.
        output_size: bins: one number, or (height, width).
        spatial_scale: pixels of the map per pixel of the image.

    Returns:
        ``[K, C, height, width]`` in the dtype of `input`; channels_last if `input` is. A bin outside of the map is 0;
        NaN is never the largest. The gradient goes to the first pixel that was the largest; it is deterministic.

    Raises:
        ValueError: for a bad output_size, or boxes of a wrong shape.
        RuntimeError: for dtypes or devices that do not fit; on the CPU, for an image index that is not in ``[0, N)``
            (on CUDA, which does not wait for the host, such a RoI gives zeros).

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> roi_pool(x, torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]]), 2)
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    checked(input)
    return _pool(input, rois_of(boxes), float(spatial_scale), *pair_of(output_size))[0]  # type: ignore[no-any-return]


class RoIPool(nn.Module):
    """:func:`roi_pool` as a module; the arguments are those of the function.

    >>> RoIPool(7, 1 / 16)(torch.zeros(1, 3, 50, 50), [torch.tensor([[10.0, 10.0, 90.0, 120.0]])]).shape
    torch.Size([1, 3, 7, 7])
    """

    def __init__(self, output_size: Size, spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


def _double_backward(grad_grad: Tensor, rois: Tensor, argmax: Tensor) -> Tensor:
    """What the pixels that were the largest got, 0 for bins without one."""
    images, channels = grad_grad.shape[:2]
    image = rois[:, 0].trunc()
    valid = (image >= 0) & (image < images)
    image = torch.where(valid, image, 0).long()[:, None, None, None]
    channel = torch.arange(channels, device=argmax.device)[:, None, None]
    flat = grad_grad.reshape(images, channels, -1)
    if flat.numel() == 0:
        return torch.zeros_like(argmax, dtype=grad_grad.dtype)
    taken = flat[image, channel, argmax.clamp(min=0).long()]
    return torch.where((argmax >= 0) & valid[:, None, None, None], taken, 0)


_pool = pooling_with_indices("roi_pool", lambda channels, bins: channels, _double_backward)


def reference_roi_pool(input: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """Pure-torch oracle: a maximum of a slice per bin."""
    height, width = pair_of(output_size)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    out = input.new_zeros(rois.shape[0], input.shape[1], height, width)
    for k, (image, x1, y1, x2, y2) in enumerate(scaled_rows(rois, spatial_scale, dtype)):
        for p in range(height):
            rows = pooled_bin(y1, y2, height, p, input.shape[2], True, dtype)
            for q in range(width):
                columns = pooled_bin(x1, x2, width, q, input.shape[3], True, dtype)
                bin = input[image, :, rows, columns]
                if bin.numel():
                    out[k, :, p, q] = bin.flatten(1).max(1).values  # of equals the first, not a share for each
    return out
