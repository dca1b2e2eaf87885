"""Pairwise box overlap: IoU, GIoU, DIoU and CIoU matrices in one pass, with closed-form gradients.

Boxes are ``(x1, y1, x2, y2)``. Kernels are in csrc/{ops,cpu,cuda}/box_iou*; the element-wise losses on the same
geometry are in iou_loss.py.
"""

from typing import Any

import torch
from torch import Tensor

from cvops.ops._register import autocast_to, batch_first, differentiable, double_backward

IOU, GIOU, DIOU, CIOU = range(4)  # BoxMetric in csrc/ops/box_geometry.h


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    Args:
        boxes1: ``[..., N, 4]``, any floating or integer dtype.
        boxes2: ``[..., M, 4]``, leading dimensions broadcast against those of `boxes1`.
        fmt: ``'xyxy'``, ``'xywh'`` or ``'cxcywh'``.

    Returns:
        ``[..., N, M]`` in float32 (float64 for float64 boxes), in [0, 1] for boxes with ``x1 <= x2, y1 <= y2``.
        Two boxes of zero area have IoU 0. Peak memory is the result: no N x M temporaries, forward or backward.

    Raises:
        ValueError: if `fmt` is unknown or a tensor is not ``[..., 4]``.
        RuntimeError: if dtypes or devices differ.

    >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [4, 4, 5, 5]]))
    tensor([[0.3333, 0.0000]])
    """
    _check_format("fmt", fmt)
    boxes1, boxes2 = as_floating("boxes1", boxes1), as_floating("boxes2", boxes2)
    return _matrix(box_convert(boxes1, fmt, "xyxy"), box_convert(boxes2, fmt, "xyxy"), IOU)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU of every pair: IoU minus the share of the smallest enclosing box that neither box covers, in (-1, 1].

    Shapes, dtypes and errors as in :func:`box_iou`. Source: Rezatofighi et al. 2019, arXiv:1902.09630.

    >>> generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))
    tensor([[-0.5000]])
    """
    return _matrix(boxes1, boxes2, GIOU)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """DIoU of every pair: IoU minus the squared distance of the centres over the squared diagonal of the hull.

    Shapes, dtypes and errors as in :func:`box_iou`; `eps` is added to the squared diagonal.
    Source: Zheng et al. 2020, arXiv:1911.08287.

    >>> distance_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))
    tensor([[-0.5294]])
    """
    return _matrix(boxes1, boxes2, DIOU, eps)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU of every pair: DIoU minus a penalty on the difference of aspect ratios.

    Shapes, dtypes and errors as in :func:`box_iou`. As in the paper (Zheng et al. 2020, arXiv:1911.08287) the
    trade-off alpha is a constant for the gradient. The aspect angle is ``atan2(w, h)``, defined for any box.

    >>> complete_box_iou(torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[0.0, 0, 1, 2]]))
    tensor([[0.2371]])
    """
    return _matrix(boxes1, boxes2, CIOU, eps)


def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Areas of boxes.

    Args:
        boxes: ``[..., 4]``. Half types are computed in float32, integers in the default dtype (they cannot overflow).
        fmt: ``'xyxy'``, ``'xywh'`` or ``'cxcywh'``.

    >>> box_area(torch.tensor([[0, 0, 60000, 60000]], dtype=torch.int32))
    tensor([3.6000e+09])
    """
    _check_format("fmt", fmt)
    boxes = as_floating("boxes", boxes)
    boxes = boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes
    x, y, right, bottom = boxes.unbind(-1)
    return (right - x) * (bottom - y) if fmt == "xyxy" else right * bottom


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Convert boxes between ``'xyxy'``, ``'xywh'`` and ``'cxcywh'``; ``[..., 4]`` in and out, dtype kept.

    >>> box_convert(torch.tensor([[10.0, 20, 30, 60]]), "xyxy", "cxcywh")
    tensor([[20., 40., 20., 40.]])
    """
    _check_format("in_fmt", in_fmt)
    _check_format("out_fmt", out_fmt)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [..., 4], got {list(boxes.shape)}")
    if in_fmt == out_fmt:
        return boxes
    a, b, c, d = boxes.unbind(-1)
    if in_fmt == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif in_fmt == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if out_fmt == "xywh":
        a, b, c, d = a, b, c - a, d - b
    elif out_fmt == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return torch.stack((a, b, c, d), -1).to(boxes.dtype)


def _check_format(name: str, fmt: str) -> None:
    if fmt not in ("xyxy", "xywh", "cxcywh"):
        raise ValueError(f"{name} must be 'xyxy', 'xywh' or 'cxcywh', got {fmt!r}")


def as_floating(name: str, boxes: Tensor) -> Tensor:
    """`boxes`, which must be ``[..., 4]``, in its floating dtype, or in the default dtype if it holds integers."""
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} must be [..., 4], got {list(boxes.shape)}")
    if boxes.is_complex():
        raise ValueError(f"{name} must be floating or integer, got {boxes.dtype}")
    return boxes if boxes.is_floating_point() else boxes.to(torch.get_default_dtype())


def _matrix(boxes1: Tensor, boxes2: Tensor, metric: int, eps: float = 1e-7) -> Tensor:
    boxes1, boxes2 = as_floating("boxes1", boxes1), as_floating("boxes2", boxes2)
    if boxes1.ndim < 2 or boxes2.ndim < 2:
        raise ValueError(f"boxes1 and boxes2 must be [..., N, 4], got {list(boxes1.shape)} and {list(boxes2.shape)}")
    if boxes1.ndim == boxes2.ndim == 2:
        return _box_iou(boxes1, boxes2, metric, eps)
    try:
        lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"leading dimensions of boxes1 {list(boxes1.shape)} and boxes2 {list(boxes2.shape)} do not broadcast"
        ) from None
    n, m = boxes1.shape[-2], boxes2.shape[-2]
    count = 1
    for size in lead:
        count *= size
    flat1 = boxes1.expand(*lead, n, 4).reshape(count, n, 4)
    flat2 = boxes2.expand(*lead, m, 4).reshape(count, m, 4)
    return _box_iou(flat1, flat2, metric, eps).reshape(*lead, n, m)


@torch.library.register_fake("cvops::box_iou")
def _fake(boxes1: Tensor, boxes2: Tensor, metric: int, eps: float) -> Tensor:
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty(*boxes1.shape[:-1], boxes2.shape[-2], dtype=dtype)


@torch.library.register_fake("cvops::box_iou_backward")
def _fake_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor, metric: int, eps: float) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.metric, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_box_iou_backward(grad, *ctx.saved_tensors, ctx.metric, ctx.eps), None, None


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, boxes1, boxes2 = ctx.saved_tensors

    def matrix(a: Tensor, b: Tensor) -> Tensor:
        return reference_box_iou(a, b, ctx.metric, ctx.eps)

    return *double_backward(matrix, (boxes1, boxes2), grad, grad_grads), None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], boxes1: Tensor, boxes2: Tensor, metric: int, eps: float) -> Any:
    a, b = batch_first(info, in_dims, (boxes1, boxes2))
    return _matrix(a, b, metric, eps), 0


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], grad: Tensor, boxes1: Tensor, boxes2: Tensor, metric: int, eps: float
) -> Any:
    tensors = batch_first(info, in_dims, (grad, boxes1, boxes2))
    flat = [t.reshape(-1, *t.shape[-2:]) for t in tensors]
    grads = _box_iou_backward(*flat, metric, eps)
    return tuple(g.reshape(t.shape) for g, t in zip(grads, tensors[1:], strict=True)), (0, 0)


_box_iou = differentiable("box_iou", _save, _backward, _vmap)
_box_iou_backward = differentiable("box_iou_backward", _save, _double_backward, _vmap_backward)
autocast_to("box_iou", torch.float32)


def reference_box_iou(boxes1: Tensor, boxes2: Tensor, metric: int = IOU, eps: float = 1e-7) -> Tensor:
    """Pure-torch oracle of the pairwise matrix, ``[..., N, 4] x [..., M, 4]``; see :func:`reference_metric`."""
    return reference_metric(boxes1[..., :, None, :], boxes2[..., None, :, :], metric, 0.0, eps)


def reference_metric(a: Tensor, b: Tensor, metric: int, area_eps: float, diagonal_eps: float) -> Tensor:
    """Pure-torch oracle of one metric on broadcast boxes ``[..., 4]``; 0/0 is 0, half types compute in float32."""
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b = a.to(dtype), b.to(dtype)

    def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
        return numerator / torch.where(denominator == 0, 1.0, denominator)

    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - intersection
    iou = divide(intersection, union + area_eps)
    if metric == IOU:
        return iou
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    if metric == GIOU:
        hull = outer[..., 0] * outer[..., 1]
        return iou - divide(hull - union, hull + area_eps)
    offset = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    diou = iou - divide((offset * offset).sum(-1), (outer * outer).sum(-1) + diagonal_eps)
    if metric == DIOU:
        return diou
    turn = torch.atan2(size_a[..., 0], size_a[..., 1]) - torch.atan2(size_b[..., 0], size_b[..., 1])
    v = 4 / torch.pi**2 * turn * turn
    with torch.no_grad():
        alpha = divide(v, 1 - iou + v + diagonal_eps)
    return diou - alpha * v
