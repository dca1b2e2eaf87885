"""The switches of Zhang et al. 2020 (arXiv:1912.02424, section 3) between RetinaNet with one anchor and FCOS: each, on
its own, changes exactly what it says. The losses are written out here; the assigners have their own tests in
test_parts.py."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import cvops
from cvops.models.dense_detector import DenseDetector
from cvops.models.detection import ATSSAssigner, DenseOutput, IoUAssigner, flatten_map

SMALL = {
    "backbone": "mobilenetv2_035",
    "norm": None,
    "channels": 32,
    "head_convs": 1,
    "transform": {"size": (256, 256)},
}
ONE_ANCHOR = {"scales": (2.0,), "ratios": (1.0,)}
SWITCHES: dict[str, Any] = {
    "head_norm": "group",
    "box_loss": "giou",
    "in_box": True,
    "centerness": True,
    "level_scales": True,
    "weigh_by_centerness": True,
    "assigner": "atss",
}
TOWERS = ("head.class_tower.0", "head.box_tower.0")
# Entries of the state_dict that come, and that go.
ENTRIES: dict[str, tuple[set[str], set[str]]] = {
    "head_norm": (
        {f"{tower}.norm.{kind}" for tower in TOWERS for kind in ("weight", "bias")},
        {f"{tower}.conv.bias" for tower in TOWERS},
    ),
    "centerness": ({"head.centerness.weight", "head.centerness.bias"}, set()),
    "level_scales": ({f"head.scales.{level}.scale" for level in range(5)}, set()),
}
IMAGES = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
# Such that anchors are positive, ignored and background, and of the small boxes some contain no anchor's centre.
BOXES = [
    [[20.0, 30, 90, 100], [100, 100, 230, 228], [5, 5, 11, 11], [1, 1, 3, 3]],
    [[60.0, 70, 140, 130], [64, 64, 128, 128], [4.5, 100, 7.5, 120]],
]
LABELS = [[0, 1, 2, 0], [2, 1, 0]]
TARGETS = [{"boxes": torch.tensor(b), "labels": torch.tensor(c)} for b, c in zip(BOXES, LABELS, strict=True)]


def build(**switch: Any) -> DenseDetector:
    """With outputs that differ from place to place, and the same weights wherever the plain one has an entry."""
    torch.manual_seed(0)
    plain = cvops.create_model("retinanet_resnet50_fpn_c5", num_classes=3, **SMALL, **ONE_ANCHOR)
    torch.nn.init.normal_(plain.get_parameter("head.classes.weight"), std=0.05)
    model = cvops.create_model("retinanet_resnet50_fpn_c5", num_classes=3, **SMALL, **ONE_ANCHOR, **switch)
    model.load_state_dict(plain.state_dict(), strict=False)
    assert isinstance(model, DenseDetector)
    return model.eval()


@torch.no_grad()
def run(model: DenseDetector) -> tuple[DenseOutput, dict[str, Tensor], list[dict[str, Tensor]]]:
    losses, found = model(IMAGES, TARGETS)
    return model.network(model.config.transform(IMAGES).pixels), losses, found


def flat(maps: list[Tensor], values: int) -> Tensor:
    return torch.cat([flatten_map(m, values) for m in maps], 1)


def expected(
    model: DenseDetector, raw: DenseOutput, index: list[Tensor], giou: bool = False, central: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of classes, boxes and centerness, for the target of each anchor of each image: -1 background, -2
    ignored."""
    anchors = model.grid.over(raw.codes, (256, 256)).boxes
    positives = sum(int((i >= 0).sum()) for i in index)
    middle, side = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    classes, boxes, shares, quality = [], [], [], []
    for image, chosen in enumerate(index):
        hit = chosen >= 0
        truth, labels = TARGETS[image]["boxes"][chosen[hit]], TARGETS[image]["labels"][chosen[hit]]
        wanted = torch.zeros(len(anchors), 3)
        wanted[hit, labels] = 1
        logits = flat(raw.classes, 3)[image]
        each = torchvision.ops.sigmoid_focal_loss(logits, wanted, 0.25, 2.0)
        classes.append(each[chosen != -2].sum() / positives)
        codes, centre, size = flat(raw.codes, 4)[image][hit], middle[hit], side[hit]
        if giou:
            decoded_centre, decoded_size = centre + codes[:, :2] * size, size * codes[:, 2:].exp()
            decoded = torch.cat([decoded_centre - decoded_size / 2, decoded_centre + decoded_size / 2], 1)
            boxes.append(torchvision.ops.generalized_box_iou_loss(decoded, truth))
        else:
            wanted_centre, wanted_size = (truth[:, :2] + truth[:, 2:]) / 2, truth[:, 2:] - truth[:, :2]
            deltas = torch.cat([(wanted_centre - centre) / size, (wanted_size / size).log()], 1)
            boxes.append((codes - deltas).abs().sum(1))
        before, after = (centre - truth[:, :2]).clamp(min=0), (truth[:, 2:] - centre).clamp(min=0)
        ratio = torch.minimum(before, after) / torch.maximum(before, after)
        shares.append(ratio.prod(1).sqrt())
        if raw.quality is not None:
            guess = flat(raw.quality, 1)[image][hit, 0].sigmoid()
            quality.append(-(shares[-1] * guess.log() + (1 - shares[-1]) * (1 - guess).log()))
    share = torch.cat(shares) / torch.cat(shares).sum() if central else torch.full((positives,), 1 / positives)
    centerness = torch.cat(quality).mean() if quality else torch.zeros(())
    return torch.stack(classes).sum(), (torch.cat(boxes) * share).sum(), centerness


