"""CornerNet and CenterNet with key point triplets beyond their stored outputs: pairing corners, confirming boxes by
centers, soft suppression and losses, against the papers' rules written out in loops."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import cvops
from cvops.models.corner_detector import CornerDetector, CornerRaw, Points, confirm
from cvops.models.detection import ImageTransform
from cvops.models.detection.postprocess import suppress_softly
from cvops.models.head.corners import PointMaps
from cvops.ops import box_iou

TINY = {"channels": (8, 8), "blocks": (1, 1), "stem_channels": 8, "features": 8, "pooled": 4}


def build(name: str = "cornernet_small", **settings: object) -> CornerDetector:
    torch.manual_seed(0)
    model = cvops.create_model(name, **{"num_classes": 3, **TINY, **settings})
    assert isinstance(model, CornerDetector)
    return model.eval()


def random_maps(draw: torch.Generator, tags: bool = True) -> PointMaps:
    heat = torch.randn(2, 3, 9, 11, generator=draw)
    offsets = torch.rand(2, 2, 9, 11, generator=draw)
    return PointMaps(heat, offsets, torch.randn(2, 1, 9, 11, generator=draw) if tags else None)


def listed(maps: PointMaps, image: int, k: int) -> list[tuple[float, int, float, float, float]]:
    """(score, label, x, y, tag) of the k best peaks of an image, in cells."""
    heat = maps.heat[image]
    points = []
    for label in range(heat.shape[0]):
        for y in range(heat.shape[1]):
            for x in range(heat.shape[2]):
                around = heat[label, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                if heat[label, y, x] == around.max():
                    dx, dy = maps.offsets[image, :, y, x].tolist()
                    tag = float(maps.tags[image, 0, y, x])
                    points.append((float(heat[label, y, x].sigmoid()), label, x + dx, y + dy, tag))
    return sorted(points, reverse=True)[:k]


@pytest.mark.parametrize("points", [8, 100])  # fewer than there are peaks, and more
def test_pairs_equal_those_found_in_loops(points: int) -> None:
    draw = torch.manual_seed(0)
    model = build(points=points, candidates=40)
    maps = [random_maps(draw), random_maps(draw)]
    first, second = (model.best_points(m, (36, 44)) for m in maps)
    boxes, scores, labels = model.pair(first, second)
    assert boxes.shape == (2, min(40, points**2), 4)
    for image in range(2):
        want = []
        for score, label, x, y, tag in listed(maps[0], image, points):
            for other_score, other_label, other_x, other_y, other_tag in listed(maps[1], image, points):
                if label == other_label and abs(tag - other_tag) <= 0.5 and other_x >= x and other_y >= y:
                    want.append(((score + other_score) / 2, label, [4 * x, 4 * y, 4 * other_x, 4 * other_y]))
        want = sorted(want, reverse=True)[:40]
        assert want
        assert (scores[image] > 0).sum() == len(want)
        for i, (score, label, box) in enumerate(want):
            assert float(scores[image, i]) == pytest.approx(score, abs=1e-6)
            assert int(labels[image, i]) == label
            assert boxes[image, i].tolist() == pytest.approx(box, abs=1e-4)


def planted(corners: list[tuple[int, int, int, float]], shape: tuple[int, int] = (16, 16)) -> PointMaps:
    """Maps with points (label, y, x, tag) half a cell into their cells."""
    heat = torch.full((1, 3, *shape), -20.0)
    tags = torch.zeros(1, 1, *shape)
    for label, y, x, tag in corners:
        heat[0, label, y, x], tags[0, 0, y, x] = 3.0, tag
    return PointMaps(heat, torch.full((1, 2, *shape), 0.5), tags)


def test_only_corners_that_belong_together_become_a_box() -> None:
    model = build()
    first = planted([(0, 2, 3, 1.0), (1, 1, 1, 5.0), (2, 14, 14, 0.0)])
    # Of the first class and tag; another tag; another class; before its partner; outside of the image.
    second = planted([(0, 9, 11, 1.3), (0, 12, 12, 9.0), (1, 5, 5, 4.0), (2, 3, 3, 0.0), (2, 15, 15, 0.0)])
    raw = CornerRaw([torch.zeros(1, 8, 16, 16)], [first, second])
    found = model.postprocess(raw, (64, 64), torch.tensor([[56, 56]]))
    assert found.counts.tolist() == [1]
    assert found.boxes[0, 0].tolist() == [14.0, 10.0, 46.0, 38.0]
    assert found.labels[0, 0] == 0
    assert float(found.scores[0, 0]) == pytest.approx(1 / (1 + math.exp(-3)))


@pytest.mark.parametrize(("side", "parts"), [(60.0, 3), (150.0, 3), (152.0, 5)])
def test_the_middle_of_a_box_is_a_third_or_a_fifth_of_its_sides(side: float, parts: int) -> None:
    middle, reach = side / 2, side / (2 * parts)
    steps = torch.tensor([0.0, 0.98, 1.02])
    inside = torch.tensor([True, True, False])
    for axis in range(2):
        for sign in (-1, 1):
            places = torch.full((3, 1, 2), middle)
            places[:, 0, axis] += sign * steps * reach
            boxes = torch.tensor([0.0, 0, side, side]).expand(3, 1, 4)
            label, half = torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), 0.5)
            centers = Points(torch.full((3, 1), 0.8), label, places[..., 0], places[..., 1], None)
            got = confirm(boxes, half, label, centers)
            torch.testing.assert_close(got[:, 0], torch.where(inside, 0.6, 0.0))
            assert (confirm(boxes, half, label + 1, centers) == 0).all()
            assert (confirm(boxes, 0 * half, label, centers) == 0).all()


def test_a_center_of_the_class_confirms_a_box_and_the_best_one_counts() -> None:
    model = build("centernet_triplets_small")
    first, second = planted([(0, 2, 2, 0.0), (1, 2, 8, 2.0)]), planted([(0, 10, 10, 0.0), (1, 10, 14, 2.0)])
    centers = planted([(0, 6, 6, 0.0), (0, 7, 7, 0.0), (0, 6, 11, 0.0)])
    centers.heat[0, 0, 7, 7] = 1.0
    raw = CornerRaw([torch.zeros(1, 8, 16, 16)], [first, second, centers])
    found = model.postprocess(raw, (64, 64), torch.tensor([[64, 64]]))
    assert found.counts.tolist() == [1]
    assert found.labels[0, 0] == 0
    assert float(found.scores[0, 0]) == pytest.approx(1 / (1 + math.exp(-3)))


def softly(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[tuple[int, float]]:
    left = dict(enumerate(scores.tolist()))
    kept = []
    while left:
        best = max(left, key=lambda i: left[i])
        score = left.pop(best)
        if score <= threshold:
            break
        kept.append((best, score))
        for i in left:
            if labels[i] == labels[best]:
                left[i] *= math.exp(-(float(box_iou(boxes[best][None], boxes[i][None])) ** 2) / 0.5)
    return kept


def test_soft_suppression_equals_the_loop() -> None:
    draw = torch.manual_seed(0)
    corners = torch.rand(2, 12, 2, generator=draw) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 12, 2, generator=draw) * 20], 2)
    scores, labels = torch.rand(2, 12, generator=draw), torch.randint(2, (2, 12), generator=draw)
    scores[1, 3:] = 0
    found = suppress_softly(boxes, scores, labels, score_threshold=0.2, max_detections=8)
    for image in range(2):
        want = softly(boxes[image], scores[image], labels[image], 0.2)[:8]
        count = int(found.counts[image])
        assert count == len(want)
        assert torch.equal(found.boxes[image, :count], boxes[image, [i for i, _ in want]])
        assert found.scores[image, :count].tolist() == pytest.approx([score for _, score in want])
        assert (found.labels[image, count:] == -1).all()
        assert (found.scores[image, count:] == 0).all()


def test_soft_suppression_is_a_setting() -> None:
    draw = torch.manual_seed(0)
    raw = CornerRaw([torch.zeros(2, 8, 9, 11)], [random_maps(draw), random_maps(draw)])
    sizes = torch.tensor([[36, 44], [36, 44]])
    hard = build(iou_threshold=0.0).postprocess(raw, (36, 44), sizes)
    soft = build(nms="gaussian").postprocess(raw, (36, 44), sizes)
    assert [x.shape for x in soft] == [x.shape for x in hard]
    assert (soft.counts > hard.counts).all()
    assert torch.equal(soft.boxes[:, 0], hard.boxes[:, 0])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="nms must be 'hard' or 'gaussian', got 'soft'"):
        build(nms="soft")
    with pytest.raises(ValueError, match="points and candidates must be 1 or more, got 0 and 1000"):
        build(points=0)


@pytest.mark.parametrize("name", ["cornernet_small", "centernet_triplets_small"])
def test_perfect_maps_have_no_loss_and_stacks_count_alike(name: str) -> None:
    model = build(name, stacks=2)
    batch = ImageTransform("none", mean=(0.0,), std=(1.0,))(
        torch.zeros(1, 3, 64, 64),
        [{"boxes": torch.tensor([[9.0, 11, 40, 64], [20, 8, 64, 30]]), "labels": torch.tensor([1, 2])}],
    )
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        raw = model.network(pixels)
        losses = model.losses(raw, batch)
        one = build(name)
        each = []
        for stack in range(2):
            one.config = replace(model.config, stacks=1)
            each.append(one.losses(CornerRaw([raw.maps[stack]], model.predict(stack, raw.maps[stack])), batch))
        for key, value in losses.items():
            assert float(value) == pytest.approx(float(each[0][key] + each[1][key]) / 2, rel=1e-5)

        maps = []
        points = [[(9, 11), (20, 8)], [(40, 64), (64, 30)], [(24.5, 37.5), (42, 19)]][: len(raw.last)]
        for kind, places in enumerate(points):
            heat, offsets, tags = (
                torch.full((1, 3, 16, 16), -30.0),
                torch.zeros(1, 2, 16, 16),
                torch.zeros(1, 1, 16, 16),
            )
            for i, (x, y) in enumerate(places):
                column, row = min(int(x / 4), 15), min(int(y / 4), 15)
                heat[0, i + 1, row, column] = 30.0
                offsets[0, :, row, column] = torch.tensor([x / 4 - column, y / 4 - row])
                tags[0, 0, row, column] = 2.0 * i
            maps.append(PointMaps(heat, offsets, tags if kind < 2 else None))
        one.config = replace(model.config, stacks=1)
        perfect = one.losses(CornerRaw([raw.maps[0]], maps), batch)
    assert all(float(value) == pytest.approx(0.0, abs=1e-9) for value in perfect.values())


@pytest.mark.parametrize("stacks", [1, 2])
def test_mmdetection_s_names_are_one_for_each_layer(stacks: int) -> None:
    """Its names are those of mmdet/models/backbones/hourglass.py and dense_heads/corner_head.py."""
    model = build(stacks=stacks, channels=(8, 8, 12), blocks=(2, 1, 3))
    paths = next(m for m in model.key_maps if m.publisher == "mmdetection").modules(model.config)
    layers = {key.rpartition(".")[0] for key in model.state_dict()}
    # A map also has names of shortcuts that only blocks with another shape have.
    assert {ours for ours in paths.values() if "shortcut" not in ours} <= layers <= set(paths.values())
    assert len(set(paths.values())) == len(paths)
    last = stacks - 1
    some = {
        "backbone.stem.0.bn",
        "backbone.stem.1.0.downsample.0",
        f"backbone.hourglass_modules.{last}.low2.low2.2.conv2",
        f"backbone.hourglass_modules.{last}.low2.low3.0.downsample.1",
        f"backbone.out_convs.{last}.conv",
        f"bbox_head.br_pool.{last}.aftpool_conv.bn",
        f"bbox_head.tl_emb.{last}.1.conv",
    }
    if stacks == 2:
        some |= {"backbone.inters.0.bn1", "backbone.conv1x1s.0.conv", "backbone.remap_convs.0.bn"}
    assert some <= paths.keys()
    state: dict[str, Tensor] = {}
    for theirs, ours in paths.items():
        state |= {
            f"{theirs}.{key.rpartition('.')[2]}": v
            for key, v in model.state_dict().items()
            if key.rpartition(".")[0] == ours
        }
    report = cvops.models.load_weights(model, state, strict=False)
    assert report.publisher == "mmdetection"
    assert report.complete
