"""COCO's files: what `read_coco` makes of their less obvious contents, what `cvops eval` prints, and that malformed
ones are named."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import peer, random_scene

from cvops.cli import main
from cvops.metrics import CocoFormatError, read_coco

TRUTH, RESULTS = random_scene(4)
MASK_TRUTH, MASK_RESULTS = random_scene(11, masks=True)


def equal(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> bool:
    ours, theirs = read_coco(truth, results, iou_type).compute(), peer(truth, results, iou_type)
    return np.array_equal(ours.precision, theirs.eval["precision"]) and list(ours.stats) == list(theirs.stats)


def test_results_with_boxes_and_masks() -> None:
    """pycocotools takes areas from the boxes then, and masks from the boxes where there are none."""
    boxes = read_coco(MASK_TRUTH, MASK_RESULTS).state().found_shape
    both = [result | {"bbox": box} for result, box in zip(MASK_RESULTS, np.array(boxes).tolist(), strict=True)]
    grown = [result | {"bbox": [*result["bbox"][:2], 40.0, 40.0]} for result in both]
    only_boxes = [{key: value for key, value in result.items() if key != "segmentation"} for result in both]
    for results in (both, grown, only_boxes, only_boxes[:3] + both[3:]):
        assert equal(MASK_TRUTH, results, "segm")
    for results in (MASK_RESULTS, MASK_RESULTS[:3] + both[3:], both):
        assert equal(MASK_TRUTH, results, "bbox")
    by_box, by_larger_box = (read_coco(MASK_TRUTH, results, "segm").compute() for results in (both, grown))
    assert by_box.ap() == by_larger_box.ap()
    assert by_box.ap(area="small") != by_larger_box.ap(area="small")


def test_ids_of_annotations_mean_nothing() -> None:
    shifted = copy.deepcopy(TRUTH)
    for annotation in shifted["annotations"]:
        annotation["id"] -= 1  # pycocotools takes a match with id 0 for none
    plain, other = read_coco(TRUTH, RESULTS).compute(), read_coco(shifted, RESULTS).compute()
    assert np.array_equal(plain.precision, other.precision)


def test_names_of_images_may_be_text() -> None:
    named = copy.deepcopy((TRUTH, RESULTS))
    for image in named[0]["images"]:
        image["id"] = f"{image['id']:04}"
    for instance in [*named[0]["annotations"], *named[1]]:
        instance["image_id"] = f"{instance['image_id']:04}"
    assert np.array_equal(read_coco(*named).compute().scores, read_coco(TRUTH, RESULTS).compute().scores)


def test_missing_areas_and_crowd_flags_have_defaults() -> None:
    bare, full = copy.deepcopy(TRUTH), copy.deepcopy(TRUTH)
    for annotation in bare["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    for annotation in full["annotations"]:
        annotation |= {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0}
    assert equal(full, RESULTS, "bbox")
    assert np.array_equal(read_coco(bare, RESULTS).compute().precision, read_coco(full, RESULTS).compute().precision)


def test_no_results_find_nothing() -> None:
    result = read_coco(TRUTH, []).compute()
    assert result.ap() == result.ar() == 0


def broken(place: str, value: Any, masks: bool = False) -> tuple[Any, Any]:
    """The scene with the entry at a dotted place replaced, or deleted if the value is ...."""
    files: dict[str, Any] = copy.deepcopy(
        {"truth": MASK_TRUTH, "results": MASK_RESULTS} if masks else {"truth": TRUTH, "results": RESULTS}
    )
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner: Any = files
    for key in path:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return files["truth"], files["results"]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("truth", [], "the ground truth must be an object with images, categories and annotations"),
        ("truth.categories", ..., "the ground truth must be an object"),
        ("truth.images", {}, "images must be a list of objects, got dict"),
        ("truth.images.0.id", ..., "images[0] must be an object with 'id'"),
        ("truth.images.0.id", "seven", "images: the ids must all be numbers, or all be text"),
        ("truth.images.0.height", "40", "images[0] must have whole numbers as height and width, got ('40', 50)"),
        ("truth.categories.0.id", "cat", "categories[0].id must be a whole number of 64 bits, got 'cat'"),
        ("truth.annotations.3", 5, "annotations[3] must be an object with 'image_id', got 5"),
        ("truth.annotations.3.image_id", 5000, "annotations[3] has image_id 5000, which is none of"),
        ("truth.annotations.3.image_id", [1], "annotations[3] has image_id [1], which is none of"),
        ("truth.annotations.3.category_id", 5000, "annotations[3] has category_id 5000, which is none of"),
        ("truth.annotations.3.bbox", [1, 2, 3], "annotations[3].bbox must be four finite numbers, x, y, width, height"),
        ("truth.annotations.3.area", None, "annotations[3].area must be a finite number, got None"),
        ("truth.annotations.3.area", ..., "annotations[3] must be an object with 'area'"),
        ("truth.annotations.3.iscrowd", "no", "annotations[3].iscrowd must be a finite number, got 'no'"),
        ("results", {"annotations": []}, "results must be a list of objects, got dict"),
        ("results.2.score", ..., "results[2] must be an object with 'score'"),
        ("results.2.score", float("nan"), "results[2].score must be a finite number, got nan"),
        ("results.2.bbox", [1, 2, "3", 4], "results[2].bbox must be four finite numbers"),
        ("results.2.bbox", ..., "results[2] must be an object with 'bbox'"),
        ("results.2.category_id", 2**63, "results[2].category_id must be a whole number of 64 bits, got 9223372036854"),
        ("results.2.category_id", 1.5, "results[2].category_id must be a whole number of 64 bits, got 1.5"),
    ],
)
def test_malformed_files_are_named(place: str, value: Any, message: str) -> None:
    truth, results = broken(place, value)
    with pytest.raises(CocoFormatError) as error:
        read_coco(truth, results)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("truth.images.0.height", ..., "masks need the height and width of their image; that of annotations["),
        ("truth.annotations.0.segmentation", ..., "annotations[0] must be an object with 'segmentation'"),
        ("truth.annotations.0.segmentation", [], "annotations[0].segmentation: a segmentation must be polygons or an"),
        (
            "truth.annotations.0.segmentation",
            [[1, 2, 3, 4, 5]],
            "annotations[0].segmentation: polygon 0 must hold pairs",
        ),
        ("truth.annotations.0.segmentation", [["a"] * 6], "annotations[0].segmentation: must be real number, not str"),
        ("results.1.segmentation", {"size": [9, 9], "counts": "a1"}, "results[1].segmentation: the size of the RLE is"),
        ("results.1.segmentation", {"size": 9, "counts": "a1"}, "results[1].segmentation: "),
        (
            "results.1.segmentation.counts",
            "1",
            "segmentation of results, mask 1: the RLE covers 1 pixels, its size has",
        ),
        ("results.1.segmentation.counts", [1, "x"], "results[1].segmentation: "),
        ("results.1.segmentation.counts", 7, "segmentation of results, counts of mask 1 must be bytes or str, got int"),
    ],
)
def test_malformed_masks_are_named(place: str, value: Any, message: str) -> None:
    truth, results = broken(place, value, masks=True)
    with pytest.raises(CocoFormatError) as error:
        read_coco(truth, results, "segm")
    assert message in str(error.value)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    truth, results = tmp_path / "instances.json", tmp_path / "results.json"
    truth.write_text(json.dumps(MASK_TRUTH))
    results.write_text(json.dumps(MASK_RESULTS))
    return truth, results


def run(capsys: pytest.CaptureFixture[str], truth: Path, results: Path, *more: str) -> tuple[int, str, str]:
    code = main(["eval", "--ground-truth", str(truth), "--results", str(results), *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_command_prints_the_twelve_numbers(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], iou_type: str
) -> None:
    theirs = peer(MASK_TRUTH, MASK_RESULTS, iou_type)
    code, out, _ = run(capsys, *files, "--iou-type", iou_type, "--json")
    printed = json.loads(out)
    assert code == 0
    assert list(printed["summary"].values()) == list(theirs.stats)
    assert [row["id"] for row in printed["classes"]] == sorted(c["id"] for c in MASK_TRUTH["categories"])

    code, out, _ = run(capsys, *files, "--iou-type", iou_type)
    assert code == 0
    assert re.search(rf"AP_small +{theirs.stats[3]:.3f}\n", out)
    assert all(category["name"] in out for category in MASK_TRUTH["categories"])


def test_the_command_takes_settings(capsys: pytest.CaptureFixture[str], files: tuple[Path, Path]) -> None:
    options = ["--max-detections", "7", "--max-detections", "2", "--class-agnostic", "--json"]
    summary = json.loads(run(capsys, *files, *options)[1])["summary"]
    result = read_coco(*files, max_detections=[7, 2], class_agnostic=True).compute()
    assert summary == result.summary
    assert {"AR@2", "AR@7"} < summary.keys()


def test_the_command_says_what_it_left_out(capsys: pytest.CaptureFixture[str], files: tuple[Path, Path]) -> None:
    files[1].write_text(json.dumps([result | {"category_id": 900} for result in MASK_RESULTS]))
    code, _, err = run(capsys, *files)
    assert code == 0
    assert f"{len(MASK_RESULTS)} results are left out: the ground truth does not list their categories (900)" in err


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("[{]", (), "results.json is not JSON: Expecting property name"),
        ("[{}]", (), "results[0] must be an object with 'image_id'"),
        ("[]", ("--iou-type", "keypoints"), "--iou-type must be bbox or segm, got 'keypoints'"),
        (None, (), "no such file"),
    ],
)
def test_mistakes_end_with_one_line(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], text: str | None, more: tuple[str, ...], message: str
) -> None:
    files[1].unlink()
    if text is not None:
        files[1].write_text(text)
    code, out, err = run(capsys, *files, *more)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