def assigned(model: DenseDetector, raw: DenseOutput, atss: bool = False, in_box: bool = False) -> list[Tensor]:
    anchors = model.grid.over(raw.codes, (256, 256))
    assigner = ATSSAssigner() if atss else IoUAssigner(0.5, 0.4, rescue=True)
    found = []
    for target in TARGETS:
        boxes = target["boxes"]
        index = assigner(anchors, boxes[None], torch.ones(1, len(boxes), dtype=torch.bool))[0]
        if in_box:
            centre = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2
            own = boxes[index.clamp(min=0)]
            outside = ((centre <= own[:, :2]) | (centre >= own[:, 2:])).any(1)
            index = torch.where((index >= 0) & outside, -1, index)
        found.append(index)
    return found


@pytest.mark.parametrize("switch", SWITCHES)
def test_parameters_come_and_go_as_the_switch_says(switch: str) -> None:
    plain, other = build().state_dict(), build(**{switch: SWITCHES[switch]}).state_dict()
    comes, goes = ENTRIES.get(switch, (set(), set()))
    assert other.keys() - plain.keys() == comes
    assert plain.keys() - other.keys() == goes
    assert all(plain[key].shape == other[key].shape for key in plain.keys() & other.keys())


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_network_s_outputs_change_by_the_head_alone(switch: str) -> None:
    plain, other = run(build())[0], run(build(**{switch: SWITCHES[switch]}))[0]
    same = all(torch.equal(a, b) for a, b in zip(plain.classes + plain.codes, other.classes + other.codes, strict=True))
    assert same == (switch != "head_norm")
    assert plain.quality is None
    assert (other.quality is not None) == (switch == "centerness")


@pytest.mark.parametrize("switch", [None, *SWITCHES])
def test_losses_are_the_written_out_ones(switch: str | None) -> None:
    model = build(**({switch: SWITCHES[switch]} if switch else {}))
    raw, losses, _ = run(model)
    index = assigned(model, raw, atss=switch == "assigner", in_box=switch == "in_box")
    classes, boxes, centerness = expected(
        model, raw, index, giou=switch == "box_loss", central=switch == "weigh_by_centerness"
    )
    wanted = {"classes": classes, "boxes": boxes}
    if switch == "centerness":
        wanted["centerness"] = centerness
    assert losses.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_the_scenes_tell_the_assignments_apart() -> None:
    model = build()
    raw = run(model)[0]
    plain, atss, in_box = (torch.cat(assigned(model, raw, **how)) for how in ({}, {"atss": True}, {"in_box": True}))
    assert {-2, -1} < set(plain.unique().tolist())
    assert (in_box >= 0).sum() < (plain >= 0).sum()
    assert not torch.equal(plain, atss)
    assert torch.equal(in_box[plain < 0], plain[plain < 0])


@pytest.mark.parametrize("switch", SWITCHES)
def test_detections_change_by_the_head_alone(switch: str) -> None:
    plain, other = run(build())[2], run(build(**{switch: SWITCHES[switch]}))[2]
    assert all(len(result["boxes"]) > 0 for result in plain)
    same = all(torch.equal(a[key], b[key]) for a, b in zip(plain, other, strict=True) for key in a)
    assert same == (switch not in ("head_norm", "centerness"))


def test_a_level_s_scale_multiplies_the_codes_of_its_level() -> None:
    model = build(level_scales=True)
    before = run(model)[0]
    with torch.no_grad():
        model.get_parameter("head.scales.1.scale").fill_(2.0)
    after = run(model)[0]
    for level, (a, b) in enumerate(zip(before.codes, after.codes, strict=True)):
        torch.testing.assert_close(b, a * 2 if level == 1 else a)
    assert all(torch.equal(a, b) for a, b in zip(before.classes, after.classes, strict=True))


def test_scores_are_the_root_of_class_times_centerness() -> None:
    model = build(centerness=True)
    raw, _, found = run(model)
    assert raw.quality is not None
    joint = (flat(raw.classes, 3).sigmoid() * flat(raw.quality, 1).sigmoid()).sqrt()
    for image, result in enumerate(found):
        torch.testing.assert_close(result["scores"][0], joint[image].max())
