"""Peaks of heat maps, as CenterNet and CornerNet decode them: local maxima, the best k of each image.

Kernels are in csrc/{ops,cpu,cuda}/heatmap_peaks*, the definition of a peak in csrc/ops/peak_geometry.h.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.ops._register import batch_first, differentiable


def heatmap_peaks(heatmap: Tensor, k: int, kernel: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k best local maxima of each image, over all classes.

    Decoding of CornerNet (Law and Deng 2018, arXiv:1808.01244, section 3.1) and CenterNet (Zhou et al. 2019,
    arXiv:1904.07850, section 4): max-pooling, comparison and top-k in one pass that writes no map.

    Args:
        heatmap: ``[B, C, H, W]``; float64, float32, float16 or bfloat16.
        k: number of peaks per image, >= 0. The shapes of the results depend on nothing else.
        kernel: side of the window, odd. An element is a peak if nothing in the window around it, clipped at the border,
            is larger; of a plateau all elements are. 1 makes every element a peak.

    Returns:
        ``(scores, classes, ys, xs)``, each ``[B, k]``, by descending score, ties by lowest class, then y, then x.
        Scores have the dtype of `heatmap`, the others are int64. Where an image has fewer than k peaks the rest is
        score -inf and class, y and x -1. NaN and -inf are never peaks and stand in nobody's way, so -inf masks cells
        out, and a score is -inf only in those unused places. The gradient of a score goes to its element.

    Raises:
        ValueError: a `heatmap` that is not 4-D, a negative `k` or an even `kernel`. RuntimeError: other dtypes.

    >>> heat = torch.tensor([[0.1, 0.2, 0.1, 0.0], [0.2, 0.9, 0.2, 0.1], [0.1, 0.2, 0.1, 0.5]]).view(1, 1, 3, 4)
    >>> heatmap_peaks(heat, 3)
    (tensor([[0.9000, 0.5000,   -inf]]), tensor([[ 0,  0, -1]]), tensor([[ 1,  2, -1]]), tensor([[ 1,  3, -1]]))
    """
    if heatmap.ndim != 4:
        raise ValueError(f"heatmap must be [B, C, H, W], got {list(heatmap.shape)}")
    if k < 0:
        raise ValueError(f"k must be >= 0, got {k}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd and positive, got {kernel}")
    return _peaks(heatmap, k, kernel)  # type: ignore[no-any-return]


class HeatmapPeaks(nn.Module):
    """:func:`heatmap_peaks` as a module; the arguments are those of the function.

    >>> HeatmapPeaks(100)(torch.rand(2, 80, 32, 32))[0].shape
    torch.Size([2, 100])
    """

    def __init__(self, k: int, kernel: int = 3) -> None:
        super().__init__()
        self.k = k
        self.kernel = kernel

    def forward(self, heatmap: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return heatmap_peaks(heatmap, self.k, self.kernel)

    def extra_repr(self) -> str:
        return f"k={self.k}, kernel={self.kernel}"


@torch.library.register_fake("cvops::heatmap_peaks")
def _fake(heatmap: Tensor, k: int, kernel: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (heatmap.shape[0], k)
    classes, ys, xs = (heatmap.new_empty(shape, dtype=torch.int64) for _ in range(3))
    return heatmap.new_empty(shape), classes, ys, xs


@torch.library.register_fake("cvops::heatmap_peaks_backward")
def _fake_backward(
    grad: Tensor, classes: Tensor, ys: Tensor, xs: Tensor, channels: int, height: int, width: int
) -> Tensor:
    return grad.new_empty((grad.shape[0], channels, height, width))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.shape = inputs[0].shape[1:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradient(grad, *ctx.saved_tensors, *ctx.shape), None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])


def _double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    classes, ys, xs = ctx.saved_tensors
    if grad_grad[0].numel() == 0:
        return torch.zeros_like(classes, dtype=grad_grad.dtype), *[None] * 6
    images = torch.arange(classes.shape[0], device=classes.device)[:, None]
    taken = grad_grad[images, classes.clamp(min=0), ys.clamp(min=0), xs.clamp(min=0)]
    return torch.where(classes >= 0, taken, 0), *[None] * 6


def _vmap(info: Any, in_dims: tuple[Any, ...], heatmap: Tensor, k: int, kernel: int) -> tuple[Any, Any]:
    """The samples of vmap are more images."""
    (maps,) = batch_first(info, in_dims, [heatmap])
    out = torch.ops.cvops.heatmap_peaks(maps.flatten(0, 1), k, kernel)
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in out), (0, 0, 0, 0)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    tensors = [t.flatten(0, 1) for t in batch_first(info, in_dims, args[:4])]
    out = torch.ops.cvops.heatmap_peaks_backward(*tensors, *args[4:])
    return out.unflatten(0, (info.batch_size, -1)), 0


_peaks = differentiable("heatmap_peaks", _save, _backward, _vmap)
_gradient = differentiable("heatmap_peaks_backward", _save_backward, _double_backward, _vmap_backward)


def reference_heatmap_peaks(heatmap: Tensor, k: int, kernel: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pure-torch oracle: max-pooling, comparison and a stable sort of everything."""
    height, width = heatmap.shape[2:]
    values = heatmap.double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    if values.numel():
        pooled = F.max_pool2d(values, kernel, stride=1, padding=kernel // 2)
        values = torch.where(pooled == values, values, -torch.inf)
    ranked, index = torch.sort(F.pad(values.flatten(1), (0, k), value=-torch.inf), stable=True, dim=1, descending=True)
    ranked, index = ranked[:, :k], index[:, :k]
    unused = ranked == -torch.inf
    classes, rest = index // max(height * width, 1), index % max(height * width, 1)
    ys, xs = rest // max(width, 1), rest % max(width, 1)
    classes, ys, xs = (torch.where(unused, -1, t) for t in (classes, ys, xs))
    return ranked.to(heatmap.dtype), classes, ys, xs
