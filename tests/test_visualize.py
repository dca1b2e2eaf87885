"""Pictures with detections: what is drawn where, in which colour, and what is refused."""

import doctest

import numpy as np
import pytest
import torch
from PIL import Image

import cvops
from cvops import visualize
from cvops.data import coco_categories, coco_classes
from cvops.visualize import colour_of, draw_detections

GREY = Image.new("RGB", (200, 160), (128, 128, 128))
ONE = {"boxes": torch.tensor([[60.0, 50, 140, 120]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.75])}


def changed(picture: Image.Image, ground: Image.Image = GREY) -> np.ndarray:
    """[H, W] bool: pixels that were drawn on."""
    return (np.asarray(picture) != np.asarray(ground)).any(2)


def test_a_box_is_a_frame_of_its_class_s_colour_and_its_inside_stays() -> None:
    picture = draw_detections(GREY, ONE, font_size=12)
    pixels = np.asarray(picture)
    for y, x in ((50, 100), (119, 100), (85, 60), (85, 139)):
        assert tuple(pixels[y, x]) == colour_of(2)
    for y, x in ((48, 190), (122, 100), (85, 57), (85, 142)):
        assert tuple(pixels[y, x]) == (128, 128, 128)
    assert not changed(picture)[56:114, 66:134].any()
    assert not changed(GREY).any()  # the given picture stays


def test_the_tag_goes_above_the_box_or_where_there_is_room() -> None:
    above = changed(draw_detections(GREY, ONE, font_size=12))
    assert above[36:48, 62:70].all()
    assert not above[124:].any()
    at_top = {**ONE, "boxes": torch.tensor([[60.0, 0, 140, 120]])}
    assert changed(draw_detections(GREY, at_top, font_size=12))[4:14, 62:70].all()
    # A second box at the same place gets its tag elsewhere.
    both = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in ONE.items()}
    assert changed(draw_detections(GREY, both, font_size=12)).sum() > above.sum() + 100


def test_names_scores_and_numbers_are_written() -> None:
    def tag(names: tuple[str, ...] | None, **values: torch.Tensor) -> np.ndarray:
        return np.asarray(draw_detections(GREY, {"boxes": ONE["boxes"], **values}, names, font_size=12))

    label, score = {"labels": ONE["labels"]}, {"scores": ONE["scores"]}
    pictures = [tag(("a", "b", "c"), **label), tag(None, **label), tag(None, **score), tag(("a",), **label, **score)]
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert np.array_equal(pictures[1], tag(("a",), **label))  # beyond the names


def test_a_threshold_leaves_detections_out() -> None:
    assert not changed(draw_detections(GREY, ONE, threshold=0.8)).any()
    assert changed(draw_detections(GREY, ONE, threshold=0.75)).any()


def test_masks_are_tinted_and_outlined() -> None:
    mask = torch.zeros(1, 160, 200)
    mask[0, 70:100, 80:120] = 0.9
    mask[0, 100:110, 80:120] = 0.4  # below one half
    pixels = np.asarray(draw_detections(GREY, {**ONE, "masks": mask[:, None]}, mask_opacity=0.5))
    tint = [round(0.5 * 128 + 0.5 * value) for value in colour_of(2)]
    assert np.abs(pixels[85, 100].astype(int) - tint).max() <= 1
    assert tuple(pixels[70, 100]) == tuple(pixels[99, 80]) == colour_of(2)
    assert tuple(pixels[105, 100]) == (128, 128, 128)


def test_boxes_beyond_the_picture_and_tiny_ones_are_drawn_inside() -> None:
    boxes = torch.tensor([[-50.0, -50, 500, 500], [199.6, 159.6, 199.9, 159.9], [30, 30, 30, 30]])
    picture = draw_detections(GREY, {"boxes": boxes}, font_size=12)
    assert picture.size == GREY.size
    assert tuple(np.asarray(picture)[0, 100]) == colour_of(0)


@pytest.mark.parametrize("image", [torch.full((3, 160, 200), 0.5), torch.full((1, 160, 200), 128, dtype=torch.uint8)])
def test_tensors_are_pictures_too(image: torch.Tensor) -> None:
    assert np.array_equal(np.asarray(draw_detections(image, ONE)), np.asarray(draw_detections(GREY, ONE)))


def test_nothing_found_leaves_the_picture() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    assert not changed(draw_detections(GREY, empty)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 3)}, r"detections\['boxes'\] must be \[K, 4\], got \[2, 3\]"),
        ({"boxes": torch.full((1, 4), torch.nan)}, r"detections\['boxes'\] must be finite"),
        ({"labels": torch.zeros(2).long()}, r"detections\['labels'\] must be \[1\]"),
        ({"masks": torch.zeros(1, 10, 10)}, r"detections\['masks'\] must be \[1, 160, 200\]"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_detections(GREY, {**ONE, **change})
    with pytest.raises(ValueError, match="image must be"):
        draw_detections(torch.zeros(4, 8, 8), ONE)
    with pytest.raises(ValueError, match="mask_opacity"):
        draw_detections(GREY, ONE, mask_opacity=2)


def test_examples_run() -> None:
    names = {**vars(visualize), "coco_classes": coco_classes, "cvops": cvops}
    assert doctest.testmod(visualize, globs=names).failed == 0


def test_coco_s_names_are_torchvision_s() -> None:
    torchvision = pytest.importorskip("torchvision")
    names = torchvision.models.detection.FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert coco_classes(91)[1:] == tuple(names)[1:] == coco_classes(90)
    assert coco_classes() == tuple(coco_categories().values())
    with pytest.raises(ValueError, match="num_classes must be 80, 90 or 91"):
        coco_classes(20)
