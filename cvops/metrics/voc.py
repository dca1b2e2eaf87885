"""Average precision of PASCAL VOC, in the 11-point form of 2007 and the area form of 2010 on. Collecting is in
collect.py; COCO's evaluation, whose rules differ, in coco.py.

The rules are those of the development kit: a detection belongs to the ground truth of its class that it overlaps most
(the first of equal ones), whatever other detections do; the best scoring one that overlaps it enough is right, further
ones are wrong, and those that belong to a difficult ground truth count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvops.metrics.collect import Collector
from cvops.metrics.state import DetectionState
from cvops.ops import box_iou


@dataclass(frozen=True)
class VocResult:
    """Average precision by class, and the curves: `precision` and `recall` after each detection that counts, best score
    first. A class whose ground truths are all difficult, or that has none, has AP NaN and is no part of the mean."""

    ap: Mapping[int, float]
    precision: Mapping[int, NDArray[np.float64]]
    recall: Mapping[int, NDArray[np.float64]]

    @property
    def mean(self) -> float:
        """mAP; NaN if no class has ground truth."""
        present = [ap for ap in self.ap.values() if not np.isnan(ap)]
        return float(np.mean(present)) if present else float("nan")


class VocEvaluator(Collector):
    """Collects detections and ground truth, and evaluates them as PASCAL VOC does
    (Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", 2015).

    Args:
        whole_pixels: boxes name their first and last pixel, so that widths are `x2 - x1 + 1`, as in VOC's annotations
            and its development kit; otherwise corners are coordinates, as everywhere in cvops.

    >>> evaluator = VocEvaluator()
    >>> boxes = torch.tensor([[10.0, 10, 60, 60], [100, 100, 180, 190]])
    >>> evaluator.update(
    ...     [{"boxes": boxes[:1], "scores": torch.tensor([0.9]), "labels": torch.tensor([3])}],
    ...     [{"boxes": boxes, "labels": torch.tensor([3, 3]), "difficult": torch.tensor([0, 0])}],
    ... )
    >>> evaluator.compute().mean, round(evaluator.compute(eleven_points=True).mean, 4)
    (0.5, 0.5455)
    """

    def __init__(self, *, whole_pixels: bool = False) -> None:
        super().__init__("bbox")
        self.whole_pixels = whole_pixels

    def update(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Adds images; see `CocoEvaluator.update`. Targets may have `difficult [M]`, another name of `ignore`."""
        targets = [{**target, "ignore": target["difficult"]} if "difficult" in target else target for target in targets]
        super().update(predictions, targets)

    def compute(self, iou: float = 0.5, *, eleven_points: bool = False) -> VocResult:
        """AP of every class of the ground truth, at that least IoU: the area under the curve of the best precision at
        each recall or more, or (VOC 2007) its mean at recalls 0, 0.1, ... 1."""
        if not 0 < iou <= 1:
            raise ValueError(f"iou must be above 0 and at most 1, got {iou}")
        state = self.state()
        difficult = state.truth_ignore | state.truth_crowd
        overlap, truth = _best_overlaps(state, self.whole_pixels)
        image_order = np.argsort(np.argsort(state.image_ids))[state.found_image]
        order = np.lexsort((np.arange(len(overlap)), image_order, -state.found_score))
        enough = overlap >= iou
        counts = ~(enough & difficult[truth]) if len(difficult) else np.ones(len(overlap), np.bool_)
        order = order[counts[order]]
        hit = np.zeros(len(overlap), np.bool_)
        right = order[enough[order]]
        hit[right[np.unique(truth[right], return_index=True)[1]]] = True  # of each ground truth, the best detection
        ap, precision, recall = {}, {}, {}
        for label in np.unique(state.truth_label).tolist():
            positives = int(np.count_nonzero((state.truth_label == label) & ~difficult))
            hits = np.cumsum(hit[order[state.found_label[order] == label]])
            precision[label] = hits / np.arange(1, len(hits) + 1)
            recall[label] = hits / positives if positives else np.full(len(hits), np.nan)
            if positives == 0:
                ap[label] = float("nan")
            elif eleven_points:
                ap[label] = _eleven_points(hits, precision[label], positives)
            else:
                ap[label] = _area(precision[label], recall[label])
        return VocResult(ap, precision, recall)


def _best_overlaps(state: DetectionState, whole_pixels: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each detection, the largest IoU with a ground truth of its class and image, and that ground truth's place; -1
    and 0 if there is none."""
    found, truth = (torch.from_numpy(_corners(shape, whole_pixels)) for shape in (state.found_shape, state.truth_shape))
    overlap, place = np.full(len(found), -1.0), np.zeros(len(found), np.int64)
    found_parts = np.split(np.argsort(state.found_image, kind="stable"), _ends(state.found_image, len(state.image_ids)))
    truth_parts = np.split(np.argsort(state.truth_image, kind="stable"), _ends(state.truth_image, len(state.image_ids)))
    for d, g in zip(found_parts, truth_parts, strict=True):
        if len(d) and len(g):
            iou = box_iou(found[d], truth[g]).numpy()
            iou[state.found_label[d][:, None] != state.truth_label[g]] = -1
            best = iou.argmax(1)
            overlap[d], place[d] = iou[np.arange(len(d)), best], g[best]
    return overlap, place


def _ends(image: NDArray[np.int32], images: int) -> NDArray[np.int64]:
    """Where, among the instances in the order of the images, each image but the last ends."""
    return np.cumsum(np.bincount(image, minlength=images))[:-1]


def _corners(shape: Any, whole_pixels: bool) -> NDArray[np.float64]:
    return np.concatenate([shape[:, :2], shape[:, :2] + shape[:, 2:] + float(whole_pixels)], axis=1)


def _eleven_points(hits: NDArray[np.int64], precision: NDArray[np.float64], positives: int) -> float:
    # Recalls are compared with 0.1, 0.2, ... in whole numbers: 3 of 10 reach 0.3.
    reached = [precision[10 * hits >= tenth * positives] for tenth in range(11)]
    return float(sum(part.max() for part in reached if part.size) / 11)


def _area(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
