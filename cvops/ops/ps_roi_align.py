"""Position-sensitive RoIAlign: every bin reads channels of its own.

Kernels are in csrc/{ops,cpu,cuda}/ps_roi_align* and position_sensitive*, geometry in csrc/ops/roi_geometry.h.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from cvops.ops._roi import (
    Size,
    bilinear_average,
    checked,
    pair_of,
    pooling_with_indices,
    rois_of,
)


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Average bilinear samples in the bins of each region of interest, every bin from its own channels.

    Position-sensitive RoIAlign (Li et al., "Light-Head R-CNN", arXiv:1711.07264).
    Bin (i, j) of output channel ``c`` reads input channel ``(c * height + i) * width + j``.

    Args:
        input: ``[N, C * height * width, H, W]``; float64, float32, float16 or bfloat16, any strides.
        boxes: ``[K, 5]`` rows of (index of the image, x1, y1, x2, y2), or a list with one ``[L, 4]`` tensor per image;
            in pixels of the image. No gradient reaches them.
        output_size: bins: one number, or (height, width).
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 or less takes about one per pixel of the map,
            ``ceil(roi_size / output_size)``.

    Returns:
        ``[K, C, height, width]`` in the dtype of `input`; channels_last if `input` is. Boxes are shifted by half a
        pixel, as with ``aligned=True`` in :func:`roi_align`. An empty RoI gives 0 (torchvision: 0 / 0).
        Half types compute in float32. The gradient is deterministic.

    Raises:
        ValueError: for a bad output_size or sampling_ratio, or boxes of a wrong shape.
        RuntimeError: for channels that are no multiple of the bins, dtypes or devices that do not fit; on the CPU,
            for an image index that is not in ``[0, N)`` (on CUDA, which does not wait for the host, such a RoI gives
            zeros).

    >>> x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4)
    >>> ps_roi_align(x, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    checked(input, sampling_ratio)
    size = pair_of(output_size)
    return _pool(input, rois_of(boxes), float(spatial_scale), *size, sampling_ratio)[0]  # type: ignore[no-any-return]


class PSRoIAlign(nn.Module):
    """:func:`ps_roi_align` as a module; the arguments are those of the function.

    >>> PSRoIAlign(7, 1 / 16, 2)(torch.zeros(1, 98, 50, 50), [torch.tensor([[10.0, 10.0, 90.0, 120.0]])]).shape
    torch.Size([1, 2, 7, 7])
    """

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
        )


_pool = pooling_with_indices("ps_roi_align", lambda channels, bins: channels // bins)


def reference_ps_roi_align(
    input: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0, sampling_ratio: int = -1
) -> Tensor:
    """Pure-torch oracle: averages of all channels in all bins, of which each bin keeps its own channels."""
    height, width = pair_of(output_size)
    full = bilinear_average(input, rois, spatial_scale, (height, width), sampling_ratio, True)
    full = full.unflatten(1, (-1, height, width))  # [K, C, height, width, height, width]
    return full.diagonal(0, 2, 4).diagonal(0, 2, 3)
