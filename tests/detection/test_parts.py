"""The parts that detectors share, one by one: batches of images, anchors, box codes, assigners, sampling, losses."""

import math

import pytest
import torch
from torch import Tensor

from cvops.models.detection import (
    AnchorGrid,
    Anchors,
    ATSSAssigner,
    CenterAssigner,
    DeltaCoder,
    DenseOutput,
    DistanceCoder,
    ImageTransform,
    IoUAssigner,
    anchor_shapes,
    best_of_levels,
    box_loss,
    centerness_of,
    sample,
)
from cvops.models.detection.hard_negatives import hard_negative_loss
from cvops.ops import box_iou

STRIDES = (8, 16, 32)
POINTS = AnchorGrid(tuple(((float(s), float(s)),) for s in STRIDES), STRIDES, offset=0.5)
MAPS = [(16, 20), (8, 10), (4, 5)]
RANGES = ((0.0, 32.0), (32.0, 64.0), (64.0, math.inf))


def random_boxes(count: int, seed: int, size: float = 128.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * size
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=draw) * size / 2], 1)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "image", "expected"),
    [
        (ImageTransform(), (480, 640), (800, 1067)),
        (ImageTransform(), (300, 900), (444, 1333)),
        (ImageTransform("stretch", (300, 320)), (50, 70), (300, 320)),
        (ImageTransform("letterbox", (512, 512)), (200, 100), (512, 256)),
        (ImageTransform("none"), (31, 17), (31, 17)),
    ],
)
def test_sizes_follow_the_rule(transform: ImageTransform, image: tuple[int, int], expected: tuple[int, int]) -> None:
    assert transform.output_size(*image) == expected


def test_a_batch_pads_and_takes_boxes_there_and_back() -> None:
    images = [torch.rand(3, 40, 80), torch.rand(3, 60, 30)]
    targets = [
        {"boxes": torch.tensor([[4.0, 8, 40, 20]]), "labels": torch.tensor([2])},
        {"boxes": torch.tensor([[0.0, 0, 30, 60], [3, 6, 9, 12]]), "labels": torch.tensor([0, 1])},
    ]
    transform = ImageTransform(size=(80, 160), divisor=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    batch = transform(images, targets)
    assert batch.sizes.tolist() == [[80, 160], [160, 80]]
    assert batch.pixels.shape == (2, 3, 160, 160)
    assert batch.pixels[0, :, 80:].abs().max() == 0
    assert batch.pixels[1, :, :, 80:].abs().max() == 0
    assert batch.valid.tolist() == [[True, False], [True, True]]
    assert batch.labels.tolist() == [[2, -1], [0, 1]]
    torch.testing.assert_close(batch.boxes[1, 0], torch.tensor([0.0, 0, 80, 160]))
    back = batch.to_image(batch.boxes)
    torch.testing.assert_close(back[0, :1], targets[0]["boxes"])
    torch.testing.assert_close(back[1], targets[1]["boxes"])


def test_boxes_of_half_precision_images_are_not_rounded() -> None:
    target = {"boxes": torch.tensor([[101.0, 203, 997, 1001]]), "labels": torch.tensor([0])}
    batch = ImageTransform(size=(800, 1333))([torch.rand(3, 1111, 1777).bfloat16()], [target])
    assert batch.pixels.dtype == torch.bfloat16
    torch.testing.assert_close(batch.to_image(batch.boxes)[0], target["boxes"])
    height, width = batch.sizes[0].tolist()
    scale = torch.tensor([width / 1777, height / 1111] * 2)
    torch.testing.assert_close(batch.boxes[0, 0], target["boxes"][0] * scale)


def test_values_are_normalised_and_channels_swapped() -> None:
    image = torch.stack([torch.full((4, 4), value) for value in (0.1, 0.5, 0.9)])
    transform = ImageTransform("none", divisor=1, mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.5), bgr=True)
    pixels = transform([image]).pixels[0, :, 0, 0]
    torch.testing.assert_close(pixels, torch.tensor([(0.9 - 0.1) / 0.1, (0.5 - 0.2) / 0.2, (0.1 - 0.3) / 0.5]))


# --- anchors and codes ------------------------------------------------------------------------------------------------


