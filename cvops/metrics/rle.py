"""Binary masks in COCO's run-length encoding: to and from bitmaps, polygons and boxes, areas, IoU. The engine is
csrc/host/rle.cpp and polygon.cpp.

An RLE is the dict that COCO files hold, `{"size": [height, width], "counts": text}`, with `counts` compressed. The text
is a `str`, which `json.dump` takes as it is; like pycocotools, this module also accepts `bytes`. Masks and polygons
give the very RLE that pycocotools gives. What it accepts in silence and cannot be meant (counts that do not add up to
the size, masks of different sizes in one call, polygons of an odd number of coordinates) is a `ValueError` here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cvops import _host


class Rle(TypedDict):
    """A mask as in COCO files."""

    size: list[int]  # height, width
    counts: str | bytes


def encode(masks: Tensor | ArrayLike) -> list[Rle]:
    """The RLEs of masks `[N, H, W]`: bool, or numbers of which all but 0 belong to the mask.

    >>> encode([[[0, 1, 1], [0, 1, 0]]])
    [{'size': [2, 3], 'counts': '231'}]
    """
    bitmaps = as_bitmaps(masks)
    return [
        {"size": list(bitmaps.shape[1:]), "counts": counts.decode()}
        for counts in _host.rle_encode(bitmaps, torch.get_num_threads())
    ]


def decode(rles: Sequence[Rle]) -> NDArray[np.bool_]:
    """The masks `[N, H, W]` of RLEs of one size.

    >>> decode([{"size": [2, 3], "counts": "231"}]).astype(int).tolist()
    [[[0, 1, 1], [0, 1, 0]]]
    """
    if not rles:
        raise ValueError("rles must hold at least one mask: the size of none is not known")
    return _host.rle_decode(_counts(rles), *_common_size(rles)).view(np.bool_)


def area(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Pixels of each mask, `[N]`; sizes may differ.

    >>> area([{"size": [2, 3], "counts": "231"}])
    array([3])
    """
    return _host.rle_area(_counts(rles), sizes(rles))


def boxes(rles: Sequence[Rle]) -> NDArray[np.float64]:
    """The smallest box around each mask, `[N, 4]` as x, y, width, height in pixels (COCO's form, not corners); zeros
    for an empty mask. Sizes may differ.

    >>> boxes([{"size": [2, 3], "counts": "231"}])
    array([[1., 0., 2., 2.]])
    """
    return _host.rle_boxes(_counts(rles), sizes(rles))


def iou(
    detections: Sequence[Rle], ground_truth: Sequence[Rle], iscrowd: ArrayLike | None = None
) -> NDArray[np.float64]:
    """IoU of every detection with every ground truth, `[N, M]`, all of one size. Where `iscrowd` `[M]` is set, the
    intersection is divided by the detection's area instead of the union.

    >>> full, left = encode([[[1, 1]], [[1, 0]]])
    >>> iou([left], [full, left])
    array([[0.5, 1. ]])
    >>> iou([left], [full], iscrowd=[1])
    array([[1.]])
    """
    crowd = np.zeros(len(ground_truth), np.bool_) if iscrowd is None else np.asarray(iscrowd, np.bool_)
    if not detections or not ground_truth:
        return np.zeros((len(detections), len(ground_truth)))
    size = _common_size([*detections, *ground_truth])
    return _host.rle_iou(_counts(detections), _counts(ground_truth), crowd, *size)


def merge(rles: Sequence[Rle], intersection: bool = False) -> Rle:
    """The union of masks of one size, or their intersection.

    >>> merge(encode([[[1, 0, 0]], [[0, 0, 1]]]))
    {'size': [1, 3], 'counts': '0110'}
    """
    if not rles:
        raise ValueError("rles must hold at least one mask: the size of none is not known")
    height, width = _common_size(rles)
    return {"size": [height, width], "counts": _host.rle_merge(_counts(rles), height, width, intersection).decode()}


def from_polygons(polygons: Sequence[Iterable[float]], height: int, width: int) -> Rle:
    """The union of polygons, each `x, y, x, y, ...` in pixels, on an image of that size. The corner of the first pixel
    is at 0, 0; parts outside the image are cut off.

    >>> from_polygons([[1, 0, 3, 0, 3, 2, 1, 2]], height=2, width=3)
    {'size': [2, 3], 'counts': '24'}
    """
    return {"size": [height, width], "counts": _host.rle_from_polygons(polygons, height, width).decode()}


def from_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """The RLE of whatever the `segmentation` of a COCO annotation may be: polygons, an RLE whose counts are a list, or
    compressed ones.

    >>> from_segmentation({"size": [2, 3], "counts": [2, 3, 1]}, height=2, width=3)
    {'size': [2, 3], 'counts': '231'}
    """
    if isinstance(segmentation, list) and segmentation:
        if any(not isinstance(part, list | tuple) for part in segmentation):
            raise ValueError("polygons must be a list of lists of numbers")
        return from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("a segmentation must be polygons or an RLE with 'size' and 'counts'")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"the size of the RLE is {segmentation['size']}, its image's is {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = _host.rle_from_counts(counts, height, width).decode()
    return {"size": [height, width], "counts": counts}


def box_polygon(box: Sequence[float]) -> list[float]:
    """The corners of a box `x, y, width, height`, in the order in which pycocotools draws them.

    >>> box_polygon([1, 2, 3, 4])
    [1, 2, 1, 6, 4, 6, 4, 2]
    """
    x, y, width, height = box
    return [x, y, x, y + height, x + width, y + height, x + width, y]


def as_bitmaps(masks: Tensor | ArrayLike) -> NDArray[np.bool_]:
    """Masks `[N, H, W]` as a contiguous bool array; all but 0 is true."""
    array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    if array.ndim != 3:
        raise ValueError(f"masks must have shape [N, H, W], got {list(array.shape)}")
    return np.ascontiguousarray(array if array.dtype == np.bool_ else array != 0)


def sizes(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Height and width of each, `[N, 2]`."""
    return np.array([rle["size"] for rle in rles], np.int64).reshape(-1, 2)


def _counts(rles: Sequence[Rle]) -> list[str | bytes]:
    return [rle["counts"] for rle in rles]


def _common_size(rles: Sequence[Rle]) -> tuple[int, int]:
    found = {tuple(rle["size"]) for rle in rles}
    if len(found) != 1:
        raise ValueError(f"masks must have one size, got {sorted(found)}")
    height, width = found.pop()
    return height, width
