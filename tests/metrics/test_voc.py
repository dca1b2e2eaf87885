"""VocEvaluator against the words of VOC's development kit, written out slowly, on random data; and cases by hand."""

from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from cvops.metrics import VocEvaluator

Image = tuple[dict[str, Any], dict[str, Any]]


def random_images(seed: int) -> list[Image]:
    rng = np.random.default_rng(seed)
    levels = int(rng.choice([4, 10**6]))
    images = []
    for image_id in rng.permutation(6):
        g, d = rng.integers(0, 7), rng.integers(0, 15)
        corner = rng.integers(0, 30, (g, 2))
        truth = np.concatenate([corner, corner + rng.integers(1, 25, (g, 2))], 1).astype(float)
        found = rng.integers(0, 30, (d, 4)).astype(float)
        if g:
            found = truth[rng.integers(g, size=d)] + rng.integers(-3, 4, (d, 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        target = {
            "boxes": torch.from_numpy(truth),
            "labels": torch.from_numpy(rng.integers(0, 3, g)),
            "difficult": torch.from_numpy(rng.random(g) < 0.2),
            "image_id": int(image_id),
        }
        prediction = {
            "boxes": torch.from_numpy(found),
            "labels": torch.from_numpy(rng.integers(0, 4, d)),
            "scores": torch.from_numpy(rng.integers(levels, size=d) / levels),
        }
        images.append((prediction, target))
    return images


def development_kit(images: list[Image], label: int, least: float, plus: int, eleven_points: bool) -> float:
    """VOCevaldet and VOCap, for one class, in fractions."""
    images = sorted(images, key=lambda image: image[1]["image_id"])
    truth, found, positives = [], [], 0
    for i, (prediction, target) in enumerate(images):
        mine = [n for n, other in enumerate(target["labels"].tolist()) if other == label]
        truth.append([(target["boxes"][n].tolist(), bool(target["difficult"][n])) for n in mine])
        positives += sum(not difficult for _, difficult in truth[-1])
        for box, other, score in zip(*(prediction[key].tolist() for key in ("boxes", "labels", "scores")), strict=True):
            if other == label:
                found.append((score, i, box))
    if positives == 0:
        return math.nan
    found.sort(key=lambda detection: -detection[0])
    taken = [[False] * len(boxes) for boxes in truth]
    hits, misses, curve = 0, 0, []
    for _, i, box in found:
        best, place = -math.inf, -1
        for n, (other, _) in enumerate(truth[i]):
            width = min(box[2], other[2]) - max(box[0], other[0]) + plus
            height = min(box[3], other[3]) - max(box[1], other[1]) + plus
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + plus) * (b[3] - b[1] + plus) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best:
                    best, place = overlap, n
        if best >= least:
            if truth[i][place][1]:
                continue
            if not taken[i][place]:
                taken[i][place] = True
                hits += 1
            else:
                misses += 1
        else:
            misses += 1
        curve.append((Fraction(hits, positives), Fraction(hits, hits + misses)))
    if eleven_points:
        best_at = [max((p for r, p in curve if r >= Fraction(n, 10)), default=Fraction(0)) for n in range(11)]
        return float(sum(best_at) / 11)
    curve = [(Fraction(0), Fraction(0)), *curve, (Fraction(1), Fraction(0))]
    steps = itertools.pairwise(curve)
    return float(
        sum((b[0] - a[0]) * max(p for _, p in curve[n + 1 :]) for n, (a, b) in enumerate(steps) if b[0] > a[0])
    )


@pytest.mark.parametrize("plus", [0, 1])
@pytest.mark.parametrize("eleven_points", [False, True])
def test_as_the_development_kit(plus: int, eleven_points: bool) -> None:
    seen = 0
    for seed in range(25):
        images = random_images(seed)
        evaluator = VocEvaluator(whole_pixels=bool(plus))
        evaluator.update(*map(list, zip(*images, strict=True)))
        for least in (0.3, 0.5, 0.8):
            result = evaluator.compute(least, eleven_points=eleven_points)
            expected = [development_kit(images, label, least, plus, eleven_points) for label in result.ap]
            np.testing.assert_allclose(list(result.ap.values()), expected, rtol=0, atol=1e-12)
            assert result.mean == pytest.approx(np.nanmean(expected), abs=1e-12)
            seen += sum(0.05 < value < 1 for value in expected)
    assert seen > 50


def test_parts_of_two_processes() -> None:
    images = random_images(3)
    whole, left, right = VocEvaluator(), VocEvaluator(), VocEvaluator()
    whole.update(*map(list, zip(*images, strict=True)))
    left.update(*map(list, zip(*images[:4], strict=True)))
    right.update(*map(list, zip(*images[3:], strict=True)))  # image 3 is in both
    right.merge(pickle.loads(pickle.dumps(left.state())))
    assert right.compute().ap == whole.compute().ap


def test_recall_of_three_in_ten_reaches_its_point() -> None:
    boxes = torch.arange(10.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    evaluator = VocEvaluator()
    evaluator.update(
        [{"boxes": boxes[:3], "scores": torch.ones(3), "labels": torch.zeros(3, dtype=torch.int64)}],
        [{"boxes": boxes, "labels": torch.zeros(10, dtype=torch.int64)}],
    )
    assert evaluator.compute(eleven_points=True).ap[0] == pytest.approx(4 / 11)
    assert evaluator.compute().ap[0] == pytest.approx(0.3)
    assert evaluator.compute().recall[0].tolist() == [0.1, 0.2, 0.3]


def test_nothing_to_find() -> None:
    assert math.isnan(VocEvaluator().compute().mean)
    evaluator = VocEvaluator()
    box = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([2])}
    evaluator.update([box | {"scores": torch.ones(1)}], [box | {"difficult": torch.tensor([True])}])
    result = evaluator.compute()
    assert math.isnan(result.ap[2])
    assert len(result.precision[2]) == 0
    with pytest.raises(ValueError, match="iou must be above 0 and at most 1, got 50"):
        evaluator.compute(50)
