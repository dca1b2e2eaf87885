"""RoIAlign, on one feature map or on all levels of a pyramid in one call.

Kernels are in csrc/{ops,cpu,cuda}/roi_align*, geometry in csrc/ops/roi_geometry.h.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvops.ops._register import differentiable, transforming
from cvops.ops._roi import (
    Size,
    batch_into_images,
    bilinear_average,
    checked,
    new_maps,
    pair_of,
    rois_of,
    shifted,
    split_batch,
)


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average bilinear samples in the bins of each region of interest (He et al., "Mask R-CNN", arXiv:1703.06870).

    Args:
        input: ``[N, C, H, W]``; float64, float32, float16 or bfloat16, any strides.
        boxes: ``[K, 5]`` rows of (index of the image, x1, y1, x2, y2), or a list with one ``[L, 4]`` tensor per image;
            in pixels of the image. Float32 boxes go with half-precision maps. No gradient reaches them.
        output_size: bins: one number, or (height, width).
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 or less takes about one per pixel of the map,
            ``ceil(roi_size / output_size)``.
        aligned: shift by half a pixel, so that pixel (0, 0) covers [0, 1); otherwise, as in the first publications, it
            is centred at 0, and a RoI is at least one pixel large.

    Returns:
        ``[K, C, height, width]`` in the dtype of `input`; channels_last if `input` is. Samples more than a pixel
        outside of the map count as zero, and so does a RoI with a coordinate that is NaN or infinite. Half types
        compute in float32. The gradient is deterministic.

    Raises:
        ValueError: for a bad output_size or sampling_ratio, or boxes of a wrong shape.
        RuntimeError: for dtypes or devices that do not fit; on the CPU, for an image index that is not in ``[0, N)``. A
            CUDA kernel would have to wait for the host to raise: there such a RoI gives zeros and reads nothing.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> roi_align(x, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]), 2, aligned=True)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    checked(input, sampling_ratio)
    size = pair_of(output_size)
    return _align(input, rois_of(boxes), float(spatial_scale), *size, sampling_ratio, aligned)  # type: ignore[no-any-return]


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: Size,
    scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_scale: int = 224,
    canonical_level: int = 4,
) -> Tensor:
    """:func:`roi_align` of each box on the level of a feature pyramid that fits its size, all levels in one call.

    The level is ``floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6)``, clamped to the levels that the
    first and the last scale stand for (Lin et al., "Feature Pyramid Networks", arXiv:1612.03144, eq. 1). No shape
    depends on it, so the call exports and compiles as one piece.

    Args:
        features: up to 16 maps ``[N, C, H_i, W_i]`` of one dtype, finest first.
        boxes: as in :func:`roi_align`.
        output_size: bins: one number, or (height, width).
        scales: pixels of each map per pixel of the image, halving from level to level.
        sampling_ratio, aligned: as in :func:`roi_align`.
        canonical_scale: side of a box that belongs to `canonical_level`.
        canonical_level: its level, where a map of scale ``2 ** -i`` is level ``i``.

    Returns:
        ``[K, C, height, width]``; channels_last if the first map is. A box of negative or NaN area, or on a level
        between the scales that has no map, gives zeros, as in torchvision. With one map every box is on it.

    Raises:
        ValueError, RuntimeError: as :func:`roi_align`, and if the numbers of features and scales differ.

    >>> maps = [torch.zeros(1, 8, 64, 64), torch.ones(1, 8, 32, 32)]
    >>> boxes = [torch.tensor([[0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 200.0, 200.0]])]
    >>> multiscale_roi_align(maps, boxes, 7, [1 / 4, 1 / 8]).mean((1, 2, 3))
    tensor([0., 1.])
    """
    features = list(features)
    if not features or len(features) != len(scales):
        raise ValueError(f"scales must be one number per feature map, got {len(scales)} for {len(features)}")
    for feature in features:
        checked(feature, sampling_ratio)
    rois = rois_of(boxes)
    rest = (*pair_of(output_size), sampling_ratio, aligned)
    scales = [float(s) for s in scales]
    if transforming():
        return _by_level(features, rois, scales, rest, canonical_scale, canonical_level)
    return torch.ops.cvops.multiscale_roi_align(features, rois, scales, *rest, canonical_scale, canonical_level)


class RoIAlign(nn.Module):
    """:func:`roi_align` as a module; the arguments are those of the function.

    >>> RoIAlign(7, 1 / 4, 2)(torch.zeros(1, 3, 50, 50), [torch.tensor([[10.0, 10.0, 90.0, 120.0]])]).shape
    torch.Size([1, 3, 7, 7])
    """

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int, aligned: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class MultiScaleRoIAlign(nn.Module):
    """:func:`multiscale_roi_align` over a dict of features, scales inferred from their sizes; as in torchvision.

    Args:
        featmap_names: keys of the features to use; the others are ignored.
        output_size: bins: one number, or (height, width).
        sampling_ratio: as in :func:`roi_align`.
        canonical_scale, canonical_level: as in :func:`multiscale_roi_align`.

    The scales are inferred at the first call, as the power of two that is nearest to feature size / image size, and
    kept.

    >>> pool = MultiScaleRoIAlign(["0", "1"], 7, 2)
    >>> features = {"0": torch.zeros(1, 8, 64, 64), "1": torch.zeros(1, 8, 32, 32), "rest": torch.zeros(1)}
    >>> pool(features, [torch.tensor([[0.0, 0.0, 50.0, 60.0]])], [(256, 256)]).shape
    torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: Size,
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        self.output_size = pair_of(output_size)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.scales: list[float] | None = None

    def forward(
        self, x: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        features = [value for name, value in x.items() if name in self.featmap_names]
        if not features:
            raise ValueError(f"x must hold some of {self.featmap_names}, got {list(x)}")
        if self.scales is None:
            if not image_shapes:
                raise ValueError("image_shapes must not be empty")
            height = max(shape[0] for shape in image_shapes)
            self.scales = [2.0 ** round(math.log2(feature.shape[-2] / height)) for feature in features]
        return multiscale_roi_align(
            features,
            boxes,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
        )

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, sampling_ratio={self.sampling_ratio}"
        )


