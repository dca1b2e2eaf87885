"""Heat maps of key points and their losses, against their definitions written out in loops."""

import math

import pytest
import torch
from torch import Tensor

from cvops.models.backbone.hourglass import Hourglass, HourglassNet
from cvops.models.detection.gaussians import draw_gaussians, gaussian_radius
from cvops.models.detection.keypoint_losses import KeyPoints, heatmap_loss, locate, offset_loss, tag_losses
from cvops.ops import box_iou


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_a_box_off_by_the_radius_overlaps_just_enough(overlap: float) -> None:
    sides = torch.rand(50, 2, generator=torch.manual_seed(0)).double() * 60 + 1
    for (width, height), r in zip(
        sides.tolist(), gaussian_radius(sides[:, 1], sides[:, 0], overlap).tolist(), strict=True
    ):
        moves = torch.tensor([[r, r, r, r], [r, r, -r, -r], [-r, -r, r, r]], dtype=torch.float64)
        box = torch.tensor([[0.0, 0, width, height]], dtype=torch.float64)
        assert box_iou(box, box + moves).min().item() == pytest.approx(overlap, abs=1e-9)


def test_radius_names_a_bad_overlap() -> None:
    with pytest.raises(ValueError, match=r"overlap must be in \(0, 1\), got 1"):
        gaussian_radius(torch.ones(1), torch.ones(1), 1.0)


def drawn(
    shape: tuple[int, int, int, int], points: list[tuple[int, int, int, int, float]], deviations: float
) -> Tensor:
    heat = torch.zeros(shape, dtype=torch.float64)
    for image, channel, y, x, radius in points:
        r = int(radius)
        sigma = (2 * r + 1) / deviations
        for i in range(max(0, y - r), min(shape[2], y + r + 1)):
            for j in range(max(0, x - r), min(shape[3], x + r + 1)):
                bump = math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * sigma**2))
                heat[image, channel, i, j] = max(heat[image, channel, i, j].item(), bump)
    return heat


@pytest.mark.parametrize("deviations", [5.0, 6.0])
def test_bumps_equal_those_drawn_in_loops(deviations: float) -> None:
    draw = torch.manual_seed(0)
    shape = (2, 3, 17, 23)
    columns = [torch.randint(high, (40,), generator=draw) for high in shape]
    radii = torch.rand(40, generator=draw).double() * 6
    want = drawn(shape, [tuple(row) for row in zip(*(c.tolist() for c in (*columns, radii)), strict=True)], deviations)
    got = draw_gaussians(shape, *columns, radii, deviations)
    torch.testing.assert_close(got, want)
    assert (got == 1).sum() == len({tuple(row) for row in torch.stack(columns, 1).tolist()})


def test_points_on_the_border_are_in_the_last_cell() -> None:
    zero = torch.zeros(2, dtype=torch.int64)
    points = locate(torch.tensor([[0.0, 3.5], [8.0, 4.0]]), zero, zero, (4, 8))
    assert points.xs.tolist() == [0, 7]
    assert points.ys.tolist() == [3, 3]
    assert points.offsets.tolist() == [[0.0, 0.5], [1.0, 1.0]]


def test_losses_without_points_are_finite_and_zero_where_there_is_nothing_to_learn() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    points = KeyPoints(none, none, none, none, torch.zeros(0, 2))
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = heatmap_loss(logits, points, torch.zeros(0))
    loss.backward()
    assert loss.item() == pytest.approx(32 * 0.25 * math.log(2))
    assert logits.grad.isfinite().all()
    assert offset_loss(torch.ones(1, 2, 4, 4), points) == 0
    assert tag_losses(torch.zeros(0), torch.zeros(0), none, 2) == (0, 0)


def test_offsets_name_a_bad_kind() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="kind must be 'smooth_l1' or 'l1', got 'l2'"):
        offset_loss(torch.ones(1, 2, 4, 4), KeyPoints(none, none, none, none, torch.zeros(0, 2)), "l2")


def test_tag_losses_equal_the_equations() -> None:
    draw = torch.manual_seed(0)
    image = torch.tensor([0, 2, 0, 2, 2, 3])  # image 1 has no objects, image 3 has one
    first, second = torch.randn(2, 6, generator=draw).double()
    pull = push = 0.0
    for i in range(4):
        rows = (image == i).nonzero()[:, 0].tolist()
        means = [(first[k].item() + second[k].item()) / 2 for k in rows]
        for k, mean in zip(rows, means, strict=True):
            pull += ((first[k].item() - mean) ** 2 + (second[k].item() - mean) ** 2) / len(rows)
        for a, mean in enumerate(means):
            for b, other in enumerate(means):
                if a != b:
                    push += max(0.0, 1 - abs(mean - other)) / (len(rows) * (len(rows) - 1))
    got = tag_losses(first, second, image, 4)
    assert [x.item() for x in got] == pytest.approx([pull / 4, push / 4])


def test_hourglass_takes_any_size_and_every_stack_gets_gradients() -> None:
    net = HourglassNet(stacks=2, channels=(8, 12, 16), blocks=(1, 1, 2), stem_channels=8, out_channels=8)
    maps = net.features(torch.rand(2, 3, 45, 70))
    assert [list(m.shape) for m in maps] == [[2, 8, 12, 18]] * 2
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_hourglass_names_bad_settings() -> None:
    with pytest.raises(ValueError, match="channels and blocks must be of the same two sizes or more"):
        Hourglass((8, 8), (1,))
    with pytest.raises(ValueError, match="stacks must be 1 or more, got 0"):
        HourglassNet(stacks=0)
