"""YOLOv4 beyond its stored outputs: its parts, assignment and losses against their definitions, Darknet's files."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detection.darknet_files import cfg_of, write_weights

import cvops
from cvops.models import WeightsError, load_weights
from cvops.models.detection import ImageTransform
from cvops.models.yolov4 import STRIDES, GridCoder, YOLOv4, assign_shapes
from cvops.nn import PointwiseAttention, SpatialPyramidPool
from cvops.ops import box_iou, complete_box_iou

NAME = "yolov4_quarter"


def build(**settings: object) -> YOLOv4:
    torch.manual_seed(0)
    model = cvops.create_model(NAME, **{"num_classes": 5, **settings})
    assert isinstance(model, YOLOv4)
    return model


def test_pyramid_pool_equals_three_poolings() -> None:
    x = torch.randn(2, 3, 11, 20)
    want = [F.max_pool2d(x, k, 1, k // 2) for k in (13, 9, 5)]
    assert torch.equal(SpatialPyramidPool()(x), torch.cat([*want, x], 1))
    with pytest.raises(ValueError, match=r"kernels must be odd, 3 or more and ascending, got \(5, 5\)"):
        SpatialPyramidPool((5, 5))


def test_attention_gates_every_element() -> None:
    layer = PointwiseAttention(4).eval()
    x = torch.randn(2, 4, 3, 3)
    logits = F.conv2d(x, layer.gate.conv.weight) / (1 + layer.gate.norm.eps) ** 0.5
    torch.testing.assert_close(layer(x), x * logits.sigmoid())


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_centres_reach_beyond_their_cell_by_the_scale(scale: float) -> None:
    anchor = torch.tensor([[8.0, 8, 16, 16]])  # of the cell (1, 1) at stride 8
    codes = torch.tensor([[-30.0, 30, 0, 0]])
    box = GridCoder(8, scale).decode(codes, anchor)[0]
    centre = (box[:2] + box[2:]) / 2
    reach = 4 * scale
    torch.testing.assert_close(centre, torch.tensor([12 - reach, 12 + reach]))


def test_assignment_equals_the_rule_written_out() -> None:
    model = build()
    maps = [(16, 20), (8, 10), (4, 5)]
    draw = torch.manual_seed(1)
    sides = torch.exp(torch.rand(2, 9, 2, generator=draw) * 4 + 1)
    centres = torch.rand(2, 9, 2, generator=draw) * torch.tensor([160.0, 128.0])
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 2)
    valid = torch.arange(9) < torch.tensor([9, 4])[:, None]
    want = set()
    for b in range(2):
        for m in range(int(valid[b].sum())):
            width, height = sides[b, m].tolist()
            ious = []
            for level in model.config.anchors:
                for w, h in level:
                    shared = min(w, width) * min(h, height)
                    ious.append(shared / (w * h + width * height - shared))
            for slot, iou in enumerate(ious):
                if iou > 0.213 or iou == max(ious):
                    level = slot // 3
                    x, y = (int(v // STRIDES[level]) for v in centres[b, m].tolist())
                    first = sum(3 * h * w for h, w in maps[:level])
                    want.add((b, m, first + 3 * (y * maps[level][1] + x) + slot % 3))
    got = assign_shapes(boxes, valid, model.config.anchors, maps, 0.213)
    assert len(got[0]) == len(want)
    assert set(zip(*(t.tolist() for t in got), strict=True)) == want


def test_losses_equal_the_sums_written_out() -> None:
    transform = ImageTransform("letterbox", (64, 64), mean=(0.0,), std=(1.0,))
    model = build(transform=transform, ignore_threshold=0.4).double().eval()
    config = model.config
    torch.nn.init.normal_(model.head.outputs[0].bias, std=2.0)
    image = torch.rand(3, 64, 64, dtype=torch.float64)
    truth = torch.tensor([[4.0, 6, 30, 60], [5, 7, 28, 58], [40, 40, 52, 56]], dtype=torch.float64)
    labels = torch.tensor([1, 3, 0])
    with torch.no_grad():
        losses, _ = model([image], [{"boxes": truth, "labels": labels}])
        raw = model.network(image[None])
    levels = model.grid.over(raw.codes, (64, 64)).levels()
    boxes, objects, classes = [], [], []
    for codes, quality, kinds, anchors, coder in zip(
        raw.codes, raw.quality, raw.classes, levels, model.coders, strict=True
    ):
        boxes.append(coder.decode(codes.view(3, 4, -1).permute(2, 0, 1).reshape(-1, 4), anchors))
        objects.append(quality.view(3, -1).T.reshape(-1))
        classes.append(kinds.view(3, config.num_classes, -1).permute(2, 0, 1).reshape(-1, config.num_classes))
    boxes, objects, classes = torch.cat(boxes), torch.cat(objects), torch.cat(classes)
    pairs = assign_shapes(
        truth[None], torch.ones(1, 3, dtype=torch.bool), config.anchors, [(8, 8), (4, 4), (2, 2)], 0.213
    )
    positives: dict[int, set[int]] = {}
    for target, anchor in zip(pairs[1].tolist(), pairs[2].tolist(), strict=True):
        positives.setdefault(anchor, set()).add(target)
    overlaps = box_iou(boxes, truth).amax(1)
    want = {"boxes": 0.0, "objects": 0.0, "classes": 0.0}
    ignored = 0
    for i in range(len(boxes)):
        positive = i in positives
        if not positive and overlaps[i] >= config.ignore_threshold:
            ignored += 1
            continue
        want["objects"] += float(F.softplus(objects[i] if not positive else -objects[i]))
        for target in positives.get(i, ()):
            want["boxes"] += 0.07 * float(1 - complete_box_iou(boxes[i][None], truth[target][None]))
        if positive:
            kinds = {int(labels[target]) for target in positives[i]}
            want["classes"] += sum(float(F.softplus(-v if c in kinds else v)) for c, v in enumerate(classes[i]))
    assert ignored > 0
    assert any(len(targets) > 1 for targets in positives.values())
    assert {key: float(value) for key, value in losses.items()} == pytest.approx(want, rel=1e-6)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="anchors must be as many for each of the 3 levels"):
        build(anchors=(((4, 4),), ((8, 8),), ((16, 16), (32, 32))))
    with pytest.raises(ValueError, match=r"ignore_threshold must be in \[0, 1\], got 2"):
        build(ignore_threshold=2)


# --- Darknet's files --------------------------------------------------------------------------------------------------


def test_the_files_written_here_are_routed_as_darknet_s_own() -> None:
    """The routes of yolov4.cfg and yolov4-sam-mish.cfg, one after the other."""
    stages = "-2 -1,-7 -2 -1,-10 -2 -1,-28 -2 -1,-28 -2 -1,-16 -2 -4 -1,-3,-5,-6 85 -1,-3 54 -1,-3 "
    for name, head in (("yolov4", "-4 -1,-16 -4 -1,-37"), ("yolov4_sam_mish", "-4 -1,-18 -4 -1,-41")):
        cfg = cfg_of(cvops.model_info(name).config)
        assert re.findall(r"layers=(.*)", cfg) == (stages + head).split()
        assert cfg.count("[convolutional]") == (110 if name == "yolov4" else 113)


@pytest.mark.parametrize("settings", [{}, {"attention": True, "neck_act": "mish"}])
@pytest.mark.parametrize("version", [(0, 2, 5), (0, 1, 0)])
def test_darknet_s_files_fill_the_model(
    tmp_path: Path, settings: dict[str, object], version: tuple[int, int, int]
) -> None:
    model = build(**settings)
    path = tmp_path / "yolo.weights"
    cfg = cfg_of(model.config)
    arrays = write_weights(cfg, path, version=version)
    (tmp_path / "yolo.cfg").write_text(cfg)
    read = cvops.create_model(NAME, num_classes=5, weights=path, **settings)
    report = read.weights_report
    assert (report.publisher, report.complete, report.fresh) == ("darknet", True, ())
    # In the order in which both compute them.
    wanted = iter(arrays)
    for unit in read.darknet_layout().units:
        module = read.get_submodule(unit)
        conv, norm = (module.conv, module.norm) if hasattr(module, "conv") else (module, None)
        leaves = [conv.bias] if norm is None else [norm.bias, norm.weight, norm.running_mean, norm.running_var]
        for leaf in (*leaves, conv.weight):
            assert (leaf.detach().numpy() == next(wanted)).all()
    assert next(wanted, None) is None


def test_weights_for_other_classes_start_the_outputs_afresh(tmp_path: Path) -> None:
    write_weights(cfg_of(build(num_classes=7).config), tmp_path / "seven.weights")
    model = build(weights=tmp_path / "seven.weights")
    assert {line.partition(":")[0] for line in model.weights_report.fresh} == set(model.class_keys)
    grey = build(num_classes=7, in_chans=1, weights=tmp_path / "seven.weights")
    assert grey.weights_report.fresh == ()
    assert len(grey.weights_report.adapted) == 1


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "yolo.weights"
    arrays = write_weights(cfg_of(build().config), path)
    total = sum(array.size for array in arrays)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(
        WeightsError, match=rf"expected {total} numbers, for {NAME} with 5 classes, got {total - 1}: the file"
    ):
        build(weights=path)
    path.write_bytes(whole + b"1234")
    with pytest.raises(WeightsError, match=rf"got {total + 1}: the file"):
        build(weights=path)
    path.write_bytes(whole[:-3])
    with pytest.raises(WeightsError, match=r"not Darknet's weights, it says version 0\.2"):
        build(weights=path)
    path.write_bytes(b"12345")
    with pytest.raises(WeightsError, match="expected a header of 16 or 20 bytes, got a file of 5"):
        build(weights=path)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*none\.weights"):
        load_weights(build(), tmp_path / "none.weights")
    with pytest.raises(WeightsError, match=r"cannot read it"):
        cvops.create_model("mobilenetv2_035", weights=path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "filters=16\n",
            "filters=24\n",
            r"line 15: expected filters=16 size=3 stride=2 .* as backbone.stages.0.down has, got",
        ),
        (
            "activation=leaky",
            "activation=mish",
            r"line \d+: expected .*activation=leaky on 256 channels, as neck.before.0",
        ),
        ("mask=0,1,2", "mask=0,1,3", "expected anchors .* and scale_x_y 1.2, as yolov4_quarter has, got"),
        ("mask=0,1,2", "mask=0,1,9", "mask names anchors that are not there"),
        ("scale_x_y=1.05", "scale_x_y=1.1", "expected anchors .* and scale_x_y 1.05"),
        ("layers=-1,-7", "layers=-1,-90", "layers names what is not before it, -1,-90"),
        ("[maxpool]", "[gru]", r"a layer that no such architecture has, \[gru\]"),
        ("size=13", "size 13", r"expected a \[section\] or key=value, got 'size 13'"),
        ("filters=8", "filters=eight", r"line 7: expected filters= and numbers, got 'eight'"),
        ("[net]", "[convolutional]", r"expected \[net\] first, got 'convolutional'"),
    ],
)
def test_a_cfg_that_differs_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    model = build()
    cfg = cfg_of(model.config)
    write_weights(cfg, tmp_path / "yolo.weights")
    (tmp_path / "yolo.cfg").write_text(cfg.replace(old, new, 1))
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "yolo.cfg")) + ".*" + message):
        build(weights=tmp_path / "yolo.weights")


def test_a_cfg_cut_short_and_other_classes_are_named(tmp_path: Path) -> None:
    model = build()
    cfg = cfg_of(model.config)
    write_weights(cfg, tmp_path / "yolo.weights")
    (tmp_path / "yolo.cfg").write_text(cfg[: cfg.rindex("[convolutional]")])
    with pytest.raises(WeightsError, match=r"expected \d+ convolutions, as yolov4_quarter has, got"):
        build(weights=tmp_path / "yolo.weights")
    (tmp_path / "yolo.cfg").write_text(cfg_of(build(num_classes=6).config))
    with pytest.raises(WeightsError, match="with 6 classes"):
        build(weights=tmp_path / "yolo.weights")
