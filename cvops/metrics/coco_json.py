"""COCO's files: ground truth (`instances_*.json`) and results, read into an evaluator.

What decides the numbers is read as pycocotools reads it, its less obvious rules included. Of ground truth, only
`iscrowd` makes an instance ignored; an `ignore` flag does not. If the first result has a box, the areas of all results
are those of boxes, for masks too; if it has none, boxes are drawn around the masks. Results without a mask get that of
their box. Unlike there, ids of annotations mean nothing (an id 0 or one used twice corrupts pycocotools' matches), and
files that cannot be what was meant raise a `CocoFormatError`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvops import _host
from cvops.metrics import rle
from cvops.metrics.coco import CocoEvaluator
from cvops.metrics.state import DetectionState, Shapes

Objects = Sequence[Mapping[str, Any]]
INT64 = range(-(2**63), 2**63)


class CocoFormatError(ValueError):
    """A file, or what was read from one, is not in COCO's format; says where."""


def read_coco(
    ground_truth: str | PathLike[str] | Mapping[str, Any],
    results: str | PathLike[str] | Objects,
    iou_type: str = "bbox",
    **settings: Any,
) -> CocoEvaluator:
    """An evaluator that holds the ground truth and the results, ready for `compute()`.

    Args:
        ground_truth: path of a file, or the object in it: `images`, `categories`, `annotations`.
        results: path, or the list in it: `image_id`, `category_id`, `score` and `bbox` or `segmentation` each. Results
            of categories that the ground truth does not list are left out; `CocoResult.unknown_labels` counts them.
        iou_type: `"bbox"` or `"segm"`.
        settings: further arguments of `CocoEvaluator`.

    Raises:
        CocoFormatError: names the file or list, the place in it, and what was expected.

    >>> truth = {
    ...     "images": [{"id": 1, "height": 100, "width": 100}],
    ...     "categories": [{"id": 18, "name": "dog"}],
    ...     "annotations": [{"image_id": 1, "category_id": 18, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}],
    ... }
    >>> found = [{"image_id": 1, "category_id": 18, "bbox": [10, 10, 50, 40], "score": 0.9}]
    >>> round(read_coco(truth, found).compute().per_class[0]["AP75"], 3)
    1.0
    """
    evaluator = CocoEvaluator(iou_type, **settings)
    truth = _load(ground_truth)
    if not isinstance(truth, Mapping) or not {"images", "categories", "annotations"} <= truth.keys():
        raise CocoFormatError("the ground truth must be an object with images, categories and annotations")
    images = _Images(truth["images"])
    ids = _integers(truth["categories"], "categories", "id")
    if evaluator.categories is None:
        names = [str(category.get("name", category["id"])) for category in truth["categories"]]
        evaluator.categories = dict(sorted(zip(ids.tolist(), names, strict=True)))
    columns = _truth_columns(truth["annotations"], images, set(ids.tolist()), iou_type)
    del truth
    columns |= _found_columns(_load(results), images, iou_type)
    evaluator.merge(DetectionState(image_ids=images.ids, image_sizes=images.sizes, **columns))
    return evaluator


class _Images:
    """Ids to places, in ascending order, and sizes."""

    def __init__(self, images: Objects) -> None:
        listed = _column(images, "images", "id")
        try:
            ordered = sorted(set(listed))
        except TypeError:
            raise CocoFormatError("images: the ids must all be numbers, or all be text") from None
        self.place: dict[Hashable, int] = {name: place for place, name in enumerate(ordered)}
        integers = all(isinstance(name, int) and name in INT64 for name in ordered)
        self.ids = np.array(ordered if integers else range(len(ordered)), np.int64)
        self.sizes = np.zeros((len(ordered), 2), np.int64)
        for i, image in enumerate(images):
            size = image.get("height", 0), image.get("width", 0)
            if not all(isinstance(length, int) and 0 <= length < 2**31 for length in size):
                raise CocoFormatError(f"images[{i}] must have whole numbers as height and width, got {size}")
            self.sizes[self.place[image["id"]]] = size

    def places(self, objects: Objects, name: str) -> NDArray[np.int32]:
        """The image of every object."""
        named = _column(objects, name, "image_id")
        try:
            return np.fromiter((self.place[image] for image in named), np.int32, len(named))
        except (KeyError, TypeError):
            for i, image in enumerate(named):
                if not isinstance(image, Hashable) or image not in self.place:
                    raise CocoFormatError(
                        f"{name}[{i}] has image_id {image!r}, which is none of the ground truth's images"
                    ) from None
            raise


def _truth_columns(annotations: Objects, images: _Images, categories: set[int], iou_type: str) -> dict[str, Any]:
    name = "annotations"
    image = images.places(annotations, name)
    label = _integers(annotations, name, "category_id")
    for i in np.flatnonzero(~np.isin(label, list(categories)))[:1].tolist():
        raise CocoFormatError(f"annotations[{i}] has category_id {label[i]}, which is none of the categories")
    shape: Shapes
    if iou_type == "segm":
        shape = _masks(_column(annotations, name, "segmentation"), name, image, images)
        own_area = _mask_areas(shape, name, image, images)
    else:
        shape = _boxes(_column(annotations, name, "bbox"), name)
        own_area = shape[:, 2] * shape[:, 3]
    has_area = any("area" in annotation for annotation in annotations)
    crowd = [annotation.get("iscrowd", 0) for annotation in annotations]
    return {
        "truth_image": image,
        "truth_label": label,
        "truth_shape": shape,
        "truth_area": _numbers(_column(annotations, name, "area"), name, "area") if has_area else own_area,
        "truth_crowd": _numbers(crowd, name, "iscrowd").astype(np.bool_),
        "truth_ignore": np.zeros(len(label), np.bool_),
    }


