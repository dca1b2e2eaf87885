"""Random COCO data sets, small and nasty, for the tests of tests/metrics: crowds, ties in score and in overlap,
classes and images with nothing in them, ids with gaps, areas on the borders of the ranges, boxes on whole pixels and
between them. And pycocotools, to compare with."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 40, 50


def random_scene(seed: int, masks: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The object of a ground-truth file and the list of a result file."""
    rng = np.random.default_rng(seed)
    scale = 1 if masks else float(rng.choice([1, 4, 12]))  # boxes cover all three of COCO's sizes
    whole = rng.random() < 0.4
    image_ids = rng.choice(1000, rng.integers(1, 9), replace=False).tolist()
    category_ids = rng.choice(200, rng.integers(1, 5), replace=False).tolist()
    levels = int(rng.choice([2, 10, 10**6]))  # of scores: many ties, some, none

    def box() -> list[float]:
        corner, size = rng.random(2) * [WIDTH * 0.7, HEIGHT * 0.7], 1 + rng.random(2) * [WIDTH * 0.6, HEIGHT * 0.6]
        values = np.concatenate([corner, np.minimum(size, [WIDTH, HEIGHT] - corner)]) * scale
        return (np.round(values) if whole else values).tolist()

    def shape(box: list[float]) -> Any:
        x, y, w, h = box
        kind = rng.integers(3)
        if kind == 0:
            corners = [x, y, x + w, y + 0.2 * h, x + 0.7 * w, y + h, x + 0.1 * w, y + 0.8 * h]
            return [corners, box_corners(x, y, w / 2, h / 3)] if rng.random() < 0.4 else [corners]
        bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
        bitmap[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = rng.random() < 0.95
        bitmap &= rng.random((HEIGHT, WIDTH)) < rng.choice([0.8, 1.0])
        if kind == 1:
            changes = np.flatnonzero(np.diff(bitmap.ravel("F"), prepend=0))
            return {"size": [HEIGHT, WIDTH], "counts": np.diff(changes, prepend=0, append=bitmap.size).tolist()}
        return compressed(bitmap)

    annotations, results = [], []
    for image in image_ids:
        for _ in range(rng.integers(0, 10)):
            around = box()
            crowd = int(rng.random() < 0.15)
            area = float(
                rng.choice([around[2] * around[3], 32.0**2, 96.0**2, 1.0, 2e10], p=[0.8, 0.05, 0.05, 0.05, 0.05])
            )
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(rng.choice(category_ids)),
                "bbox": around,
                "area": area,
                "iscrowd": crowd,
                "ignore": int(rng.random() < 0.2),
            }
            if masks:
                annotation["segmentation"] = shape(around)
            annotations.append(annotation)
            if rng.random() < 0.1:
                annotations.append(copy.deepcopy(annotation) | {"id": len(annotations) + 1})
        for _ in range(rng.integers(0, 25)):
            near = [a for a in annotations if a["image_id"] == image]
            around, category = (
                box(),
                int(rng.choice([*category_ids, 777], p=[0.97 / len(category_ids)] * len(category_ids) + [0.03])),
            )
            if near and rng.random() < 0.7:
                source = near[rng.integers(len(near))]
                jitter = 0 if rng.random() < 0.3 else rng.choice([0.5, 2.0, 6.0]) * scale
                around = [max(v + jitter * rng.normal(), 0.5) for v in source["bbox"]]
                around = np.round(around).tolist() if whole else around
                category = source["category_id"] if rng.random() < 0.9 else category
            score = float(rng.integers(levels) / levels)
            result = {"image_id": image, "category_id": category, "score": score}
            if masks:
                around[2:] = [min(around[2], WIDTH - around[0] - 1), min(around[3], HEIGHT - around[1] - 1)]
                around = [max(v, 0.5) for v in around]
                bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
                x, y, w, h = np.round(around).astype(int)
                bitmap[y : y + h, x : x + w] = 1
                bitmap &= rng.random((HEIGHT, WIDTH)) < rng.choice([0.9, 1.0])
                result["segmentation"] = compressed(bitmap)
            else:
                result["bbox"] = around
            results.append(result)
    truth = {
        "images": [{"id": int(i), "height": HEIGHT, "width": WIDTH} for i in image_ids],
        "categories": [{"id": int(c), "name": f"class {c}"} for c in category_ids],
        "annotations": annotations,
    }
    return truth, results


def box_corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x, y + h, x + w, y + h, x + w, y]


def compressed(bitmap: np.ndarray) -> dict[str, Any]:
    encoded = mask.encode(np.asfortranarray(bitmap))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def peer(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str, **params: Any) -> COCOeval:
    """What pycocotools makes of them; `summarize` only with its own parameters."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO()
        loaded.dataset = truth
        loaded.createIndex()
        evaluation = COCOeval(loaded, loaded.loadRes(results), iou_type)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        if not params:
            evaluation.summarize()
    return evaluation
