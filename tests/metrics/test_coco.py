"""CocoEvaluator against pycocotools on random data sets: every number of every array equal, not merely close. And what
pycocotools has no word on: streaming, merging, threads, settings, mistakes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from coco_scenes import HEIGHT, WIDTH, compressed, peer, random_scene

from cvops import _host
from cvops.metrics import CocoEvaluator, CocoResult, DetectionState, read_coco

SCENES = 80  # in each of the three tests that compare with the peer


def assert_equal(ours: CocoResult, theirs: Any) -> None:
    assert np.array_equal(ours.precision, theirs.eval["precision"])
    assert np.array_equal(ours.recall, theirs.eval["recall"])
    assert np.array_equal(ours.scores, theirs.eval["scores"])
    if len(theirs.stats):
        assert list(ours.stats) == list(theirs.stats)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_all_numbers_are_pycocotools(iou_type: str) -> None:
    found_something = 0
    for seed in range(SCENES):
        truth, results = random_scene(seed, masks=iou_type == "segm")
        if results:
            ours = read_coco(truth, results, iou_type).compute()
            assert_equal(ours, peer(truth, results, iou_type))
            found_something += ours.ap() > 0
    assert found_something > SCENES / 2


def test_any_settings() -> None:
    areas = {"all": (0.0, 1e10), "tiny": (3.0, 300.0), "none": (7e9, 8e9)}
    for seed in range(SCENES):
        rng = np.random.default_rng(seed)
        truth, results = random_scene(1000 + seed)
        if not results:
            continue
        iou_thresholds = np.sort(rng.random(rng.integers(1, 14))).round(int(rng.integers(1, 9)))
        if rng.random() < 0.3:
            iou_thresholds = np.array([0.0, 1.0, *iou_thresholds])
        recall_thresholds = np.sort(rng.random(rng.integers(1, 40))).round(2)
        max_detections = sorted(rng.choice([1, 2, 3, 5, 500], rng.integers(1, 4), replace=False).tolist())
        agnostic = bool(rng.random() < 0.5)
        ours = read_coco(
            truth,
            results,
            iou_thresholds=iou_thresholds,
            recall_thresholds=recall_thresholds,
            area_ranges=areas,
            max_detections=max_detections,
            class_agnostic=agnostic,
        )
        theirs = peer(
            truth,
            results,
            "bbox",
            iouThrs=iou_thresholds,
            recThrs=recall_thresholds,
            areaRng=[list(area) for area in areas.values()],
            areaRngLbl=list(areas),
            maxDets=max_detections,
            useCats=int(not agnostic),
        )
        assert_equal(ours.compute(), theirs)


def test_a_thousand_detections_of_one_class_in_one_image() -> None:
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.random((1000, 2)) * 200, 5 + rng.random((1000, 2)) * 60], 1).round().tolist()
    truth = {
        "images": [{"id": 3}],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "absent"}],
        "annotations": [
            {"id": i + 1, "image_id": 3, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": i % 7 == 0}
            for i, box in enumerate(boxes[:300])
        ],
    }
    results = [
        {"image_id": 3, "category_id": 1, "bbox": box, "score": i % 50 / 50} for i, box in enumerate(boxes[100:])
    ]
    assert_equal(read_coco(truth, results).compute(), peer(truth, results, "bbox"))


def test_the_summary_reads_the_arrays() -> None:
    truth, results = random_scene(4)
    theirs = peer(truth, results, "bbox")
    ours = read_coco(truth, results).compute()
    assert list(ours.summary) == [
        *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
        *("AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large"),
    ]
    assert len(str(ours).splitlines()) == 12
    for k, (category, row) in enumerate(zip(ours.categories, ours.per_class, strict=True)):
        own = theirs.eval["precision"][:, :, k, 0, 2]
        assert row["name"] == f"class {category}"
        assert row["AP"] == ours.ap(category=category) == (own[own > -1].mean() if (own > -1).any() else -1)
        assert row["AP75"] == theirs.eval["precision"][5, :, k, 0, 2].mean()
        assert row["AR@100"] == theirs.eval["recall"][:, k, 0, 2].mean()
    other = read_coco(truth, results, max_detections=[1000, 5], iou_thresholds=[0.3, 0.75]).compute()
    assert list(other.summary) == [
        *("AP", "AP75", "AP_small", "AP_medium", "AP_large"),
        *("AR@5", "AR@1000", "AR_small", "AR_medium", "AR_large"),
    ]
    assert other.summary["AP75"] == ours.summary["AP75"] == other.ap(0.75, max_detections=1000)
    with pytest.raises(ValueError, match=r"iou must be one of those evaluated, \(0.3, 0.75\), got 0.5"):
        other.ap(0.5)


def as_images(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The same as predictions and targets of a model, by image; boxes must lie on whole pixels."""

    def tensors(instances: list[dict[str, Any]], *keys: tuple[str, str]) -> dict[str, Any]:
        boxes = torch.tensor([i.get("bbox", [0.0] * 4) for i in instances], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return {"boxes": boxes} | {key: torch.from_numpy(np.array([i[name] for i in instances])) for key, name in keys}

    images = []
    for image in (image["id"] for image in truth["images"]):
        target = tensors(
            [a for a in truth["annotations"] if a["image_id"] == image],
            ("area", "area"),
            ("iscrowd", "iscrowd"),
            ("labels", "category_id"),
        )
        found = [r for r in results if r["image_id"] == image]
        prediction = tensors(found, ("labels", "category_id"), ("scores", "score"))
        for entries in (target, prediction):
            entries["labels"] = entries["labels"].long()
        images.append((prediction, target | {"image_id": torch.tensor([image])}))
    return images


def whole_scene() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A scene whose boxes lie on whole pixels, so that corners and sizes say the same."""
    for seed in range(2000, 2100):
        truth, results = random_scene(seed)
        if len(truth["images"]) > 4 and all(v == int(v) for r in results for v in r["bbox"]):
            return truth, results
    raise AssertionError("no scene fits")


def collected(images: list[tuple[dict[str, Any], dict[str, Any]]], **settings: Any) -> CocoEvaluator:
    evaluator = CocoEvaluator(**settings)
    for prediction, target in images:
        evaluator.update([prediction], [target])
    return evaluator


def test_streaming_and_merging_in_any_order() -> None:
    truth, results = whole_scene()
    theirs = peer(truth, results, "bbox")
    categories = {c["id"]: c["name"] for c in truth["categories"]}
    images = as_images(truth, results)
    at_once = CocoEvaluator(categories=categories)
    at_once.update(*map(list, zip(*images, strict=True)))
    assert_equal(at_once.compute(), theirs)
    assert_equal(collected(images[::-1], categories=categories).compute(), theirs)

    rank0, rank1 = (pickle.loads(pickle.dumps(collected(images[rank::2]))) for rank in (0, 1))
    rank1.update([images[0][0]], [images[0][1]])  # a sampler repeats an image to fill the last batch
    states = [pickle.loads(pickle.dumps(rank.state())) for rank in (rank1, rank0)]
    total = CocoEvaluator(categories=categories)
    for state in states:
        total.merge(state)
    assert_equal(total.compute(), theirs)
    with pytest.raises(ValueError, match="was given before"):
        total.update([images[0][0]], [images[0][1]])
    total.reset()
    assert total.compute().images == 0


def test_images_without_ids_keep_the_order_they_came_in() -> None:
    truth, results = whole_scene()
    images = sorted(as_images(truth, results), key=lambda image: image[1]["image_id"])
    for _, target in images:
        del target["image_id"]
    categories = [c["id"] for c in truth["categories"]]
    first, second = collected(images[:2], categories=categories), collected(images[2:])
    first.merge(second)
    assert_equal(first.compute(), peer(truth, results, "bbox"))
    with pytest.raises(ValueError, match="image_id"):
        first.update([images[0][0]], [images[0][1] | {"image_id": 5}])


def test_masks_from_tensors_and_rles() -> None:
    truth, results = random_scene(11, masks=True)
    results = [r for r in results if r["category_id"] != 777]
    theirs = peer(truth, results, "segm")
    evaluator = CocoEvaluator("segm", categories=[c["id"] for c in truth["categories"]])
    state = read_coco(truth, results, "segm").state()
    for i, image in enumerate(state.image_ids.tolist()):
        of_truth, of_found = state.truth_image == i, state.found_image == i
        truth_masks = [
            {"size": [HEIGHT, WIDTH], "counts": state.truth_shape[g]} for g in np.flatnonzero(of_truth).tolist()
        ]
        found = [_host.rle_decode([state.found_shape[d]], HEIGHT, WIDTH)[0] for d in np.flatnonzero(of_found).tolist()]
        probabilities = torch.from_numpy(np.array(found, np.float32).reshape(-1, 1, HEIGHT, WIDTH)) * 0.4 + 0.3
        evaluator.update(
            [{
                "masks": probabilities,
                "scores": torch.from_numpy(state.found_score[of_found]),
                "labels": torch.from_numpy(state.found_label[of_found]),
            }],
            [{
                "masks": truth_masks,
                "labels": state.truth_label[of_truth],
                "area": state.truth_area[of_truth],
                "iscrowd": state.truth_crowd[of_truth],
                "image_id": image,
            }],
        )  # fmt: skip
    assert_equal(evaluator.compute(), theirs)


def test_results_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    images, n = 400, 20_000  # some chunks of work for each of two classes
    boxes = np.concatenate([rng.random((n, 2)) * 100, 20 + rng.random((n, 2)) * 60], 1)
    image, label = rng.integers(images, size=n).astype(np.int32), rng.integers(2, size=n)
    g = n // 8
    state = DetectionState(
        image_ids=rng.permutation(images),
        image_sizes=np.zeros((images, 2), np.int64),
        truth_image=image[:g],
        truth_label=label[:g],
        truth_shape=boxes[:g],
        truth_area=boxes[:g, 2] * boxes[:g, 3],
        truth_crowd=rng.random(g) < 0.02,
        truth_ignore=rng.random(g) < 0.02,
        found_image=image,
        found_label=label,
        found_shape=boxes + rng.normal(size=boxes.shape),
        found_score=rng.random(n).round(3),
    )
    evaluator = CocoEvaluator()
    evaluator.merge(state)
    before = torch.get_num_threads()
    computed = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            computed.append(evaluator.compute())
    finally:
        torch.set_num_threads(before)
    assert 0.1 < computed[0].ap() < 1
    for other in computed[1:]:
        assert np.array_equal(other.precision, computed[0].precision)
        assert np.array_equal(other.scores, computed[0].scores)
        assert np.array_equal(other.recall, computed[0].recall)


def test_ignored_ground_truth_takes_one_detection() -> None:
    box = torch.tensor([[0.0, 0, 50, 50]])

    def ap(found: int, **flags: Any) -> float:
        evaluator = CocoEvaluator(iou_thresholds=[0.5])
        target = {"boxes": torch.cat([box, box + 100]), "labels": torch.tensor([1, 1])}
        target |= {name: torch.tensor([flag, False]) for name, flag in flags.items()}
        boxes = torch.cat([box] * found + [box + 100])
        scores = torch.linspace(0.9, 0.5, found + 1)
        evaluator.update(
            [{"boxes": boxes, "scores": scores, "labels": torch.ones(found + 1, dtype=torch.int64)}], [target]
        )
        return round(evaluator.compute().ap(), 6)

    assert ap(1) == ap(1, ignore=True) == ap(1, iscrowd=True) == 1
    assert ap(2, iscrowd=True) == 1  # a crowd takes both
    assert ap(2, ignore=True) == 0.5  # the second detection of an ignored instance is a false positive
    assert ap(0, ignore=True) == 1  # and missing it costs nothing


def test_unknown_labels_are_counted() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([1])}
    prediction = {"boxes": target["boxes"], "scores": torch.tensor([0.5]), "labels": torch.tensor([0])}
    evaluator = CocoEvaluator(categories=[1, 2])
    evaluator.update([prediction] * 3, [target] * 3)
    result = evaluator.compute()
    assert result.unknown_labels == {0: 3}
    assert (result.ap(category=1), result.ap(category=2)) == (0, -1)


def test_nothing_at_all() -> None:
    result = CocoEvaluator().compute()
    assert result.images == 0
    assert result.stats.tolist() == [-1] * 12
    assert CocoEvaluator("segm", categories=[4]).compute().precision.shape == (10, 101, 1, 4, 3)


ONE = {"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64)}
FOUND = ONE | {"scores": torch.ones(1)}
MASKS = {"labels": [1], "masks": [compressed(np.ones((3, 4), np.uint8))], "scores": [0.5]}


@pytest.mark.parametrize(
    ("iou_type", "prediction", "target", "message"),
    [
        ("bbox", FOUND, {"boxes": torch.zeros(1, 4)}, "image 0 of the batch: the target must have 'labels'"),
        ("bbox", ONE, ONE, "the prediction must have 'scores'"),
        ("bbox", FOUND | {"scores": torch.ones(2)}, ONE, r"scores must have shape \[1\], as labels, got \[2\]"),
        ("bbox", FOUND | {"scores": torch.tensor([float("nan")])}, ONE, "scores must be numbers, got nan"),
        ("bbox", FOUND | {"boxes": torch.zeros(4)}, ONE, r"prediction boxes must be numbers \[1, 4\]"),
        ("bbox", FOUND | {"boxes": torch.full((1, 4), torch.inf)}, ONE, "prediction boxes must be finite"),
        ("bbox", FOUND | {"labels": torch.zeros(1)}, ONE, "prediction labels must be integers, got float32"),
        ("bbox", FOUND, ONE | {"iscrowd": torch.zeros(1, 1)}, "target iscrowd must have shape"),
        ("bbox", FOUND, ONE | {"area": ["big"]}, "target area must be numbers"),
        ("bbox", FOUND, ONE | {"image_id": "a"}, "image_id must be one int, got 'a'"),
        ("segm", FOUND, MASKS, "the prediction must have 'masks'"),
        ("segm", MASKS, MASKS | {"masks": torch.zeros(1, 5, 5)}, "masks are .3, 4. pixels in height and width"),
        ("segm", MASKS | {"masks": torch.zeros(2, 3, 4)}, MASKS, r"prediction masks must have shape \[1, H, W\]"),
        ("segm", MASKS | {"masks": []}, MASKS, "prediction masks must be 1, one a label, got 0"),
        ("segm", MASKS | {"masks": [{"size": [3, 4], "counts": "1"}]}, MASKS, "the RLE covers 1 pixels"),
    ],
)  # fmt: skip
def test_mistakes_name_the_image_and_the_entry(iou_type: str, prediction: Any, target: Any, message: str) -> None:
    evaluator = CocoEvaluator(iou_type)
    with pytest.raises(ValueError, match=message):
        evaluator.update([prediction], [target])
    assert evaluator.compute().images == 0  # nothing of a batch is kept if some of it is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou_type": "keypoints"}, "iou_type must be 'bbox' or 'segm'"),
        ({"iou_thresholds": []}, "iou_thresholds must hold numbers from 0 to 1"),
        ({"iou_thresholds": [50]}, "iou_thresholds must hold numbers from 0 to 1"),
        ({"recall_thresholds": [0.5, 0.1]}, "recall_thresholds must ascend"),
        ({"area_ranges": {}}, "area_ranges"),
        ({"area_ranges": {"all": (5, 1)}}, "area_ranges"),
        ({"max_detections": [0, 10]}, "max_detections must hold numbers of at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(**settings)


def test_evaluations_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="cannot merge an evaluation of segm into one of bbox"):
        CocoEvaluator().merge(CocoEvaluator("segm"))
    with pytest.raises(ValueError, match="one for each image, got 1 and 2"):
        CocoEvaluator().update([FOUND], [ONE, ONE])
    with pytest.raises(ValueError, match="either all targets must have an image_id, or none"):
        CocoEvaluator().update([FOUND, FOUND], [ONE, ONE | {"image_id": 3}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"found_image": [2]}, "found_image must be in 0 to 2 - 1, got 2 at 0"),
        ({"truth_category": [-1]}, "truth_category must be in 0 to 1 - 1, got -1"),
        ({"found_shapes": np.zeros((2, 4))}, r"found_shapes must have shape \[1, 4\], got \[2, 4\]"),
        ({"found_shapes": [b"4"]}, "both be boxes or both be masks"),
        ({"found_shapes": [b"4"], "truth_shapes": [b"4"]}, "masks need image_sizes"),
        ({"found_shapes": [b"4"], "truth_shapes": []}, "truth_shapes must have one mask an instance"),
        ({"found_shapes": [b"4"], "truth_shapes": [b"4"], "image_sizes": [[2, 2], [3, 3]]}, "covers 4 pixels"),
        ({"found_score": [np.nan]}, "found_score is not a number"),
        ({"truth_crowd": []}, r"truth_crowd must have shape \[1\]"),
        ({"iou_thresholds": []}, "must not be empty"),
        ({"area_ranges": []}, "must not be empty"),
        ({"iou_thresholds": [np.nan]}, "iou_thresholds must be numbers"),
        ({"recall_thresholds": [1.5]}, "recall_thresholds must be in 0 to 1"),
        ({"max_detections": [5, 1]}, "max_detections must be at least 1 and ascend"),
    ],
)
def test_the_engine_guards_its_memory(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "categories": 1,
        "images": 2,
        "image_sizes": None,
        "truth_image": [0],
        "truth_category": [0],
        "truth_shapes": np.ones((1, 4)),
        "truth_area": [1.0],
        "truth_crowd": [0],
        "truth_ignore": [0],
        "found_image": [1],
        "found_category": [0],
        "found_shapes": np.ones((1, 4)),
        "found_score": [0.5],
        "found_area": None,
        "iou_thresholds": [0.5],
        "recall_thresholds": [0.0, 1.0],
        "area_ranges": [(0, 10)],
        "max_detections": [1, 5],
        "threads": 2,
    }
    assert _host.coco_evaluate(**arguments)[0].shape == (1, 2, 1, 1, 2)
    with pytest.raises(ValueError, match=message):
        _host.coco_evaluate(**arguments | change)
