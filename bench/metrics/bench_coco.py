"""COCO evaluation and run-length encoding against pycocotools and faster-coco-eval.

`pytest bench/metrics/bench_coco.py --benchmark-enable` times, on 500 images, the evaluation alone: cvops from its
columns, the peers from the objects they make of the loaded files, whose making is not timed; then the mask functions.

`python -m bench.metrics.bench_coco` takes COCO's own size, 5,000 images x 80 classes x 100 detections, from files to
the twelve numbers, in a process for each run: seconds for reading and for evaluating, and the peak of resident memory,
of which the imports alone are given too (cvops brings torch). pycocotools takes minutes there, so nothing is repeated
unless `--repeat` says so; the best run counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Case, Contest, benchmarks, machine
from bench.metrics.one_run import TOOLS, load, silent

SIDE, CLASSES, DETECTIONS = 640, 80, 100


def scene(images: int, masks: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of a ground-truth and a result file. As in COCO, an image has 7.3 instances of about three classes, from
    small to large, 1 % of them crowds; of the detections, 60 % lie near an instance, mostly with its class."""
    rng = np.random.default_rng(0)
    count, total = round(7.3 * images), DETECTIONS * images
    image = np.sort(rng.integers(images, size=count))
    label = rng.integers(CLASSES, size=(images, 3))[image, rng.integers(3, size=count)]
    size = np.exp(rng.normal(4, 1, (count, 2))).clip(4, 400)
    box = np.concatenate([rng.random((count, 2)) * (SIDE - size), size], 1).round(2)
    crowd = rng.random(count) < 0.01

    found_image = np.repeat(np.arange(images), DETECTIONS)
    first = np.searchsorted(image, np.arange(images + 1))
    of_image = np.diff(first)[found_image]
    near = np.minimum(first[found_image] + (rng.random(total) * of_image).astype(int), count - 1)
    moved = box[near] + rng.normal(size=(total, 4)) * box[near, 2:].mean(1, keepdims=True) * 0.15
    anywhere = np.concatenate([rng.random((total, 2)) * 500, 5 + rng.random((total, 2)) * 150], 1)
    found_box = np.where((rng.random(total) < 0.6)[:, None], moved, anywhere)
    found_box[:, :2] = found_box[:, :2].clip(0, SIDE - 10)
    found_box[:, 2:] = np.minimum(found_box[:, 2:].clip(2), SIDE - found_box[:, :2])
    found_label = np.where(rng.random(total) < 0.7, label[near], rng.integers(CLASSES, size=total))
    score = rng.random(total).round(3)

    truth = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(CLASSES)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": k, "bbox": b, "area": b[2] * b[3], "iscrowd": int(c)}
            for n, (i, k, b, c) in enumerate(
                zip(image.tolist(), label.tolist(), box.tolist(), crowd.tolist(), strict=True)
            )
        ],
    }
    columns = (found_image, found_label, found_box.round(2), score)
    results = [
        {"image_id": i, "category_id": k, "bbox": b, "score": s}
        for i, k, b, s in zip(*(column.tolist() for column in columns), strict=True)
    ]
    if masks:
        add_masks(truth["annotations"], results)
    return truth, results


