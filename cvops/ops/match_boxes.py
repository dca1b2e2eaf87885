"""Matching of anchors and ground-truth boxes by IoU, without the N x M matrix.

Kernels are in csrc/{ops,cpu,cuda}/match_boxes*, on the geometry of box_iou.py.
"""

from typing import Any

import torch
from torch import Tensor

from cvops.ops._register import autocast_to
from cvops.ops.box_iou import box_iou

BACKGROUND = -1
IGNORED = -2


def match_boxes(
    anchors: Tensor,
    targets: Tensor,
    low: float,
    high: float,
    *,
    allow_low_quality: bool = False,
    valid: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best target of each anchor and the best anchor of each target, by IoU, with thresholds.

    What ``torchvision.models.detection._utils.Matcher`` makes of ``box_iou(targets, anchors)`` (Ren et al. 2015,
    arXiv:1506.01497, section 3.1.2), in O(N + M) memory. IoUs have the bits of :func:`cvops.ops.box_iou`. Not
    differentiable.

    Args:
        anchors: ``[N, 4]`` or ``[B, N, 4]`` boxes ``(x1, y1, x2, y2)``, floating or integer.
        targets: ``[M, 4]``, or ``[B, M, 4]``; anchors ``[N, 4]`` then serve every image. M may be 0.
        low, high: thresholds, ``0 <= low <= high``, compared in the dtype of the IoUs.
        allow_low_quality: as the Matcher's ``allow_low_quality_matches``: an anchor whose IoU with some target equals
            the best IoU of that target keeps its own best match, whatever the thresholds say. As in torchvision, a
            target that no anchor overlaps ties at 0 with all the anchors outside of it.
        valid: bool ``[M]`` or ``[B, M]``, False for padding among the targets.
        counts: int ``[B]`` (or a scalar), the number of valid targets from the front; instead of `valid`.

    Returns:
        - matches, int64 ``[N]`` or ``[B, N]``: index of the target; -1 background, ``IoU < low``; -2 ignored,
          ``low <= IoU < high``. -1 where there is no target, and for an anchor with a NaN.
        - best IoU of each anchor, of that shape: float32 (float64 for float64 boxes), 0 where nothing overlaps.
        - best anchor of each target, int64 ``[M]`` or ``[B, M]``: -1 if no anchor overlaps it, for padding, and for a
          target with a NaN, which matches nothing.

        Ties go to the lowest index.

    Raises:
        ValueError: shapes or thresholds that do not fit, or both `valid` and `counts`.
        RuntimeError: dtypes or devices that differ.

    >>> anchors = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [8, 8, 9, 9]])
    >>> match_boxes(anchors, torch.tensor([[0.0, 0, 2, 2]]), 0.3, 0.7)
    (tensor([ 0, -2, -1]), tensor([1.0000, 0.3333, 0.0000]), tensor([0]))
    """
    if not 0 <= low <= high:
        raise ValueError(f"low and high must be 0 <= low <= high, got low={low} and high={high}")
    batched = targets.ndim == 3
    if targets.ndim not in (2, 3) or targets.shape[-1] != 4:
        raise ValueError(f"targets must be [M, 4] or [B, M, 4], got {list(targets.shape)}")
    fits = anchors.ndim == 2 or (batched and anchors.ndim == 3 and anchors.shape[0] == targets.shape[0])
    if not fits or anchors.shape[-1] != 4:
        expected = f"[N, 4] or [{targets.shape[0]}, N, 4]" if batched else "[N, 4]"
        raise ValueError(f"anchors must be {expected}, got {list(anchors.shape)}")
    if counts is not None:
        if valid is not None:
            raise ValueError("valid and counts are two ways to say one thing, got both")
        if counts.shape != targets.shape[:-2]:
            raise ValueError(f"counts must be {list(targets.shape[:-2])}, got {list(counts.shape)}")
        valid = torch.arange(targets.shape[-2], device=targets.device) < counts.unsqueeze(-1)
    if valid is not None and valid.shape != targets.shape[:-1]:
        raise ValueError(f"valid must be {list(targets.shape[:-1])}, one per target, got {list(valid.shape)}")
    anchors, targets = anchors.detach(), targets.detach()
    if not anchors.is_floating_point() or not targets.is_floating_point():
        dtype = torch.promote_types(torch.promote_types(anchors.dtype, targets.dtype), torch.get_default_dtype())
        anchors, targets = anchors.to(dtype), targets.to(dtype)
    if not batched:
        targets, valid = targets.unsqueeze(0), None if valid is None else valid.unsqueeze(0)
    if anchors.ndim == 2:
        anchors = anchors.unsqueeze(0)
    matches, ious, best = torch.ops.cvops.match_boxes(anchors, targets, valid, low, high, allow_low_quality)
    return (matches, ious, best) if batched else (matches.squeeze(0), ious.squeeze(0), best.squeeze(0))


@torch.library.register_fake("cvops::match_boxes")
def _fake(
    anchors: Tensor, targets: Tensor, valid: Tensor | None, low: float, high: float, allow_low_quality: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, m = targets.shape[0], anchors.shape[1], targets.shape[1]
    dtype = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    return (
        anchors.new_empty((batch, n), dtype=torch.int64),
        anchors.new_empty((batch, n), dtype=dtype),
        anchors.new_empty((batch, m), dtype=torch.int64),
    )


autocast_to("match_boxes", torch.float32)


def _vmap(info: Any, in_dims: Any, anchors: Tensor, targets: Tensor, valid: Tensor | None, *options: Any) -> Any:
    """The samples of vmap are more images."""
    size = info.batch_size
    images = targets.shape[1 if in_dims[1] == 0 else 0] if in_dims[1] is not None else targets.shape[0]

    def flat(tensor: Tensor, dim: int | None) -> Tensor:
        t = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return t.expand(size, images, *t.shape[2:]).flatten(0, 1)

    if in_dims[0] is not None or anchors.shape[0] != 1:
        anchors = flat(anchors, in_dims[0])
    flags = None if valid is None else flat(valid, in_dims[2])
    out = torch.ops.cvops.match_boxes(anchors, flat(targets, in_dims[1]), flags, *options)
    return tuple(x.unflatten(0, (size, images)) for x in out), (0, 0, 0)


torch.library.register_vmap("cvops::match_boxes", _vmap)


def reference_match_boxes(
    anchors: Tensor, targets: Tensor, low: float, high: float, allow_low_quality: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Pure-torch oracle for one image of valid boxes, on the matrix of `box_iou`."""
    n, m = len(anchors), len(targets)
    if m == 0 or n == 0:
        ious = box_iou(anchors, targets)
        return (
            torch.full((n,), BACKGROUND, device=anchors.device),
            ious.new_zeros(n),
            torch.full((m,), -1, device=anchors.device),
        )
    overlaps = box_iou(anchors, targets)
    ious = torch.where(overlaps.isnan(), 0.0, overlaps)  # of infinite boxes; a box with a NaN is out
    ious[anchors.isnan().any(1)], ious[:, targets.isnan().any(1)] = -1.0, -1.0
    best = ious.max(1).values
    match = (ious == best.unsqueeze(1)).int().argmax(1)  # the first of a tie
    per_target = ious.max(0).values
    best_anchor = torch.where(per_target > 0, (ious == per_target).int().argmax(0), -1)
    kept = best >= high
    if allow_low_quality:
        kept = kept | (overlaps == per_target).any(1)
    judged = torch.where(best < low, BACKGROUND, IGNORED)
    return torch.where(kept, match, judged), best.clamp(min=0), best_anchor
