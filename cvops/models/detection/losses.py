"""Losses of boxes that detectors share. The losses of classes are ops (`cvops.ops.sigmoid_focal_loss`, ...)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cvops.models.detection.coders import BoxCoder
from cvops.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss, iou_loss

BoxLoss = Literal["l1", "smooth_l1", "iou", "giou", "diou", "ciou"]

_IOU_LOSSES = {
    "iou": iou_loss,
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


def box_loss(
    kind: BoxLoss, codes: Tensor, boxes: Tensor, anchors: Tensor, coder: BoxCoder, weight: Tensor, beta: float = 1.0
) -> Tensor:
    """Sum over positives of a loss of their boxes. codes: [P, 4] the network's; boxes: [P, 4] the targets'; anchors:
    [P, 4]; weight: [P]. `l1` and `smooth_l1` (quadratic below `beta`) compare codes, summed over the four; the others
    compare boxes, one number each.

    >>> from cvops.models.detection import DeltaCoder
    >>> anchors = torch.tensor([[0.0, 0, 8, 8]])
    >>> box_loss("l1", torch.zeros(1, 4), torch.tensor([[4.0, 0, 12, 8]]), anchors, DeltaCoder(), torch.ones(1))
    tensor(0.5000)
    """
    codes = codes.to(boxes.dtype)
    if kind in _IOU_LOSSES:
        return _IOU_LOSSES[kind](coder.decode(codes, anchors), boxes, reduction="sum", weight=weight)
    if kind not in ("l1", "smooth_l1"):
        raise ValueError(f"kind must be 'l1', 'smooth_l1', {', '.join(map(repr, _IOU_LOSSES))}, got {kind!r}")
    targets = coder.encode(boxes, anchors)
    beta = beta if kind == "smooth_l1" else 0.0
    return (F.smooth_l1_loss(codes, targets, reduction="none", beta=beta).sum(1) * weight).sum()


def centerness_of(boxes: Tensor, anchors: Tensor) -> Tensor:
    """How central the anchors' centres are in their boxes, 1 in the middle and 0 at a side (Tian et al. 2019,
    arXiv:1904.01355, eq. 3): [..., 4] and [..., 4] to [...].

    >>> centerness_of(torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[1.0, 3, 3, 5]]))
    tensor([0.5774])
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    first, second = centre - boxes[..., :2], boxes[..., 2:] - centre
    ratio = torch.minimum(first, second).clamp(min=0) / torch.maximum(first, second).clamp(min=1e-6)
    return ratio.prod(-1).sqrt()