def _found_columns(results: Objects, images: _Images, iou_type: str) -> dict[str, Any]:
    name = "results"
    image = images.places(results, name)
    boxed = bool(results) and bool(results[0].get("bbox"))
    area: NDArray[np.float64] | None = None
    shape: Shapes
    if iou_type == "segm" and boxed:
        boxes = _boxes(_column(results, name, "bbox"), name)
        drawn = ([rle.box_polygon(box)] for box in boxes.tolist())
        given = [result.get("segmentation", drawing) for result, drawing in zip(results, drawn, strict=True)]
        shape = _masks(given, name, image, images)
        _mask_areas(shape, name, image, images)
        area = boxes[:, 2] * boxes[:, 3]
    elif iou_type == "segm":
        shape = _masks(_column(results, name, "segmentation"), name, image, images)
        area = _mask_areas(shape, name, image, images)
    elif boxed or not any("segmentation" in result for result in results):
        shape = _boxes(_column(results, name, "bbox"), name)
    else:
        masks = _masks(_column(results, name, "segmentation"), name, image, images)
        area = _mask_areas(masks, name, image, images)
        around = rle.boxes([{"size": size, "counts": m} for size, m in zip(images.sizes[image], masks, strict=True)])
        shape = _boxes([result.get("bbox") or box for result, box in zip(results, around.tolist(), strict=True)], name)
    return {
        "found_image": image,
        "found_label": _integers(results, name, "category_id"),
        "found_shape": shape,
        "found_score": _numbers(_column(results, name, "score"), name, "score"),
        "found_area": area,
    }


def _load(source: Any) -> Any:
    if not isinstance(source, str | PathLike):
        return source
    # Half a million small objects, none of them in a cycle: looking for cycles among them takes as long as the reading.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with Path(source).open(encoding="utf-8") as file:
            return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CocoFormatError(f"{source} is not JSON: {error}") from None
    finally:
        if collecting:
            gc.enable()


def _column(objects: Objects, name: str, key: str) -> list[Any]:
    """`key` of every object of the list called `name`."""
    if not isinstance(objects, list | tuple):
        raise CocoFormatError(f"{name} must be a list of objects, got {type(objects).__name__}")
    try:
        return [item[key] for item in objects]
    except (KeyError, TypeError):
        for i, item in enumerate(objects):
            if not isinstance(item, Mapping) or key not in item:
                raise CocoFormatError(f"{name}[{i}] must be an object with {key!r}, got {_short(item)}") from None
        raise


def _integers(objects: Objects, name: str, key: str) -> NDArray[np.int64]:
    values = _column(objects, name, key)
    for i, value in enumerate(values):
        if type(value) is not int or value not in INT64:
            raise CocoFormatError(f"{name}[{i}].{key} must be a whole number of 64 bits, got {_short(value)}")
    return np.array(values, np.int64)


def _numbers(values: list[Any], name: str, key: str) -> NDArray[np.float64]:
    return _floats(values, (), f"{name}[{{}}].{key} must be a finite number")


def _boxes(values: list[Any], name: str) -> NDArray[np.float64]:
    return _floats(values, (4,), f"{name}[{{}}].bbox must be four finite numbers, x, y, width, height")


def _floats(values: list[Any], shape: tuple[int, ...], complaint: str) -> NDArray[np.float64]:
    """`values` as an array [N, *shape]; the complaint is completed with the place of the first value that is none."""

    def convert(part: list[Any]) -> NDArray[np.float64] | None:
        try:
            array = np.array(part) if part else np.zeros((0, *shape))
        except ValueError:
            return None
        fits = array.shape == (len(part), *shape) and array.dtype.kind in "iufb" and np.isfinite(array).all()
        return array.astype(np.float64, copy=False) if fits else None

    whole = convert(values)
    if whole is not None:
        return whole
    bad = next(i for i, value in enumerate(values) if convert([value]) is None)
    raise CocoFormatError(f"{complaint.format(bad)}, got {_short(values[bad])}")


def _masks(segmentations: list[Any], name: str, image: NDArray[np.int32], images: _Images) -> list[bytes | str]:
    sizes = images.sizes.tolist()
    counts = []
    for i, (segmentation, place) in enumerate(zip(segmentations, image.tolist(), strict=True)):
        if sizes[place][0] == 0:
            raise CocoFormatError(f"masks need the height and width of their image; that of {name}[{i}] has none")
        try:
            counts.append(rle.from_segmentation(segmentation, *sizes[place])["counts"])
        except (ValueError, TypeError) as error:
            raise CocoFormatError(f"{name}[{i}].segmentation: {error}") from None
    return counts


def _mask_areas(masks: list[bytes | str], name: str, image: NDArray[np.int32], images: _Images) -> NDArray[np.float64]:
    try:
        return _host.rle_area(masks, images.sizes[image]).astype(np.float64)
    except ValueError as error:
        raise CocoFormatError(f"segmentation of {name}, {error}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
