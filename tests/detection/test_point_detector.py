"""Detectors of points: boxes from maps that are written by hand, and losses at the truth and beside it."""

from dataclasses import replace

import pytest
import torch

import cvops
from cvops.models.detection import ImageTransform
from cvops.models.detection.keypoint_losses import KeyPoints, locate
from cvops.models.detection.spread import spread
from cvops.models.head.point import PointOutput
from cvops.models.point_detector import PointDetector

# (x1, y1, x2, y2) in an image of 64 x 96 pixels; at stride 4 their centres are in different cells.
BOXES = torch.tensor([[8.0, 6, 26, 20], [50, 10, 81, 60]])
LABELS = torch.tensor([2, 0])


def build(code: str) -> PointDetector:
    transform = ImageTransform("none", mean=(0.0,), std=(1.0,))
    if code == "size":
        settings = {"backbone": "mobilenetv2_035", "channels": (8, 8, 8), "head_channels": 8}
        model = cvops.create_model("centernet_resnet18_dcn", num_classes=3, transform=transform, **settings)
    else:
        model = cvops.create_model(
            "centernet_mobilenetv3", num_classes=3, transform=transform, widths=(8, 8, 8), iou_threshold=1.0
        )
    model.config = replace(model.config, max_detections=5)
    return model.eval()


def truth(code: str) -> PointOutput:
    """What a perfect network puts out: everything else is near certain to be background."""
    zero = torch.zeros(2, dtype=torch.int64)
    points = locate((BOXES[:, :2] + BOXES[:, 2:]) / 8, zero, LABELS, (16, 24))
    heat, boxes = torch.full((1, 3, 16, 24), -20.0), torch.zeros(1, 2 if code == "size" else 4, 16, 24)
    offsets = torch.zeros(1, 2, 16, 24)
    heat[0, LABELS, points.ys, points.xs] = torch.tensor([20.0, 18.0])
    if code == "size":
        boxes[0, :, points.ys, points.xs] = ((BOXES[:, 2:] - BOXES[:, :2]) / 4).T
        offsets[0, :, points.ys, points.xs] = points.offsets.T
        return PointOutput([heat], [boxes], [offsets])
    # Every cell knows the object of its half of the image.
    ys, xs = torch.meshgrid(4.0 * torch.arange(16), 4.0 * torch.arange(24), indexing="ij")
    x1, y1, x2, y2 = BOXES[(xs >= 40).long()].unbind(2)
    boxes[0] = torch.stack([xs - x1, ys - y1, x2 - xs, y2 - ys])
    return PointOutput([heat], [boxes], None)


@pytest.mark.parametrize("code", ["size", "distances"])
def test_boxes_come_back_from_the_truth(code: str) -> None:
    found = build(code).postprocess(truth(code), (64, 96), torch.tensor([[64, 96]]))
    torch.testing.assert_close(found.boxes[0, :2], BOXES)
    assert found.labels[0, :2].tolist() == LABELS.tolist()
    # A plateau of background is all peaks, so the other slots are in use too.
    assert found.scores[0, 2:].max() < 1e-6


def test_unused_slots_are_empty_and_so_are_boxes_of_negative_size() -> None:
    model, raw = build("size"), truth("size")
    model.config = replace(model.config, score_threshold=0.5)
    raw.boxes[0].neg_()
    found = model.postprocess(raw, (64, 96), torch.tensor([[64, 96]]))
    assert found.counts.tolist() == [2]
    assert (found.boxes[0, :2, 2:] == found.boxes[0, :2, :2]).all()
    assert found.labels[0].tolist() == [2, 0, -1, -1, -1]
    assert not found.scores[0, 2:].any()
    assert not found.boxes[0, 2:].any()


def test_equal_peaks_have_equal_scores() -> None:
    """torch's float32 sigmoid of this number is one bit larger in the last four of a hundred."""
    model, raw = build("size"), truth("size")
    model.config = replace(model.config, max_detections=100)
    raw.heat[0].fill_(-2.199998617172241)
    found = model.postprocess(raw, (64, 96), torch.tensor([[64, 96]]))
    assert found.counts.tolist() == [100]
    assert len(found.scores.unique()) == 1