def test_anchors_are_centred_on_their_cells() -> None:
    grid = AnchorGrid((anchor_shapes((32, 64), (0.5, 2)),), (16,), offset=0.5)
    boxes = grid([(3, 5)], (48, 80)).boxes.view(3, 5, 4, 4)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    torch.testing.assert_close(centres[2, 4], torch.tensor([4.5 * 16, 2.5 * 16]).expand(4, 2))
    sides = boxes[..., 2:] - boxes[..., :2]
    torch.testing.assert_close(sides[1, 1].prod(1).sqrt(), torch.tensor([32.0, 64, 32, 64]))
    torch.testing.assert_close(sides[1, 1, :, 1] / sides[1, 1, :, 0], torch.tensor([0.5, 0.5, 2, 2]))


def test_quotient_spacing_divides_the_batch_by_the_map() -> None:
    shapes = (((2.0, 2.0),),)
    exact = AnchorGrid(shapes, (64,))([(2, 3)], (128, 160)).boxes
    quotient = AnchorGrid(shapes, (64,), spacing="quotient")([(2, 3)], (128, 160)).boxes
    assert (exact[:, 0] + 1).tolist() == [0, 64, 128] * 2
    assert (quotient[:, 0] + 1).tolist() == [0, 53, 106] * 2


CODERS = [
    DeltaCoder(),
    DeltaCoder((10, 10, 5, 5)),
    DeltaCoder((10, 20, 5, 2), vertical_first=True),
    DistanceCoder(),
    DistanceCoder(False),
]


@pytest.mark.parametrize("coder", CODERS)
def test_decoding_inverts_encoding(coder: DeltaCoder | DistanceCoder) -> None:
    boxes, anchors = random_boxes(50, 0).double(), random_boxes(50, 1).double()
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes)


def test_vertical_first_swaps_the_codes_and_nothing_else() -> None:
    boxes, anchors, weights = random_boxes(50, 0), random_boxes(50, 1), (10.0, 20.0, 5.0, 2.0)
    usual = DeltaCoder(weights).encode(boxes, anchors)
    assert torch.equal(DeltaCoder(weights, vertical_first=True).encode(boxes, anchors), usual[:, [1, 0, 3, 2]])


def test_wild_codes_stay_finite() -> None:
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    box = DeltaCoder().decode(torch.full((1, 4), 1e4), anchor)
    torch.testing.assert_close(box[:, 2:] - box[:, :2], torch.full((1, 2), 1000.0))


# --- postprocessing ---------------------------------------------------------------------------------------------------


def test_candidates_of_all_levels_are_the_best_of_the_image() -> None:
    grid = AnchorGrid((((8.0, 8.0), (6.0, 9.0)),) * 2, (8, 16), offset=0.5)
    maps = [(8, 8), (4, 4)]
    draw = torch.Generator().manual_seed(0)
    classes, codes = ([torch.randn(2, n, *size, generator=draw) for size in maps] for n in (2 * 3, 2 * 4))
    output, anchors = DenseOutput(classes, codes), grid(maps, (64, 64))
    found = best_of_levels(output, anchors, DeltaCoder(), 20, 0.0, together=True)
    every = best_of_levels(output, anchors, DeltaCoder(), 10_000, 0.0)
    order = every[1].argsort(dim=1, descending=True)[:, :20]
    for got, want in zip(found, every, strict=True):
        index = order if want.ndim == 2 else order[:, :, None].expand(-1, -1, 4)
        assert torch.equal(got, want.gather(1, index))


# --- assigners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 40])  # 40: more than one chunk
def test_center_assigner_is_the_rule_written_out(count: int) -> None:
    anchors, boxes = POINTS(MAPS, (128, 160)), random_boxes(count, 2)
    got = CenterAssigner(1.5, RANGES)(anchors, boxes[None], torch.ones(1, count, dtype=torch.bool))[0]
    levels = [level for level, n in enumerate(anchors.counts) for _ in range(n)]
    for anchor, level, index in zip(anchors.boxes.tolist(), levels, got.tolist(), strict=True):
        x, y, stride = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2, anchor[2] - anchor[0]
        fits = []
        for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            middle = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
            if min(sides) > 0 and middle and RANGES[level][0] < max(sides) < RANGES[level][1]:
                fits.append(((x2 - x1) * (y2 - y1), number))
        assert index == (min(fits)[1] if fits else -1)


