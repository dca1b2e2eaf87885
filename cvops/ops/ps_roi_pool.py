"""Position-sensitive RoIPool: every bin reads channels of its own.

Kernels are in csrc/{ops,cpu,cuda}/ps_roi_pool* and position_sensitive*, geometry in csrc/ops/roi_geometry.h.
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


_pool = pooling_with_indices("ps_roi_pool", lambda channels, bins: channels // bins)


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
