"""IoU, GIoU, DIoU and CIoU losses of matched boxes, with closed-form gradients that are finite for any box.

Kernels are in csrc/{ops,cpu,cuda}/iou_loss*, on the geometry of box_iou.py.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvops.ops._register import autocast_to, batch_first, differentiable, double_backward
from cvops.ops.box_iou import CIOU, DIOU, GIOU, IOU, reference_metric


def iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, weight: Tensor | None = None
) -> Tensor:
    """``1 - IoU`` of matched boxes.

    Args:
        boxes1: ``[..., 4]`` boxes ``(x1, y1, x2, y2)``, floating or integer.
        boxes2: boxes of the same shape.
        reduction: ``'none'``, ``'mean'`` or ``'sum'``. The mean of nothing is 0.
        eps: added to the union (and to the hull or its squared diagonal), >= 0.
        weight: optional factor per box, ``[...]``, applied before the reduction.

    Returns:
        ``[...]`` or a scalar, float32 (float64 for float64 boxes).

    Raises:
        ValueError: unknown `reduction`, or shapes that do not fit.
        RuntimeError: dtypes or devices that differ.

    >>> iou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))
    tensor([0.6667])
    """
    return _loss(boxes1, boxes2, IOU, reduction, eps, weight)


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, weight: Tensor | None = None
) -> Tensor:
    """``1 - GIoU`` (Rezatofighi et al. 2019, arXiv:1902.09630); arguments as :func:`iou_loss`.

    >>> generalized_box_iou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]), "mean")
    tensor(1.5000)
    """
    return _loss(boxes1, boxes2, GIOU, reduction, eps, weight)


giou_loss = generalized_box_iou_loss


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, weight: Tensor | None = None
) -> Tensor:
    """``1 - DIoU`` (Zheng et al. 2020, arXiv:1911.08287); arguments as :func:`iou_loss`.

    >>> distance_box_iou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))
    tensor([1.5294])
    """
    return _loss(boxes1, boxes2, DIOU, reduction, eps, weight)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, weight: Tensor | None = None
) -> Tensor:
    """``1 - CIoU`` (Zheng et al. 2020, arXiv:1911.08287); arguments as :func:`iou_loss`.

    The trade-off alpha is a constant for the gradient, as in the paper.

    >>> complete_box_iou_loss(torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[0.0, 0, 1, 2]]), "sum")
    tensor(0.7629)
    """
    return _loss(boxes1, boxes2, CIOU, reduction, eps, weight)


class _IoULoss(nn.Module):
    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__()
        _check_reduction(reduction)
        self.reduction, self.eps = reduction, eps

    metric = IOU

    def forward(self, boxes1: Tensor, boxes2: Tensor, weight: Tensor | None = None) -> Tensor:
        return _loss(boxes1, boxes2, self.metric, self.reduction, self.eps, weight)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, eps={self.eps}"


class IoULoss(_IoULoss):
    """Module form of :func:`iou_loss`."""


class GeneralizedBoxIoULoss(_IoULoss):
    """Module form of :func:`generalized_box_iou_loss`."""

    metric = GIOU


class DistanceBoxIoULoss(_IoULoss):
    """Module form of :func:`distance_box_iou_loss`."""

    metric = DIOU


class CompleteBoxIoULoss(_IoULoss):
    """Module form of :func:`complete_box_iou_loss`."""

    metric = CIOU


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def _loss(boxes1: Tensor, boxes2: Tensor, metric: int, reduction: str, eps: float, weight: Tensor | None) -> Tensor:
    _check_reduction(reduction)
    if boxes1.ndim == 0 or boxes1.shape[-1] != 4 or boxes1.shape != boxes2.shape:
        raise ValueError(
            f"boxes1 and boxes2 must be [..., 4] and of one shape, got {list(boxes1.shape)} and {list(boxes2.shape)}"
        )
    if weight is not None and weight.shape != boxes1.shape[:-1]:
        raise ValueError(f"weight must be {list(boxes1.shape[:-1])}, one per box, got {list(weight.shape)}")
    if not boxes1.is_floating_point() or not boxes2.is_floating_point():
        dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.get_default_dtype())
        boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    loss: Tensor = _iou_loss(boxes1.reshape(-1, 4), boxes2.reshape(-1, 4), metric, eps).reshape(boxes1.shape[:-1])
    if weight is not None:
        loss = loss * weight
    if reduction == "mean":
        return loss.sum() / max(loss.numel(), 1)
    return loss.sum() if reduction == "sum" else loss


@torch.library.register_fake("cvops::iou_loss")
def _fake(boxes1: Tensor, boxes2: Tensor, metric: int, eps: float) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0], dtype=torch.float64 if boxes1.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("cvops::iou_loss_backward")
def _fake_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor, metric: int, eps: float) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.metric, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_iou_loss_backward(grad, *ctx.saved_tensors, ctx.metric, ctx.eps), None, None


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, boxes1, boxes2 = ctx.saved_tensors

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return reference_iou_loss(a, b, ctx.metric, ctx.eps)

    return *double_backward(loss, (boxes1, boxes2), grad, grad_grads), None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], boxes1: Tensor, boxes2: Tensor, metric: int, eps: float) -> Any:
    a, b = batch_first(info, in_dims, (boxes1, boxes2))
    return _iou_loss(a.reshape(-1, 4), b.reshape(-1, 4), metric, eps).reshape(a.shape[:-1]), 0


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], grad: Tensor, boxes1: Tensor, boxes2: Tensor, metric: int, eps: float
) -> Any:
    g, a, b = batch_first(info, in_dims, (grad, boxes1, boxes2))
    grads = _iou_loss_backward(g.reshape(-1), a.reshape(-1, 4), b.reshape(-1, 4), metric, eps)
    return tuple(x.reshape(a.shape) for x in grads), (0, 0)


_iou_loss = differentiable("iou_loss", _save, _backward, _vmap)
_iou_loss_backward = differentiable("iou_loss_backward", _save, _double_backward, _vmap_backward)
autocast_to("iou_loss", torch.float32)


def reference_iou_loss(boxes1: Tensor, boxes2: Tensor, metric: int = IOU, eps: float = 1e-7) -> Tensor:
    """Pure-torch oracle of the element-wise losses, ``[..., 4]`` to ``[...]``."""
    return 1 - reference_metric(boxes1, boxes2, metric, eps, eps)
