"""Pooling with the two padding conventions of `conv.py`. Padding never counts: not for maxima, not for means."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn.conv import Padding
from cvops.ops.depthwise_conv2d import same_padding


class Pool2d(nn.Module):
    """Maximum or mean over windows of `kernel_size` pixels; a mean is over the pixels that the window has inside the
    image. [N, C, H, W] -> [N, C, H / stride, W / stride], sizes rounded up (for "symmetric" and even kernels: down).

    kind: "max" or "mean".
    padding: as for convolutions.
    counts_padding: divide by the size of the window where "same" needs uneven padding or a stride, as timm does; what
        TensorFlow does is False.

    >>> Pool2d("mean", 3, 2, padding="same")(torch.ones(1, 1, 4, 4))
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """

    def __init__(
        self,
        kind: Literal["max", "mean"],
        kernel_size: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        padding: Padding = "symmetric",
        counts_padding: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("max", "mean"):
            raise ValueError(f"kind must be 'max' or 'mean', got {kind!r}")
        if dilation > 1 and (kind == "mean" or stride > 1):
            raise ValueError(f"only a maximum with stride 1 can be dilated, got {kind!r} with stride {stride}")
        self.dilation = dilation
        self.kind, self.kernel_size, self.stride, self.padding = kind, kernel_size, stride, padding
        self.counts_padding = counts_padding and padding == "same" and stride > 1

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size, self.stride
        if self.padding == "symmetric" or self.dilation > 1:
            before = ((kernel - 1) // 2 * self.dilation,) * 2
        else:
            axes = (same_padding(size, kernel, stride, self.dilation) for size in x.shape[-2:])
            (top, bottom), (left, right) = axes
            before = top, left
        if self.kind == "mean" and self.counts_padding:
            return F.avg_pool2d(F.pad(x, (left, right, top, bottom)), kernel, stride)
        if self.padding == "same" and stride == 1 and kernel % 2 == 0:  # ceil_mode adds no window at stride 1
            border = (left, right, top, bottom)
            if self.kind == "max":
                return F.max_pool2d(F.pad(x, border, value=float("-inf")), kernel, 1)
            inside = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), border), kernel, 1)
            return F.avg_pool2d(F.pad(x, border), kernel, 1) / inside
        # Windows that overhang on the far side only are those of ceil_mode, which does not count what is outside.
        ceil = self.padding == "same"
        if self.kind == "max":
            if self.dilation > 1:  # torch measures the padding it allows by the undilated window
                (top, left), value = before, float("-inf")
                return F.max_pool2d(F.pad(x, (left, left, top, top), value=value), kernel, stride, 0, self.dilation)
            return F.max_pool2d(x, kernel, stride, before, ceil_mode=ceil)
        return F.avg_pool2d(x, kernel, stride, before, ceil_mode=ceil, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.kernel_size}, stride={self.stride}, padding={self.padding!r}"


class SpatialPyramidPool(nn.Module):
    """The input and its maxima over windows of each of `kernels` pixels, at stride 1, one after the other along the
    channels, widest window first: the spatial pyramid pooling of YOLOv3-SPP and YOLOv4 (Bochkovskiy et al. 2020,
    arXiv:2004.10934, section 3.4; He et al. 2014, arXiv:1406.4729, pooled to one vector).
    [N, C, H, W] -> [N, (1 + len(kernels)) * C, H, W].

    A window of 9 is what one of 5 sees of the maxima over 5: every maximum is taken of the one before, which gives the
    same numbers in less time.

    >>> SpatialPyramidPool()(torch.zeros(1, 2, 7, 7)).shape
    torch.Size([1, 8, 7, 7])
    """

    def __init__(self, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        if any(k % 2 == 0 for k in kernels) or list(kernels) != sorted(set(kernels)) or min(kernels, default=0) < 3:
            raise ValueError(f"kernels must be odd, 3 or more and ascending, got {tuple(kernels)}")
        self.pools = nn.ModuleList(Pool2d("max", after - before + 1) for before, after in pairwise((1, *kernels)))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for pool in self.pools:
            maps.append(pool(maps[-1]))
        return torch.cat(maps[::-1], 1)