@pytest.mark.parametrize("count", [0, 1, 6, 40])
def test_atss_is_the_algorithm_written_out(count: int) -> None:
    anchors, boxes = POINTS(MAPS, (128, 160)), random_boxes(count, 3)
    valid = torch.ones(1, count, dtype=torch.bool)
    got = ATSSAssigner(9)(anchors, boxes[None], valid)[0]
    ious = box_iou(anchors.boxes, boxes)
    centres = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2
    best = torch.full((len(anchors.boxes),), -1.0)
    want = torch.full((len(anchors.boxes),), -1)
    for number, box in enumerate(boxes):
        distance = (centres - (box[:2] + box[2:]) / 2).norm(dim=1)
        candidates, start = [], 0
        for n in anchors.counts:
            candidates += (distance[start : start + n].argsort(stable=True)[:9] + start).tolist()
            start += n
        overlaps = ious[candidates, number]
        for anchor, overlap in zip(candidates, overlaps, strict=True):
            inside = torch.cat([centres[anchor] - box[:2], box[2:] - centres[anchor]]).min() > 0.01
            if overlap >= overlaps.mean() + overlaps.std() and inside and overlap > best[anchor]:
                best[anchor], want[anchor] = overlap, number
    assert got.tolist() == want.tolist()


def test_padding_is_never_assigned() -> None:
    anchors, boxes = POINTS(MAPS, (128, 160)), random_boxes(6, 4)
    valid = torch.tensor([[True, False, True, False, False, True], [False] * 6])
    for assigner in (
        IoUAssigner(0.5, 0.4, rescue=True),
        IoUAssigner(0.5, 0.5, force=True),
        CenterAssigner(ranges=RANGES),
        ATSSAssigner(),
    ):
        index = assigner(anchors, boxes.expand(2, 6, 4), valid)
        assert set(index[0].unique().tolist()) <= {-2, -1, 0, 2, 5}
        assert index[0].max() >= 0
        assert index[1].max() < 0


def test_every_target_is_forced_on_its_best_anchor() -> None:
    anchors = Anchors(random_boxes(300, 5), (300,))
    boxes = random_boxes(8, 6)
    index = IoUAssigner(0.9, 0.9, force=True)(anchors, boxes[None], torch.ones(1, 8, dtype=torch.bool))[0]
    assert index[box_iou(anchors.boxes, boxes).argmax(0)].tolist() == list(range(8))


# --- sampling and losses ----------------------------------------------------------------------------------------------


def test_sampling_keeps_the_share_and_fills_up() -> None:
    index = torch.full((2, 1000), -1)
    index[0, :100] = 3
    index[1, :5] = 0
    index[1, 500:] = -2
    image, position = sample(index, 64, 0.25)
    drawn = index[image, position]
    assert [(image == i).sum().item() for i in (0, 1)] == [64, 64]
    assert [((image == i) & (drawn >= 0)).sum().item() for i in (0, 1)] == [16, 5]
    assert (drawn > -2).all()
    assert len(set(zip(image.tolist(), position.tolist(), strict=True))) == 128
    again = sample(index, 64, 0.25)[1]
    assert not torch.equal(position, again)


def test_hard_negatives_are_the_worst_three_of_a_positive() -> None:
    logits = torch.randn(2, 50, 4, requires_grad=True)
    labels = torch.full((2, 50), 3)
    labels[0, :4] = 1
    loss = hard_negative_loss(logits, labels, background=3)
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 50)
    want = each[0, :4].sum() + each[0, 4:].sort(descending=True).values[:12].sum()
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert (logits.grad[0].abs().sum(1) > 0).sum() == 16
    assert logits.grad[1].abs().max() == 0


def test_centerness_is_one_in_the_middle_and_zero_at_a_side() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]])
    anchors = torch.tensor([[4.0, 9, 6, 11], [-1, 9, 1, 11], [1.5, 9, 3.5, 11]])
    values = centerness_of(box.expand(3, 4), anchors)
    torch.testing.assert_close(values, torch.tensor([1.0, 0.0, math.sqrt(2.5 / 7.5)]))


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "iou", "giou", "diou", "ciou"])
def test_box_losses_vanish_at_the_target_and_weigh_each_positive(kind: str) -> None:
    anchors, boxes = random_boxes(6, 7), random_boxes(6, 8)
    coder, weight = DeltaCoder(), torch.rand(6)
    exact = coder.encode(boxes, anchors)
    assert box_loss(kind, exact, boxes, anchors, coder, weight).abs() < 1e-5
    off = exact + 0.3
    each = [box_loss(kind, *(t[i : i + 1] for t in (off, boxes, anchors)), coder, torch.ones(1)) for i in range(6)]
    torch.testing.assert_close(box_loss(kind, off, boxes, anchors, coder, weight), (torch.stack(each) * weight).sum())


def test_unknown_box_loss_is_named() -> None:
    with pytest.raises(ValueError, match="kind must be 'l1'"):
        box_loss("l3", *[torch.zeros(0, 4)] * 3, DeltaCoder(), torch.zeros(0))
