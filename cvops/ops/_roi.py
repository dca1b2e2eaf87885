"""What the RoI ops share in Python: boxes to RoIs, output sizes, the layout rule, the batch rule of vmap."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cvops.ops._register import differentiable, empty_maps, follows_channels_last

Size = int | Sequence[int]


def rois_of(boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """``[K, 5]`` RoIs (image index, x1, y1, x2, y2), of those or of one ``[L, 4]`` tensor of boxes per image."""
    if isinstance(boxes, Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes must be [K, 5] or a list of [L, 4], got a tensor {list(boxes.shape)}")
        return boxes
    if not isinstance(boxes, list | tuple) or not all(isinstance(b, Tensor) for b in boxes) or not boxes:
        raise ValueError(f"boxes must be [K, 5] or a list of [L, 4] tensors, one per image, got {boxes!r}")
    for i, b in enumerate(boxes):
        if b.ndim != 2 or b.shape[1] != 4:
            raise ValueError(f"boxes must be [K, 5] or a list of [L, 4], got boxes[{i}] {list(b.shape)}")
    # Half types do not hold an image index above 256 (2048), and too few digits of a coordinate.
    dtype = torch.promote_types(torch.float32, boxes[0].dtype)
    return torch.cat(
        [torch.cat([b.new_full((b.shape[0], 1), i, dtype=dtype), b.to(dtype)], 1) for i, b in enumerate(boxes)]
    )


def pair_of(output_size: Size) -> tuple[int, int]:
    """Height and width of the output."""
    pair = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    if len(pair) == 1:
        pair *= 2
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"output_size must be one or two integers >= 1, got {output_size!r}")
    return pair[0], pair[1]


def checked(input: Tensor, sampling_ratio: int = 0) -> None:
    if input.ndim != 4:
        raise ValueError(f"input must be [N, C, H, W], got {list(input.shape)}")
    if sampling_ratio > 1 << 15:
        raise ValueError(f"sampling_ratio must be at most {1 << 15}, got {sampling_ratio}")


def new_maps(like: Tensor, shape: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """An output of a fake kernel; channels_last if `like` is."""
    return empty_maps(like, shape, follows_channels_last(like), dtype)


def batch_into_images(info: Any, dims: Sequence[int | None], maps: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """For vmap: the batch of maps as more images, and the RoIs of each sample pointing at its own."""
    size = info.batch_size
    maps = maps.unsqueeze(0).expand(size, *maps.shape) if dims[0] is None else maps.movedim(dims[0], 0)
    return maps.flatten(0, 1), shifted(info, dims[1], rois, maps.shape[1])


def shifted(info: Any, dim: int | None, rois: Tensor, images: int) -> Tensor:
    """RoIs of a batch of samples, ``[B * K, 5]``, with indices into ``B * images`` images.

    An index that names no image stays one.
    """
    size = info.batch_size
    rois = rois.unsqueeze(0).expand(size, *rois.shape) if dim is None else rois.movedim(dim, 0)
    if rois.dtype in (torch.float16, torch.bfloat16):
        rois = rois.float()
    index = rois[..., :1].trunc()
    offset = torch.arange(size, device=rois.device, dtype=rois.dtype)[:, None, None] * images
    valid = (index >= 0) & (index < images)
    index = torch.where(valid, index + offset, torch.full_like(index, -1))
    return torch.cat([index, rois[..., 1:]], -1).flatten(0, 1)


def split_batch(info: Any, out: Tensor) -> Tensor:
    """The result over ``B * n`` RoIs or images as ``[B, n, ...]``."""
    return out.unflatten(0, (info.batch_size, out.shape[0] // info.batch_size))


def scaled_rows(rois: Tensor, scale: float, dtype: torch.dtype) -> Iterator[tuple[int, float, float, float, float]]:
    """For the oracles: image, x1, y1, x2, y2 of each RoI in pixels of the map."""
    for image, *corners in rois.to(dtype).cpu():
        yield (int(image), *(float(corner * torch.tensor(scale, dtype=dtype)) for corner in corners))  # type: ignore[misc]


def pooled_bin(start: float, end: float, pooled: int, p: int, size: int, inclusive: bool, dtype: torch.dtype) -> slice:
    """For the oracles: pixels of bin `p` of roi_pool, or of ps_roi_pool, whose RoIs end before their last pixel."""
    first, last = (int(math.copysign(math.floor(abs(at) + 0.5), at)) for at in (start, end))
    bin = torch.tensor(max(last - first + inclusive, 1), dtype=dtype) / pooled
    limit = max(size if inclusive else size - 1, 0)
    low, high = int((p * bin).floor()) + first, int(((p + 1) * bin).ceil()) + first
    return slice(min(max(low, 0), limit), min(max(high, 0), limit))


def bilinear_average(
    maps: Tensor, rois: Tensor, scale: float, size: tuple[int, int], sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pure-torch oracle of roi_align, one RoI at a time: out = Wy F Wx^T with dense matrices of one axis each."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    source, rows = maps.to(dtype), rois.to(dtype)
    offset = 0.5 if aligned else 0.0
    out = []
    for image, x1, y1, x2, y2 in rows.tolist():
        ends = torch.tensor([x1, y1, x2, y2], dtype=dtype) * torch.tensor(scale, dtype=dtype) - offset
        across = axis_weights(ends[0], ends[2], maps.shape[3], size[1], sampling_ratio, not aligned)
        down = axis_weights(ends[1], ends[3], maps.shape[2], size[0], sampling_ratio, not aligned)
        out.append(torch.einsum("ph,chw,qw->cpq", down.to(maps.device), source[int(image)], across.to(maps.device)))
    return (torch.stack(out) if out else source.new_zeros(0, maps.shape[1], *size)).to(maps.dtype)


def axis_weights(start: Tensor, end: Tensor, size: int, pooled: int, sampling_ratio: int, at_least_one: bool) -> Tensor:
    """``[pooled, size]``: how much each pixel of an axis counts in each bin of a RoI from `start` to `end`."""
    weights = torch.zeros(pooled, size, dtype=start.dtype)
    length = end - start
    if at_least_one:
        length = length.clamp(min=1)
    bin = length / pooled
    grid = sampling_ratio if sampling_ratio > 0 else int(bin.ceil())
    if grid <= 0 or size == 0:
        return weights
    for p in range(pooled):
        at = start + p * bin + (torch.arange(grid, dtype=start.dtype) + 0.5) * bin / grid
        at = at[(at >= -1) & (at <= size)].clamp(min=0)
        low = at.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        rest = torch.where(low == size - 1, torch.zeros_like(at), at - low)
        weights[p].index_add_(0, low, (1 - rest) / grid)
        weights[p].index_add_(0, high, rest / grid)
    return weights


def pooling_with_indices(
    op: str, out_channels: Callable[[int, int], int], double_backward: Callable[..., Tensor] | None = None
) -> Callable[..., Any]:
    """Register fakes, gradients and vmap of a pooling that returns ``(output, indices)``; returns what wrappers call.

    The op is ``op(input, rois, *geometry)``, where the geometry begins with scale, height and width of the output; its
    gradient is ``op_backward(grad, rois, indices, *geometry, batch, channels, height, width)``. `out_channels` gives
    the channels of the output for those of the input and the number of bins. `double_backward(grad_grad, rois,
    indices)` is the derivative of the gradient; None if the op is linear in its input, where it is the op itself.
    """

    def fake(input: Tensor, rois: Tensor, scale: float, height: int, width: int, *rest: Any) -> tuple[Tensor, Tensor]:
        shape = (rois.shape[0], out_channels(input.shape[1], height * width), height, width)
        return new_maps(input, shape), new_maps(input, shape, torch.int32)

    def fake_backward(grad: Tensor, *rest: Any) -> Tensor:
        return new_maps(grad, tuple(rest[-4:]))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, rois, *ctx.geometry = inputs
        ctx.shape = input.shape
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(rois, output[1])

    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grad_input = gradient(grad, *ctx.saved_tensors, *ctx.geometry, *ctx.shape)
        return grad_input, None, *[None] * len(ctx.geometry)

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, rois, indices, *rest = inputs
        ctx.geometry = rest[:-4]
        ctx.save_for_backward(rois, indices)

    def backward_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
        rois, indices = ctx.saved_tensors
        if double_backward is None:
            out = pool(grad_grad, rois, *ctx.geometry)[0]
        else:
            out = double_backward(grad_grad, rois, indices)
        return out, *[None] * (6 + len(ctx.geometry))

    def vmap(info: Any, in_dims: tuple[Any, ...], input: Tensor, rois: Tensor, *rest: Any) -> Any:
        out, indices = getattr(torch.ops.cvops, op)(*batch_into_images(info, in_dims, input, rois), *rest)
        return (split_batch(info, out), split_batch(info, indices)), (0, 0)

    def vmap_backward(
        info: Any, in_dims: tuple[Any, ...], grad: Tensor, rois: Tensor, indices: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        size, (*geometry, batch, channels, height, width) = info.batch_size, rest
        grad, indices = (
            t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in ((grad, in_dims[0]), (indices, in_dims[2]))
        )
        out = getattr(torch.ops.cvops, f"{op}_backward")(
            grad.flatten(0, 1),
            shifted(info, in_dims[1], rois, batch),
            indices.flatten(0, 1),
            *geometry,
            size * batch,
            channels,
            height,
            width,
        )
        return split_batch(info, out), 0

    torch.library.register_fake(f"cvops::{op}")(fake)
    torch.library.register_fake(f"cvops::{op}_backward")(fake_backward)
    pool = differentiable(op, save, backward, vmap)
    gradient = differentiable(f"{op}_backward", save_backward, backward_backward, vmap_backward)
    return pool