def add_masks(annotations: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    """An ellipse in every box: polygons of 24 points for the ground truth, RLEs for the results, which lose the box."""
    from cvops.metrics import rle

    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([1 + np.cos(angle), 1 + np.sin(angle)], 1) / 2

    def ellipse(box: list[float]) -> list[float]:
        return (circle * box[2:] + box[:2]).ravel().round(2).tolist()

    for annotation in annotations:
        annotation["segmentation"] = [ellipse(annotation["bbox"])]
    for result in results:
        result["segmentation"] = rle.from_polygons([ellipse(result.pop("bbox"))], SIDE, SIDE)


def evaluation(masks: bool, device: str) -> Contest:
    truth, results = scene(500, masks)
    iou_type = "segm" if masks else "bbox"
    calls = {
        tool: silent(load, tool, copy.deepcopy(truth), copy.deepcopy(results), iou_type) for tool in reversed(TOOLS)
    }
    peers = {tool: partial(silent, call) for tool, call in calls.items() if tool != "cvops"}
    return Contest(calls["cvops"], peers, 0, np.testing.assert_array_equal)


def bitmaps() -> np.ndarray:
    """100 masks, as many as a detector finds in an image, [100, 480, 640]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    centre, radius = rng.random((100, 2)) * [480, 640], 10 + rng.random(100) * 90
    return np.stack([(y - cy) ** 2 + (x - cx) ** 2 < r * r for (cy, cx), r in zip(centre, radius, strict=True)])


def encoding(device: str) -> Contest:
    from pycocotools import mask as peer

    from cvops.metrics import rle

    masks = bitmaps()
    return Contest(
        lambda: [encoded["counts"] for encoded in rle.encode(masks)],
        {
            "pycocotools": lambda: [
                encoded["counts"].decode()
                for encoded in peer.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
            ]
        },
        masks.nbytes,
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs),
    )


def decoding(device: str) -> Contest:
    from pycocotools import mask as peer

    from cvops.metrics import rle

    encoded = rle.encode(bitmaps())
    return Contest(
        lambda: rle.decode(encoded),
        {"pycocotools": lambda: peer.decode(encoded)},
        100 * 480 * 640,
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.transpose(2, 0, 1).astype(bool)),
    )


def overlaps(device: str) -> Contest:
    from pycocotools import mask as peer

    from cvops.metrics import rle

    encoded = rle.encode(bitmaps())
    crowd = [0] * len(encoded)
    return Contest(
        lambda: rle.iou(encoded, encoded),
        {"pycocotools": lambda: peer.iou(encoded, encoded, crowd)},
        8 * len(encoded) ** 2,
        np.testing.assert_array_equal,
    )


def drawing(device: str) -> Contest:
    from pycocotools import mask as peer

    from cvops.metrics import rle

    annotations = [{"bbox": [5.0 * i, 3.0 * i, 30 + i, 250 - 2.0 * i]} for i in range(100)]
    add_masks(annotations, [])
    parts = [annotation["segmentation"] for annotation in annotations]
    return Contest(
        lambda: [rle.from_polygons(part, SIDE, SIDE)["counts"] for part in parts],
        {"pycocotools": lambda: [peer.merge(peer.frPyObjects(part, SIDE, SIDE))["counts"].decode() for part in parts]},
        0,
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs),
    )


CASES = [
    Case("coco_eval", "boxes, 500 images x 80 classes x 100", partial(evaluation, False), 10, devices=("cpu",)),
    Case("coco_eval", "masks, 500 images x 80 classes x 100", partial(evaluation, True), 10, devices=("cpu",)),
    Case("rle", "encode 100 masks of 480 x 640", encoding, devices=("cpu",)),
    Case("rle", "decode 100 masks of 480 x 640", decoding, devices=("cpu",)),
    Case("rle", "iou of 100 x 100 masks", overlaps, devices=("cpu",)),
    Case("rle", "100 polygons of 24 points", drawing, devices=("cpu",)),
]

test_coco = benchmarks(CASES)


def compare_files(images: int, iou_type: str, tools: list[str], repeat: int) -> None:
    """The table of one kind of evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("truth.json", "results.json")]
        for file, part in zip(files, scene(images, iou_type == "segm"), strict=True):
            Path(file).write_text(json.dumps(part))
        megabytes = [os.path.getsize(file) / 1e6 for file in files]
        print(
            f"\n{iou_type}, {images} images x {CLASSES} classes x {DETECTIONS} detections, "
            f"files of {megabytes[0]:.0f} and {megabytes[1]:.0f} MB\n\n"
            "| tool | read s | evaluate s | together s | peak MB | of that imports MB |\n|---|---|---|---|---|---|"
        )
        expected = None
        for tool in tools:
            runs = []
            for _ in range(repeat):
                command = [sys.executable, "-m", "bench.metrics.one_run", tool, *files, iou_type]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            best = min(runs, key=lambda run: run["read"] + run["evaluate"])
            expected = expected or best["stats"]
            np.testing.assert_allclose(best["stats"], expected, rtol=0, atol=1e-12, err_msg=tool)
            print(
                f"| {tool} | {best['read']:.2f} | {best['evaluate']:.2f} | {best['read'] + best['evaluate']:.2f} | "
                f"{best['peak']:.0f} | {best['imports']:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--iou-type", choices=["bbox", "segm"], nargs="+", default=["bbox", "segm"])
    parser.add_argument("--tools", choices=TOOLS, nargs="+", default=list(TOOLS))
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), f"load {os.getloadavg()[0]:.1f}", sep=", ")
    for iou_type in options.iou_type:
        compare_files(options.images, iou_type, options.tools, options.repeat)


if __name__ == "__main__":
    main()
