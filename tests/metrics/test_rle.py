"""COCO's run-length encoding: equal to pycocotools character for character, and its own properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as peer

from cvops.metrics import rle

bitmaps = hnp.arrays(
    np.bool_,
    st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    elements=st.booleans(),
    fill=st.booleans(),
)
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


def peer_encode(masks: np.ndarray) -> list[dict[str, Any]]:
    return [peer.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def text(encoded: dict[str, Any]) -> dict[str, Any]:
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@EXAMPLES
@given(bitmaps)
def test_bitmaps_as_pycocotools(masks: np.ndarray) -> None:
    ours, theirs = rle.encode(masks), peer_encode(masks)
    assert ours == [text(encoded) for encoded in theirs]
    assert np.array_equal(rle.decode(ours), masks)
    assert rle.area(ours).tolist() == masks.sum((1, 2)).tolist() == peer.area(theirs).tolist()
    assert np.array_equal(rle.boxes(ours), peer.toBbox(theirs))
    for intersection, reduce in ((False, np.any), (True, np.all)):
        merged = rle.merge(ours, intersection)
        assert merged == text(peer.merge(theirs, intersection))
        assert np.array_equal(rle.decode([merged])[0], reduce(masks, 0))


@EXAMPLES
@given(bitmaps, st.data())
def test_iou_as_pycocotools_and_as_counted(masks: np.ndarray, data: st.DataObject) -> None:
    crowd = data.draw(st.lists(st.booleans(), min_size=len(masks), max_size=len(masks)))
    other = masks ^ data.draw(hnp.arrays(np.bool_, masks.shape, elements=st.booleans(), fill=st.booleans()))
    iou = rle.iou(rle.encode(other), rle.encode(masks), crowd)
    assert np.array_equal(iou, peer.iou(peer_encode(other), peer_encode(masks), [int(flag) for flag in crowd]))
    inner = (other[:, None] & masks).sum((2, 3))
    outer = np.where(crowd, other.sum((1, 2))[:, None], (other[:, None] | masks).sum((2, 3)))
    assert np.array_equal(iou, inner / np.maximum(outer, 1))


def test_large_masks_cross_words_and_threads() -> None:
    masks = torch.zeros(9, 61, 83, dtype=torch.bool)
    for i in range(1, 9):
        masks[i, i : 8 * i, 3 : 3 + 9 * i] = True
    masks[8] ^= True
    assert rle.encode(masks) == [text(encoded) for encoded in peer_encode(masks.numpy())]
    assert np.array_equal(rle.decode(rle.encode(masks)), masks.numpy())


def test_numbers_other_than_0_are_the_mask() -> None:
    mask = np.array([[[0, 255, 7], [0, -1, 0]]])
    assert rle.encode(mask) == rle.encode(mask != 0)


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 5, 0), (0, 3, 4)])
def test_nothing_to_encode(shape: tuple[int, int, int]) -> None:
    masks = rle.encode(np.zeros(shape, np.bool_))
    assert len(masks) == shape[0]
    if masks:
        assert rle.decode(masks).shape == shape
        assert rle.boxes(masks).tolist() == [[0, 0, 0, 0]] * 2


# A corner in pixels: whole, halves (the finer grid's ties), tenths, anywhere, and far outside.
coordinate = st.one_of(
    st.integers(-3, 25).map(float),
    st.integers(-6, 50).map(lambda n: n / 2),
    st.integers(-30, 250).map(lambda n: n / 10),
    st.floats(-5, 30, allow_nan=False),
    st.floats(-2000, 2000, allow_nan=False),
)
polygons = st.lists(
    st.lists(coordinate, min_size=6, max_size=20).map(lambda xy: xy[: len(xy) // 2 * 2]), min_size=1, max_size=3
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(polygons, st.integers(1, 22), st.integers(1, 22))
def test_polygons_as_pycocotools(parts: list[list[float]], height: int, width: int) -> None:
    theirs = peer.merge(peer.frPyObjects(parts, height, width))
    assert rle.from_polygons(parts, height, width) == text(theirs)


def test_polygons_at_the_size_of_photographs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        points = rng.random((int(rng.integers(3, 40)), 2)) * [640, 480]
        parts = [points.round(int(rng.integers(0, 3))).ravel().tolist()]
        assert rle.from_polygons(parts, 480, 640) == text(peer.merge(peer.frPyObjects(parts, 480, 640)))


def test_far_corners_cost_nothing() -> None:
    # pycocotools walks along the edges, and would need gigabytes here. The line x = y crosses the image.
    mask = rle.decode([rle.from_polygons([[-1e8, -1e8, 1e8, 1e8, -1e8, 1e8]], 9, 9)])[0]
    assert np.array_equal(mask, np.tri(9, dtype=bool))


def test_segmentations_of_every_kind() -> None:
    counts = [3, 5, 0, 2, 80]
    theirs = peer.frPyObjects({"size": [9, 10], "counts": counts}, 9, 10)
    mask = peer.decode([theirs])[:, :, 0]
    ours = rle.from_segmentation({"size": [9, 10], "counts": counts}, 9, 10)
    assert np.array_equal(rle.decode([ours])[0], mask)  # runs of no length are joined, so the text may differ
    assert rle.from_segmentation(rle.encode(mask[None])[0], 9, 10) == rle.encode(mask[None])[0]
    parts = [[1.5, 2.0, 1.5, 5.5, 5.5, 5.5], [7.0, 7.0, 9.0, 8.0]]  # a part of two points adds nothing
    assert rle.from_segmentation(parts, 9, 10) == text(peer.merge(peer.frPyObjects(parts, 9, 10)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rle.encode(np.zeros((3, 4))), r"masks must have shape \[N, H, W\], got \[3, 4\]"),
        (lambda: rle.decode([]), "at least one mask"),
        (lambda: rle.decode([{"size": [2, 2], "counts": "4"}, {"size": [3, 2], "counts": "6"}]), "one size"),
        (lambda: rle.decode([{"size": [-2, 2], "counts": "4"}]), "must be at least 0"),
        (lambda: rle.area([{"size": [2**20, 2**20], "counts": "4"}]), r"below 2\^32"),
        (lambda: rle.area([{"size": [2, 2], "counts": "3"}]), "mask 0: the RLE covers 3 pixels, its size has 4"),
        (lambda: rle.area([{"size": [2, 2], "counts": "5"}]), "more pixels than its size"),
        (lambda: rle.area([{"size": [2, 2], "counts": "P"}]), "ends inside a count"),
        (lambda: rle.area([{"size": [2, 2], "counts": "PPPPPPPP0"}]), "does not fit 32 bits"),
        (lambda: rle.area([{"size": [2, 2], "counts": "O"}]), "negative"),
        (lambda: rle.area([{"size": [2, 2], "counts": "4 "}]), "character 1 of the RLE"),
        (lambda: rle.area([{"size": [2, 2], "counts": "4é"}]), "character 1 of the RLE"),
        (lambda: rle.area([{"size": [2, 2], "counts": [4]}]), "must be bytes or str, got list"),
        (lambda: rle.iou([{"size": [2, 2], "counts": "4"}], [{"size": [4, 1], "counts": "4"}]), "one size"),
        (lambda: rle.iou([{"size": [2, 2], "counts": "4"}], [{"size": [2, 2], "counts": "4"}], [1, 0]), "crowd"),
        (lambda: rle.from_polygons([[0, 0, 1, 1, 2]], 4, 4), "polygon 0 must hold pairs"),
        (lambda: rle.from_polygons([[0, 0, 1, 1, 2, 2], [1, 2]], 4, 4), "polygon 1: a polygon needs at least two"),
        (lambda: rle.from_polygons([[0, 0, float("inf"), 1, 2, 2]], 4, 4), "must be finite"),
        (lambda: rle.from_polygons([[0, 0, 2e8, 1, 2, 2]], 4, 4), "within 1e8"),
        (lambda: rle.from_segmentation([], 4, 4), "polygons or an RLE"),
        (lambda: rle.from_segmentation([1, 2, 3, 4], 4, 4), "list of lists"),
        (lambda: rle.from_segmentation({"size": [4, 4]}, 4, 4), "'size' and 'counts'"),
        (
            lambda: rle.from_segmentation({"size": [4, 5], "counts": "d0"}, 4, 4),
            r"is \[4, 5\], its image's is \[4, 4\]",
        ),
        (lambda: rle.from_segmentation({"size": [2, 2], "counts": [1, -1, 4]}, 2, 2), "negative"),
    ],
)
def test_errors_name_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@EXAMPLES
@given(st.binary(max_size=30), st.integers(0, 9), st.integers(0, 9))
def test_any_text_is_a_mask_or_an_error(counts: bytes, height: int, width: int) -> None:
    mask: rle.Rle = {"size": [height, width], "counts": counts}
    try:
        area = rle.area([mask])[0]
    except ValueError:
        return
    assert rle.decode([mask]).sum() == area
    assert rle.encode(rle.decode([mask]))[0]["size"] == [height, width]
