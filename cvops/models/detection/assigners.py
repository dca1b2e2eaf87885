"""Assigners: which target each anchor learns. All answer with the index of the target for every anchor of every image,
-1 for background and -2 for anchors that learn nothing, [B, N] int64; none builds the matrix of anchors and targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cvops.models.detection.anchors import Anchors
from cvops.ops import box_area, box_iou, match_boxes

BACKGROUND, IGNORED = -1, -2
CHUNK = 16  # targets that are compared with all anchors at a time, which bounds the memory


class Assigner(Protocol):
    """Anchors of a batch, and targets [B, M, 4] with a mask [B, M] of those that are not padding."""

    def __call__(self, anchors: Anchors, boxes: Tensor, valid: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class IoUAssigner:
    """The target with the greatest IoU, from `high` on; background below `low`, ignored in between (Ren et al. 2015,
    arXiv:1506.01497, section 3.1.2).

    rescue: the anchors that are some target's best keep their own best target whatever its IoU is; torchvision's
        `allow_low_quality_matches`.
    force: every target gets the anchor that overlaps it most, whatever that one overlaps besides (SSD's rule: Liu et
        al. 2016, arXiv:1512.02325, section 2.2); of two targets that want one anchor, the last.
    """

    high: float
    low: float
    rescue: bool = False
    force: bool = False

    def __call__(self, anchors: Anchors, boxes: Tensor, valid: Tensor) -> Tensor:
        index, _, best = match_boxes(
            anchors.boxes, boxes, self.low, self.high, allow_low_quality=self.rescue, valid=valid
        )
        if not self.force:
            return index
        slots = index.shape[1]
        best = torch.where(best < 0, slots, best)  # padding goes to a slot that is cut off
        targets = torch.arange(best.shape[1], device=best.device).expand_as(best)
        forced = torch.full((len(index), slots + 1), BACKGROUND, device=index.device)
        forced = forced.scatter_reduce(1, best, targets, "amax")[:, :slots]
        return torch.where(forced >= 0, forced, index)


@dataclass(frozen=True)
class CenterAssigner:
    """The smallest target in whose middle an anchor's centre lies, on the level made for its size (Tian et al. 2019,
    arXiv:1904.01355, section 3.2). Made for one anchor a cell, as wide as its stride.

    radius: how far, in strides and along each axis, the middle reaches from the target's centre; a centre has to be
        inside the target all the same. None: the whole target.
    ranges: for each level, between which values the greatest distance in pixels to a side has to lie.
    """

    radius: float | None = 1.5
    ranges: tuple[tuple[float, float], ...] = ((0, 64), (64, 128), (128, 256), (256, 512), (512, float("inf")))

    def __call__(self, anchors: Anchors, boxes: Tensor, valid: Tensor) -> Tensor:
        if len(self.ranges) != len(anchors.counts):
            raise ValueError(f"ranges must be one for each of the {len(anchors.counts)} levels, got {len(self.ranges)}")
        points, strides = anchor_points(anchors.boxes)
        low, high = per_anchor(anchors, torch.tensor(self.ranges, device=boxes.device, dtype=boxes.dtype)).unbind(1)
        best = boxes.new_full((len(boxes), len(points)), torch.inf)
        index = torch.full(best.shape, BACKGROUND, device=boxes.device)
        for start in range(0, boxes.shape[1], CHUNK):
            some = boxes[:, None, start : start + CHUNK]  # [B, 1, m, 4]
            to_sides = torch.cat([points[:, None] - some[..., :2], some[..., 2:] - points[:, None]], -1)  # [B, N, m, 4]
            fits = valid[:, None, start : start + CHUNK] & (to_sides.amin(-1) > 0)
            if self.radius is not None:
                middle = (some[..., :2] + some[..., 2:]) / 2
                fits = fits & ((points[:, None] - middle).abs().amax(-1) < self.radius * strides)
            reach = to_sides.amax(-1)
            fits = fits & (reach > low[:, None]) & (reach < high[:, None])
            area, which = torch.where(fits, box_area(some), torch.inf).min(2)
            index = torch.where(area < best, which + start, index)
            best = torch.minimum(best, area)
        return index


@dataclass(frozen=True)
class ATSSAssigner:
    """Adaptive training sample selection (Zhang et al. 2020, arXiv:1912.02424, algorithm 1): of the `nearest` anchors
    on each level to the centre of a target those are positive whose IoU is at least mean + deviation over all these
    candidates and whose centre is inside the target; where several targets want an anchor, the greatest IoU."""

    nearest: int = 9

    def __call__(self, anchors: Anchors, boxes: Tensor, valid: Tensor) -> Tensor:
        return torch.stack([self._image(anchors, b[v], v) for b, v in zip(boxes, valid, strict=True)])

    def _image(self, anchors: Anchors, boxes: Tensor, valid: Tensor) -> Tensor:
        index = torch.full((len(anchors.boxes),), BACKGROUND, device=boxes.device)
        if len(boxes) == 0:
            return index
        points, _ = anchor_points(anchors.boxes)
        candidates = torch.cat([self._nearest(points, anchors.counts, b) for b in boxes.split(CHUNK)])  # [M, K]
        theirs = anchors.boxes[candidates]  # [M, K, 4]
        ious = box_iou(boxes[:, None].to(theirs), theirs)[:, 0]
        to_sides = torch.cat([points[candidates] - boxes[:, None, :2], boxes[:, None, 2:] - points[candidates]], -1)
        threshold = ious.mean(1, keepdim=True) + ious.std(1, keepdim=True)
        positive = (ious >= threshold) & (to_sides.amin(-1) > 0.01)  # pixels, as published
        target, slot = positive.nonzero(as_tuple=True)
        anchor, iou = candidates[target, slot], ious[target, slot]
        best = iou.new_full((len(index),), -1.0).scatter_reduce(0, anchor, iou, "amax")
        wins = iou == best[anchor]  # of targets with the same IoU the first
        original = valid.nonzero()[:, 0]
        return index.scatter_reduce(0, anchor[wins], original[target[wins]], "amin", include_self=False)

    def _nearest(self, points: Tensor, counts: Sequence[int], boxes: Tensor) -> Tensor:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        found, start = [], 0
        for count in counts:
            distances = torch.cdist(centres, points[start : start + count].to(centres))
            found.append(distances.topk(min(self.nearest, count), largest=False).indices + start)
            start += count
        return torch.cat(found, 1)


def anchor_points(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [N, 2] and widths [N, 1] of anchors [N, 4]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:3] - boxes[:, :1]


def per_anchor(anchors: Anchors, values: Tensor) -> Tensor:
    """A value for each level, [L, ...], to one for each anchor, [N, ...]."""
    counts = torch.tensor(anchors.counts, device=values.device)
    return values.repeat_interleave(counts, 0, output_size=len(anchors.boxes))


def inside(anchors: Anchors, boxes: Tensor) -> Tensor:
    """Whether the centre of each anchor is inside its box. boxes: [B, N, 4]. Returns [B, N] bool."""
    points, _ = anchor_points(anchors.boxes)
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1).amin(-1) > 0


def take(values: Tensor, index: Tensor) -> Tensor:
    """The entries [B, N, ...] of values [B, M, ...] that an assigner's `index` [B, N] names; for a negative index, or
    where there are no targets at all, anything."""
    if values.shape[1] == 0:
        return values.new_zeros(index.shape + values.shape[2:])
    image = torch.arange(len(values), device=values.device)[:, None]
    return values[image, index.clamp(min=0)]
