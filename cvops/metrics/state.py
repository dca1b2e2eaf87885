"""What an evaluation keeps of the images it has seen: compact columns, one entry an instance, which processes can send
to each other. Made here from a model's tensors, in coco_json.py from COCO's files; collected in collect.py, evaluated
in coco.py and voc.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvops import _host
from cvops.metrics import rle

Shapes = NDArray[np.float64] | list[bytes | str]


@dataclass
class DetectionState:
    """Images, their ground truth, and what was found in them. It pickles; the `merge` of an evaluator takes it."""

    image_ids: NDArray[np.int64]  # [I]
    image_sizes: NDArray[np.int64]  # [I, 2], height and width of the masks; 0 for boxes and where there is no mask
    truth_image: NDArray[np.int32]  # [G], places in image_ids
    truth_label: NDArray[np.int64]
    truth_shape: Shapes  # boxes [G, 4] as x, y, width, height, or compressed counts of masks
    truth_area: NDArray[np.float64]
    truth_crowd: NDArray[np.bool_]
    truth_ignore: NDArray[np.bool_]
    found_image: NDArray[np.int32]  # [D], places in image_ids
    found_label: NDArray[np.int64]
    found_shape: Shapes  # as truth_shape
    found_score: NDArray[np.float64]
    found_area: NDArray[np.float64] | None = None  # None: that of the shape
    numbered: bool = False  # image_ids only count the images: the targets named none

    @property
    def iou_type(self) -> str:
        return "segm" if isinstance(self.truth_shape, list) else "bbox"

    def keep_images(self, keep: NDArray[np.bool_]) -> DetectionState:
        """The images where `keep` `[I]` is set, and what is in them."""
        place = (np.cumsum(keep) - 1).astype(np.int32)
        kept = self.keep_instances(keep[self.truth_image], keep[self.found_image])
        return replace(
            kept,
            image_ids=self.image_ids[keep],
            image_sizes=self.image_sizes[keep],
            truth_image=place[kept.truth_image],
            found_image=place[kept.found_image],
        )

    def keep_instances(self, truth: NDArray[Any], found: NDArray[Any]) -> DetectionState:
        """All images with the ground truth and detections that the indices choose, in their order."""
        columns: dict[str, Any] = {}
        for field in fields(self):
            index = {"truth": truth, "found": found}.get(field.name.partition("_")[0])
            column = getattr(self, field.name)
            if index is None or column is None:
                continue
            if isinstance(column, list):
                places = np.flatnonzero(index) if index.dtype == np.bool_ else index
                columns[field.name] = [column[i] for i in places.tolist()]
            else:
                columns[field.name] = column[index]
        return replace(self, **columns)


def join(states: Sequence[DetectionState]) -> DetectionState:
    """The images of all, in order; there is at least one state."""
    if len(states) == 1:
        return states[0]
    offsets = np.cumsum([0, *(len(state.image_ids) for state in states)])
    columns: dict[str, Any] = {}
    for field in fields(DetectionState):
        parts = [getattr(state, field.name) for state in states]
        if field.name == "numbered":
            columns[field.name] = parts[0]
        elif field.name in ("truth_image", "found_image"):
            columns[field.name] = np.concatenate([part + np.int32(n) for part, n in zip(parts, offsets, strict=False)])
        elif field.name == "found_area" and all(part is None for part in parts):
            columns[field.name] = None
        elif field.name == "found_area":
            columns[field.name] = np.concatenate([_areas(state) for state in states])
        elif isinstance(parts[0], list):
            columns[field.name] = [shape for part in parts for shape in part]
        else:
            columns[field.name] = np.concatenate(parts)
    return DetectionState(**columns)


def from_tensors(
    iou_type: str, prediction: Mapping[str, Any], target: Mapping[str, Any], image_id: int
) -> DetectionState:
    """The columns of one image; see `Collector.update`. Errors name the entry."""
    truth_label = _column(target, "labels", "target", np.int64)
    found_label = _column(prediction, "labels", "prediction", np.int64)
    n = len(truth_label)
    if iou_type == "segm":
        truth_shape, truth_size = _masks(target, "target", n)
        found_shape, found_size = _masks(prediction, "prediction", len(found_label))
        size = truth_size or found_size or (0, 0)
        if found_size not in (None, size):
            raise ValueError(f"prediction masks are {found_size} pixels in height and width, target masks {size}")
        shapes: tuple[Shapes, Shapes] = truth_shape, found_shape
        own_area = _host.rle_area(truth_shape, np.tile(np.array(size), (n, 1))).astype(np.float64)
    else:
        size = (0, 0)
        boxes = _boxes(target, "target", n)
        shapes = boxes, _boxes(prediction, "prediction", len(found_label))
        own_area = boxes[:, 2] * boxes[:, 3]
    score = _column(prediction, "scores", "prediction", np.float64, len(found_label))
    if np.isnan(score).any():
        raise ValueError("prediction scores must be numbers, got nan")
    crowd = _column(target, "iscrowd", "target", np.bool_, n, default=False)
    return DetectionState(
        image_ids=np.array([image_id], np.int64),
        image_sizes=np.array([size], np.int64),
        truth_image=np.zeros(n, np.int32),
        truth_label=truth_label,
        truth_shape=shapes[0],
        truth_area=_column(target, "area", "target", np.float64, n) if "area" in target else own_area,
        truth_crowd=crowd,
        truth_ignore=_column(target, "ignore", "target", np.bool_, n, default=False),
        found_image=np.zeros(len(found_label), np.int32),
        found_label=found_label,
        found_shape=shapes[1],
        found_score=score,
    )


def empty(iou_type: str) -> DetectionState:
    """No images."""
    nothing: dict[str, Any] = {"labels": [], "scores": [], "boxes": np.zeros((0, 4)), "masks": []}
    return from_tensors(iou_type, nothing, nothing, 0).keep_images(np.zeros(1, np.bool_))


def as_array(value: Any) -> NDArray[Any]:
    """A tensor of any dtype and device, or what numpy takes, as an array."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _entry(source: Mapping[str, Any], key: str, owner: str) -> Any:
    if key not in source:
        raise ValueError(f"the {owner} must have {key!r}, got {sorted(source)}")
    return source[key]


