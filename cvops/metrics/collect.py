"""Collecting detections and ground truth, image by image or process by process: what COCO's and VOC's evaluators share.
What is kept of an image is in state.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cvops.metrics import state as states
from cvops.metrics.state import DetectionState


class Collector:
    """The part of an evaluator that takes images in. It pickles, and so does its `state()`."""

    def __init__(self, iou_type: str) -> None:
        if iou_type not in ("bbox", "segm"):
            raise ValueError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")
        self.iou_type = iou_type
        self.reset()

    def reset(self) -> None:
        """Forgets what was collected."""
        self._parts: list[DetectionState] = []
        self._seen: set[int] = set()
        self._numbered: bool | None = None  # None: no image yet

    def update(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Adds images: one prediction and one target each, as our models and torchvision's give and take them.

        Args:
            predictions: `boxes [N, 4]` (x1, y1, x2, y2 in pixels), `scores [N]`, `labels [N]`; for masks, instead of
                boxes, `masks`: `[N, H, W]` or `[N, 1, H, W]`, bool or 0 and 1, or probabilities (floating point), which
                belong to the mask above 0.5; or a list of RLEs (`cvops.metrics.rle`).
            targets: `boxes [M, 4]` or `masks` alike and `labels [M]`; optionally `iscrowd [M]`, `ignore [M]` (neither
                finding nor missing it counts, but unlike a crowd it takes one detection), `area [M]` (in COCO's data
                that of the mask, also for boxes; otherwise that of the box or mask), and `image_id`, an int. The ids
                order detections of equal score, and tell images that two processes saw from one another; either all
                images have one, or none.

        Raises:
            ValueError: names the image's place in the batch, the entry, and what was expected.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f"predictions and targets must be one for each image, got {len(predictions)} and {len(targets)}"
            )
        ids = [_image_id(target) for target in targets]
        if not ids:
            return
        numbered = ids[0] is None
        if any((name is None) != numbered for name in ids) or self._numbered not in (None, numbered):
            raise ValueError("either all targets must have an image_id, or none")
        names = [len(self._seen) + i if name is None else name for i, name in enumerate(ids)]
        given = set(self._seen)
        for name in names:
            if name in given:
                raise ValueError(f"image_id {name} was given before")
            given.add(name)
        parts = []
        for i, (prediction, target, name) in enumerate(zip(predictions, targets, names, strict=True)):
            try:
                parts.append(states.from_tensors(self.iou_type, prediction, target, name))
            except ValueError as error:
                raise ValueError(f"image {i} of the batch: {error}") from None
        self._add(replace(states.join(parts), numbered=numbered))

    def state(self) -> DetectionState:
        """All that was collected; see `merge`."""
        self._parts = [states.join(self._parts or [states.empty(self.iou_type)])]
        return self._parts[0]

    def merge(self, other: Collector | DetectionState) -> None:
        """Adds what another evaluator, perhaps of another process, collected. An image that is here already is left
        out: samplers fill up the last batch by repeating images. Images without ids are always new.

        >>> import torch
        >>> from cvops.metrics import CocoEvaluator
        >>> here, there = CocoEvaluator(), CocoEvaluator()
        >>> nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> there.update([{**nothing, "scores": torch.zeros(0)}], [nothing])
        >>> here.merge(there.state())
        >>> here.compute().images
        1
        """
        state = other.state() if isinstance(other, Collector) else other
        if state.iou_type != self.iou_type:
            raise ValueError(f"cannot merge an evaluation of {state.iou_type} into one of {self.iou_type}")
        if len(state.image_ids) == 0:
            return
        if self._numbered is not None and state.numbered != self._numbered:
            raise ValueError("one of the evaluators has images with an image_id, the other without")
        if state.numbered:
            state = replace(state, image_ids=state.image_ids + len(self._seen))
        elif self._seen:
            state = state.keep_images(np.array([name not in self._seen for name in state.image_ids.tolist()]))
        self._add(state)

    def _add(self, state: DetectionState) -> None:
        self._parts.append(state)
        self._seen.update(state.image_ids.tolist())
        self._numbered = state.numbered


def _image_id(target: Mapping[str, Any]) -> int | None:
    name = target.get("image_id")
    if name is None:
        return None
    array = states.as_array(name)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"image_id must be one int, got {name!r}")
    return int(array.item())
