# Types of the pybind11 module in csrc/host.
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

def active_isa() -> str: ...
def build_info() -> dict[str, str]: ...

# Masks: COCO's compressed counts in lists. bind_rle.cpp
Counts = Sequence[bytes | str]

def rle_encode(masks: ArrayLike, threads: int = 1) -> list[bytes]: ...
def rle_decode(counts: Counts, height: int, width: int) -> NDArray[np.uint8]: ...
def rle_area(counts: Counts, sizes: ArrayLike) -> NDArray[np.int64]: ...
def rle_boxes(counts: Counts, sizes: ArrayLike) -> NDArray[np.float64]: ...
def rle_iou(found: Counts, truth: Counts, crowd: ArrayLike, height: int, width: int) -> NDArray[np.float64]: ...
def rle_merge(counts: Counts, height: int, width: int, intersection: bool = False) -> bytes: ...
def rle_from_polygons(polygons: Sequence[Iterable[float]], height: int, width: int) -> bytes: ...
def rle_from_counts(counts: Sequence[int], height: int, width: int) -> bytes: ...

# COCO evaluation: columns of instances in, curves out. bind_coco.cpp
def coco_evaluate(
    *,
    categories: int,
    images: int,
    image_sizes: ArrayLike | None,
    truth_image: ArrayLike,
    truth_category: ArrayLike,
    truth_shapes: NDArray[np.float64] | Counts,
    truth_area: ArrayLike,
    truth_crowd: ArrayLike,
    truth_ignore: ArrayLike,
    found_image: ArrayLike,
    found_category: ArrayLike,
    found_shapes: NDArray[np.float64] | Counts,
    found_score: ArrayLike,
    found_area: ArrayLike | None,
    iou_thresholds: Sequence[float],
    recall_thresholds: Sequence[float],
    area_ranges: Sequence[tuple[float, float]],
    max_detections: Sequence[int],
    threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
