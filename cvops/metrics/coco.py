"""COCO's average precision and recall, for boxes and masks. Collecting is in collect.py, the engine in
csrc/host/coco_*.cpp, what it returns in coco_result.py; COCO's files are read in coco_json.py.

The numbers are pycocotools', to the last bit, with its rules: detections rank by score, ties by image id and then by
the order given; each takes the ground truth it overlaps most among those not taken before; crowd regions swallow any
number of detections; what lies outside the area range counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from cvops import _host
from cvops.metrics.coco_result import CocoResult
from cvops.metrics.collect import Collector

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALL_THRESHOLDS = tuple(np.linspace(0.0, 1.0, 101).tolist())
AREA_RANGES = {  # pixels, both ends included
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
MAX_DETECTIONS = (1, 10, 100)
ANY_CATEGORY = {-1: "any"}  # the one category of a class-agnostic evaluation


class CocoEvaluator(Collector):
    """Collects detections and ground truth, and evaluates them as COCO does (https://cocodataset.org/#detection-eval).

    Args:
        iou_type: `"bbox"` or `"segm"`.
        categories: the labels that count, with or without names. None: those of the ground truth.
        iou_thresholds: COCO's 0.5, 0.55, ... 0.95 unless given.
        recall_thresholds: where precision is read off, ascending; COCO's 0, 0.01, ... 1 unless given.
        area_ranges: name to least and largest area in pixels, both included; the first is what plain numbers are about.
        max_detections: how many detections of a category count in an image, best scores first; any numbers.
        class_agnostic: all categories are one, as for proposals.

    >>> evaluator = CocoEvaluator()
    >>> boxes = torch.tensor([[10.0, 10, 60, 60], [100, 100, 180, 190]])
    >>> evaluator.update(
    ...     [{"boxes": boxes[:1], "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}],
    ...     [{"boxes": boxes, "labels": torch.tensor([1, 1]), "image_id": 7}],
    ... )
    >>> result = evaluator.compute()
    >>> round(result.summary["AP"], 4), result.summary["AR@100"]
    (0.505, 0.5)
    """

    def __init__(
        self,
        iou_type: str = "bbox",
        *,
        categories: Mapping[int, str] | Iterable[int] | None = None,
        iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
        recall_thresholds: Sequence[float] = RECALL_THRESHOLDS,
        area_ranges: Mapping[str, tuple[float, float]] = AREA_RANGES,
        max_detections: Sequence[int] = MAX_DETECTIONS,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__(iou_type)
        if categories is not None and not isinstance(categories, Mapping):
            categories = {label: str(label) for label in categories}
        self.categories = None if categories is None else {label: categories[label] for label in sorted(categories)}
        self.iou_thresholds = _numbers("iou_thresholds", iou_thresholds)
        self.recall_thresholds = _numbers("recall_thresholds", recall_thresholds)
        if list(self.recall_thresholds) != sorted(self.recall_thresholds):
            raise ValueError(f"recall_thresholds must ascend, got {self.recall_thresholds}")
        if not area_ranges or any(not low <= high for low, high in area_ranges.values()):
            raise ValueError(f"area_ranges must hold pairs with least <= largest, got {dict(area_ranges)}")
        self.area_ranges = dict(area_ranges)
        self.max_detections = tuple(sorted(int(maximum) for maximum in max_detections))
        if not self.max_detections or self.max_detections[0] < 1:
            raise ValueError(f"max_detections must hold numbers of at least 1, got {tuple(max_detections)}")
        self.class_agnostic = class_agnostic

    def compute(self) -> CocoResult:
        """Evaluates what was collected, on torch's number of threads, of which the result is independent."""
        state = self.state()
        if self.class_agnostic:
            # Instances come by category, which is how pycocotools breaks ties then.
            state = state.keep_instances(
                np.argsort(state.truth_label, kind="stable"), np.argsort(state.found_label, kind="stable")
            )
        categories = self.categories
        if categories is None:
            seen = [state.truth_label, *([state.found_label] if self.class_agnostic else [])]
            categories = {label: str(label) for label in np.unique(np.concatenate(seen)).tolist()}
        labels = np.array(list(categories), np.int64)
        truth_known, found_known = np.isin(state.truth_label, labels), np.isin(state.found_label, labels)
        unknown, counts = np.unique(state.found_label[~found_known], return_counts=True)
        if not (truth_known.all() and found_known.all()):
            state = state.keep_instances(truth_known, found_known)
        if self.class_agnostic:
            truth_category, found_category = np.zeros_like(state.truth_label), np.zeros_like(state.found_label)
            categories = ANY_CATEGORY
        else:
            truth_category = np.searchsorted(labels, state.truth_label)
            found_category = np.searchsorted(labels, state.found_label)
        order = np.argsort(state.image_ids)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        precision, recall, scores = _host.coco_evaluate(
            categories=len(categories),
            images=len(order),
            image_sizes=state.image_sizes[order],
            truth_image=rank[state.truth_image],
            truth_category=truth_category,
            truth_shapes=state.truth_shape,
            truth_area=state.truth_area,
            truth_crowd=state.truth_crowd,
            truth_ignore=state.truth_ignore,
            found_image=rank[state.found_image],
            found_category=found_category,
            found_shapes=state.found_shape,
            found_score=state.found_score,
            found_area=state.found_area,
            iou_thresholds=self.iou_thresholds,
            recall_thresholds=self.recall_thresholds,
            area_ranges=list(self.area_ranges.values()),
            max_detections=self.max_detections,
            threads=torch.get_num_threads(),
        )
        return CocoResult(
            iou_type=self.iou_type,
            precision=precision,
            recall=recall,
            scores=scores,
            iou_thresholds=self.iou_thresholds,
            recall_thresholds=self.recall_thresholds,
            categories=categories,
            area_ranges=self.area_ranges,
            max_detections=self.max_detections,
            images=len(order),
            unknown_labels=dict(zip(unknown.tolist(), counts.tolist(), strict=True)),
        )


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not numbers or not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"{name} must hold numbers from 0 to 1, got {numbers}")
    return numbers