def _column(
    source: Mapping[str, Any], key: str, owner: str, dtype: Any, length: int | None = None, default: Any = None
) -> NDArray[Any]:
    """`source[key]` as an array [length]; with a default, it may be missing."""
    if default is not None and key not in source:
        return np.full(length or 0, default, dtype)
    array = as_array(_entry(source, key, owner))
    if array.ndim != 1 or length not in (None, len(array)):
        wanted = "[N]" if length is None else f"[{length}], as labels"
        raise ValueError(f"{owner} {key} must have shape {wanted}, got {list(array.shape)}")
    kinds = "iu" if dtype == np.int64 else "iufb"
    if array.size and array.dtype.kind not in kinds:
        raise ValueError(f"{owner} {key} must be {'integers' if kinds == 'iu' else 'numbers'}, got {array.dtype}")
    return array.astype(dtype)


def _boxes(source: Mapping[str, Any], owner: str, length: int) -> NDArray[np.float64]:
    """Corners to x, y, width, height, in double precision, as COCO's files would hold them."""
    corners = as_array(_entry(source, "boxes", owner))
    if corners.shape != (length, 4) or corners.dtype.kind not in "iuf":
        raise ValueError(f"{owner} boxes must be numbers [{length}, 4], one a label, got {list(corners.shape)}")
    boxes = corners.astype(np.float64)
    if not np.isfinite(boxes).all():
        raise ValueError(f"{owner} boxes must be finite, got {boxes[~np.isfinite(boxes).all(1)][0].tolist()}")
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _masks(source: Mapping[str, Any], owner: str, length: int) -> tuple[list[bytes | str], tuple[int, int] | None]:
    """Compressed counts and the size, which is not known if there is no mask and no array."""
    masks = _entry(source, "masks", owner)
    if isinstance(masks, list | tuple) and all(isinstance(mask, Mapping) for mask in masks):
        if len(masks) != length:
            raise ValueError(f"{owner} masks must be {length}, one a label, got {len(masks)}")
        rle.area(masks)  # raises unless the counts are sound
        sizes = {(int(height), int(width)) for height, width in rle.sizes(masks).tolist()}
        if len(sizes) > 1:
            raise ValueError(f"{owner} masks must have one size, got {sorted(sizes)}")
        counts = [mask["counts"] for mask in masks]
        return [text.encode() if isinstance(text, str) else text for text in counts], next(iter(sizes), None)
    array = as_array(masks)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3 or len(array) != length:
        raise ValueError(f"{owner} masks must have shape [{length}, H, W], one a label, got {list(array.shape)}")
    bitmaps = array > 0.5 if array.dtype.kind == "f" else array
    height, width = array.shape[1:]
    return list(_host.rle_encode(rle.as_bitmaps(bitmaps), torch.get_num_threads())), (height, width)


def _areas(state: DetectionState) -> NDArray[np.float64]:
    if state.found_area is not None:
        return state.found_area
    if isinstance(state.found_shape, list):
        return _host.rle_area(state.found_shape, state.image_sizes[state.found_image]).astype(np.float64)
    return state.found_shape[:, 2] * state.found_shape[:, 3]