@torch.library.register_fake("cvops::roi_align")
def _fake(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    return new_maps(input, (rois.shape[0], input.shape[1], height, width))


@torch.library.register_fake("cvops::roi_align_backward")
def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return new_maps(grad, (batch, channels, height, width))


@torch.library.register_fake("cvops::multiscale_roi_align")
def _fake_multiscale(
    features: Sequence[Tensor], rois: Tensor, scales: Sequence[float], height: int, width: int, *rest: Any
) -> Tensor:
    return new_maps(features[0], (rois.shape[0], features[0].shape[1], height, width))


@torch.library.register_fake("cvops::multiscale_roi_align_backward")
def _fake_multiscale_backward(
    grad: Tensor,
    rois: Tensor,
    scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: int,
    canonical_level: int,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
) -> list[Tensor]:
    return [new_maps(grad, (batch, grad.shape[1], h, w)) for h, w in zip(heights, widths, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, *ctx.geometry = inputs
    ctx.shape = input.shape
    ctx.save_for_backward(rois)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    scale, height, width, sampling_ratio, aligned = ctx.geometry
    grad_input = _align_gradient(grad, rois, scale, height, width, *ctx.shape, sampling_ratio, aligned)
    return grad_input, None, None, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rois, scale, height, width, *_, sampling_ratio, aligned = inputs
    ctx.geometry = scale, height, width, sampling_ratio, aligned
    ctx.save_for_backward(rois)


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    # Linear in the input: the derivative of the gradient is the op itself.
    (rois,) = ctx.saved_tensors
    return _align(grad_grad, rois, *ctx.geometry), *[None] * 10


def _vmap(info: Any, in_dims: tuple[Any, ...], input: Tensor, rois: Tensor, *rest: Any) -> tuple[Tensor, int]:
    out = torch.ops.cvops.roi_align(*batch_into_images(info, in_dims, input, rois), *rest)
    return split_batch(info, out), 0


def _vmap_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    rois: Tensor,
    scale: float,
    ph: int,
    pw: int,
    batch: int,
    *rest: Any,
) -> tuple[Tensor, int]:
    size = info.batch_size
    grad = grad.unsqueeze(0).expand(size, *grad.shape) if in_dims[0] is None else grad.movedim(in_dims[0], 0)
    rois = shifted(info, in_dims[1], rois, batch)
    out = torch.ops.cvops.roi_align_backward(grad.flatten(0, 1), rois, scale, ph, pw, size * batch, *rest)
    return split_batch(info, out), 0


_align = differentiable("roi_align", _save, _backward, _vmap)
_align_gradient = differentiable("roi_align_backward", _save_backward, _double_backward, _vmap_backward)


def _save_multiscale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, *ctx.geometry = inputs
    ctx.sizes = features[0].shape[0], [f.shape[2] for f in features], [f.shape[3] for f in features]
    ctx.save_for_backward(rois)


def _backward_multiscale(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    grads = torch.ops.cvops.multiscale_roi_align_backward(grad, rois, *ctx.geometry, *ctx.sizes)
    return grads, *[None] * 8


def _save_multiscale_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, rois, *ctx.geometry, _, _, _ = inputs
    ctx.save_for_backward(rois)


def _double_backward_multiscale(ctx: Any, grad_grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    return torch.ops.cvops.multiscale_roi_align(grad_grads, rois, *ctx.geometry), *[None] * 11


torch.library.register_autograd("cvops::multiscale_roi_align", _backward_multiscale, setup_context=_save_multiscale)
torch.library.register_autograd(
    "cvops::multiscale_roi_align_backward", _double_backward_multiscale, setup_context=_save_multiscale_backward
)


def levels_of(rois: Tensor, scales: Sequence[float], canonical_scale: int = 224, canonical_level: int = 4) -> Tensor:
    """``[K]``: the index of the map that each RoI belongs to, -1 for none; roi_level in csrc/ops/roi_geometry.h."""
    if len(scales) == 1:
        return rois.new_zeros(rois.shape[0], dtype=torch.int64)
    lowest, highest = (int(-torch.tensor(scale, dtype=torch.float32).log2()) for scale in (scales[0], scales[-1]))
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    level = (canonical_level + (area.sqrt() / canonical_scale).log2() + 1e-6).floor().clamp(min=lowest, max=highest)
    index = torch.where(level.isnan(), -1, level - lowest).long()
    return torch.where((index >= 0) & (index < len(scales)), index, -1)


def _by_level(
    features: Sequence[Tensor], rois: Tensor, scales: Sequence[float], rest: tuple[Any, ...], *canonical: int
) -> Tensor:
    """The same from :func:`roi_align`, every RoI on every level: for torch.func, which knows no lists of tensors."""
    levels = levels_of(rois, scales, *canonical)
    out = None
    for i, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        here = torch.where((levels == i)[:, None, None, None], _align(feature, rois, scale, *rest), 0.0)
        out = here if out is None else out + here
    return out  # type: ignore[return-value]


def reference_roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pure-torch oracle: a product of three matrices per RoI."""
    return bilinear_average(input, rois, spatial_scale, pair_of(output_size), sampling_ratio, aligned)


def reference_multiscale_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: Size,
    scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_scale: int = 224,
    canonical_level: int = 4,
) -> Tensor:
    """Pure-torch oracle: :func:`reference_roi_align` on the level of each RoI."""
    levels = levels_of(rois, scales, canonical_scale, canonical_level).tolist()
    size = pair_of(output_size)
    none = features[0].new_zeros(1, features[0].shape[1], *size)
    out = [
        none
        if level < 0
        else reference_roi_align(features[level], rois[k : k + 1], size, scales[level], sampling_ratio, aligned)
        for k, level in enumerate(levels)
    ]
    return torch.cat(out) if out else none[:0]