def test_suppression_is_a_setting() -> None:
    raw = truth("size")
    y, x = (int(i) for i in (raw.heat[0][0, 2] > 0).nonzero()[0])
    raw.heat[0][0, 2, y, x + 2] = 10  # the same object again, two cells further
    raw.boxes[0][0, :, y, x + 2] = raw.boxes[0][0, :, y, x]
    raw.offsets[0][0, :, y, x + 2] = raw.offsets[0][0, :, y, x] - torch.tensor([1.5, 0])
    model = build("size")
    for threshold, count in ((1.0, 3), (0.5, 2)):
        model.config = replace(model.config, score_threshold=0.5, iou_threshold=threshold)
        assert model.postprocess(raw, (64, 96), torch.tensor([[64, 96]])).counts.tolist() == [count]


@pytest.mark.parametrize("code", ["size", "distances"])
def test_losses_vanish_at_the_truth_and_there_only(code: str) -> None:
    model, raw = build(code), truth(code)
    batch = model.config.transform([torch.zeros(3, 64, 96)], [{"boxes": BOXES, "labels": LABELS}], 3)
    assert all(float(loss) < 1e-6 for loss in model.losses(raw, batch).values())
    shifted = {
        "heat": raw._replace(heat=[raw.heat[0].roll(3, dims=3)]),
        "boxes": raw._replace(boxes=[raw.boxes[0] * 1.5]),
    }
    if raw.offsets is not None:
        shifted["offsets"] = raw._replace(offsets=[raw.offsets[0] + 0.5])
    for name, wrong in shifted.items():
        losses = model.losses(wrong, batch)
        assert float(losses.pop(name)) > 1e-3
        assert all(float(loss) < 1e-6 for loss in losses.values())


def test_size_and_offset_losses_are_means_over_objects_and_coordinates() -> None:
    model, raw = build("size"), truth("size")
    batch = model.config.transform([torch.zeros(3, 64, 96)], [{"boxes": BOXES, "labels": LABELS}], 3)
    wrong = raw._replace(boxes=[raw.boxes[0] + 3], offsets=[raw.offsets[0] - 0.25])
    losses = model.losses(wrong, batch)
    torch.testing.assert_close(losses["boxes"], torch.tensor(0.1 * 3))
    torch.testing.assert_close(losses["offsets"], torch.tensor(0.25))
    # Two stacks, one of them right: the mean of both.
    both = PointOutput(raw.heat * 2, [raw.boxes[0], wrong.boxes[0]], [raw.offsets[0], wrong.offsets[0]])
    losses = model.losses(both, batch)
    torch.testing.assert_close(losses["boxes"], torch.tensor(0.15))
    torch.testing.assert_close(losses["offsets"], torch.tensor(0.125))


def test_samples_are_weighed_by_gaussians_and_small_objects_come_first() -> None:
    zero = torch.zeros(2, dtype=torch.int64)
    points = KeyPoints(zero, zero, torch.tensor([3, 3]), torch.tensor([5, 6]), torch.zeros(2, 2))
    radii, areas = torch.tensor([[3.0, 5.9], [1.0, 0.0]]), torch.tensor([400.0, 20])
    samples = spread(points, radii, areas, (1, 8, 9))
    owner = torch.full((8, 9), -1)
    owner[samples.ys, samples.xs] = samples.target
    assert (owner[:7] >= 0).all()  # the large one reaches over the borders, which cut it off
    assert (owner[7] == -1).all()
    assert (owner == 1).nonzero().tolist() == [[2, 6], [3, 6], [4, 6]]
    weight = torch.zeros(8, 9).index_put((samples.ys, samples.xs), samples.weight)
    torch.testing.assert_close(weight[2:5, 6].sum(), torch.tensor(20.0).log())
    # Two cells up and two to the left of the centre: windows of 7 and 11 cells are six deviations each.
    ratio = torch.exp(torch.tensor(-(2**2) / 2 * ((6 / 7) ** 2 + (6 / 11) ** 2)))
    torch.testing.assert_close(weight[1, 3] / weight[3, 5], ratio)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="stacks must be 1 for the backbone resnet18, got 2"):
        cvops.create_model("centernet_resnet18_dcn", stacks=2)
