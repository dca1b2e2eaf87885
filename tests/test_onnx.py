"""Export to ONNX: every op that has an ONNX form, and models, give in ONNX Runtime what they give here, at the sizes of
the example and at others. Ops that are exported alike share a module, since making a graph takes a second."""

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import cvops
from cvops import ops
from cvops.nn import fuse


class Function(nn.Module):
    """A module of a function, for `export`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(
    function: Callable[..., Any],
    examples: list[tuple[Tensor, ...]],
    free: tuple[dict[int, str], ...],
    folder: Path,
    rtol: float = 1e-5,
) -> set[str]:
    """Exports `function` for the first example, compares it on all, and returns the operators of the graph."""
    model = function if isinstance(function, nn.Module) else Function(function)
    dynamic = free if isinstance(function, nn.Module) else (free,)
    path = folder / "model.onnx"
    program = cvops.onnx.export(model, examples[0], path, dynamic_shapes=dynamic)
    runner = session(path)
    names = [value.name for value in runner.get_inputs()]
    for inputs in examples:
        got = runner.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        with torch.inference_mode():
            want = function(*inputs)
        want = [want] if isinstance(want, Tensor) else list(want)
        for g, w in zip(got, want, strict=True):
            atol = rtol * w.abs().max().item() if w.is_floating_point() and w.isfinite().all() and w.numel() else 0
            torch.testing.assert_close(torch.from_numpy(g), w, rtol=rtol, atol=atol, equal_nan=True)
    domains = {node.domain for node in program.model.graph}
    assert domains <= {""}, "operators that are not standard"
    return {node.op_type for node in program.model.graph}


def boxes_of(*shape: int, size: float = 60.0) -> Tensor:
    corner = torch.rand(*shape, 2) * size
    return torch.cat([corner, corner + torch.rand(*shape, 2) * size / 2], -1)


# --- ops --------------------------------------------------------------------------------------------------------------


def test_depthwise_convolution(tmp_path: Path) -> None:
    weight, wide, bias = torch.randn(6, 1, 3, 5), torch.randn(12, 1, 3, 3), torch.randn(12)

    def convolutions(x: Tensor) -> list[Tensor]:
        out = [ops.depthwise_conv2d(x, weight, padding=(2, 3, 0, 1), dilation=2)]
        activations = ("relu", "relu6", "silu", "hardswish")
        out += [ops.depthwise_conv2d(x, wide, bias, 2, "same", 1, activation) for activation in activations]
        return [*out, ops.depthwise_conv2d(x, wide, stride=3, padding="same")]

    examples = [(3 * torch.randn(2, 6, 12, 11),), (3 * torch.randn(1, 6, 9, 16),)]
    operators = check(convolutions, examples, ({0: "batch", 2: "height", 3: "width"},), tmp_path)
    assert "Conv" in operators
    fixed = check(lambda x: ops.depthwise_conv2d(x, wide, bias, 2, "same"), examples[:1], ({0: "batch"},), tmp_path)
    assert fixed == {"Conv"}  # which pads by itself


@pytest.mark.parametrize("masked", [False, True])
def test_deformable_convolution(masked: bool, tmp_path: Path) -> None:
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)

    def convolution(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return ops.deform_conv2d(x, offset, weight, bias, 2, 1, 1, mask if masked else None)

    def example(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        out = (height + 1) // 2, (width + 1) // 2
        return torch.randn(batch, 6, height, width), 2 * torch.randn(batch, 36, *out), torch.rand(batch, 18, *out)

    free = ({0: "batch"},) * 3
    operators = check(convolution, [example(2, 8, 9), example(1, 8, 9)], free, tmp_path)
    assert "DeformConv" in operators


def test_batch_norms_of_fixed_statistics(tmp_path: Path) -> None:
    mean, gain, offset, bias = torch.randn(4, 6)
    var, weight = torch.rand(6) + 0.3, torch.randn(6, 3, 3, 3)

    def norms(x: Tensor) -> list[Tensor]:
        out = [*ops.fold_batch_norm(weight, bias, mean, var, gain, offset, 1e-3)]
        out += [*ops.fold_batch_norm(x[0].flatten(1), None, mean, var)]
        out += [ops.frozen_batch_norm(x, mean, var, gain, offset, 1e-3)]
        return [*out, ops.frozen_batch_norm(x.flatten(2), mean, var, None, offset)]

    examples = [(torch.randn(2, 6, 9, 12),), (torch.randn(1, 6, 4, 40),)]
    free = ({0: "batch", 2: "height", 3: "width"},)
    check(norms, examples, free, tmp_path)
    entries = [t.half() for t in (mean, var, gain, offset)]
    halves = [(x.half(),) for (x,) in examples]
    check(lambda x: ops.frozen_batch_norm(x, *entries), halves, free, tmp_path, rtol=1e-3)


def test_corner_pooling(tmp_path: Path) -> None:
    def pools(x: Tensor) -> list[Tensor]:
        return [ops.corner_pool(x, direction) for direction in ("top", "bottom", "left", "right")]

    examples = [(torch.randn(2, 3, 9, 12),), (torch.randn(1, 3, 1, 40),)]
    examples[0][0][0, 0, 4, 5] = torch.nan
    check(pools, examples, ({0: "batch", 2: "height", 3: "width"},), tmp_path, rtol=0)
    check(pools, examples[:1], ({0: "batch"},), tmp_path, rtol=0)


def test_heatmap_peaks(tmp_path: Path) -> None:
    def peaks(heatmap: Tensor) -> list[Tensor]:
        return [*ops.heatmap_peaks(heatmap, 30), *ops.heatmap_peaks(heatmap, 4, kernel=1)]

    plateaus = torch.randint(0, 4, (2, 3, 6, 8)).float()
    plateaus[0, 0] = -torch.inf
    plateaus[1, 1, 2:4] = torch.nan
    examples = [(torch.randn(2, 3, 7, 9),), (plateaus,), (torch.full((1, 3, 2, 3), -torch.inf),)]
    check(peaks, examples, ({0: "batch", 2: "height", 3: "width"},), tmp_path, rtol=0)


def test_mask_paste(tmp_path: Path) -> None:
    def paste(masks: Tensor, boxes: Tensor) -> list[Tensor]:
        return [ops.mask_paste(masks, boxes, (40, 50), None), ops.mask_paste(masks, boxes, (40, 50), 0.5)]

    def example(count: int) -> tuple[Tensor, Tensor]:
        boxes = boxes_of(count, size=40)
        boxes[0] = torch.tensor([9.0, 5.0, 9.0, 20.0])
        boxes[1] = torch.tensor([-20.0, -1.5, 90.0, 41.0])
        return torch.rand(count, 1, 14, 14), boxes

    check(paste, [example(5), example(3)], ({0: "masks"}, {0: "masks"}), tmp_path)


def rois_of(count: int, images: int) -> Tensor:
    rois = torch.cat([torch.randint(0, images, (count, 1)).float(), boxes_of(count, size=200.0)], 1)
    rois[0, 1:] = torch.tensor([-300.0, -300.0, -200.0, -200.0])
    rois[1, 3] = torch.nan
    rois[2, 1:] = torch.tensor([30.0, 30.0, 20.0, 40.0])
    return rois


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align(aligned: bool, tmp_path: Path) -> None:
    scales = [1 / 4, 1 / 8, 1 / 16]

    def pool(rois: Tensor, *maps: Tensor) -> list[Tensor]:
        return [
            ops.roi_align(maps[0], rois, (3, 5), 0.25, 2, aligned),
            ops.roi_align(maps[0], rois, 4, 0.25, -1, aligned),
            ops.multiscale_roi_align(maps, rois, 3, scales, 2, aligned, canonical_scale=60, canonical_level=3),
        ]

    def example(count: int, batch: int, side: int) -> tuple[Tensor, ...]:
        return rois_of(count, batch), *(torch.randn(batch, 4, side >> i, side >> i) for i in range(3))

    examples = [example(40, 2, 64), example(11, 3, 48)]
    # An edge of the canonical size belongs to its level, one a little smaller to the finer one.
    examples[0][0][3:5, 1:] = torch.tensor([[10.0, 10.0, 70.0, 70.0], [10.0, 10.0, 69.9, 69.9]])
    free = ({0: "rois"}, *({0: "batch", 2: f"h{i}", 3: f"w{i}"} for i in range(3)))
    assert "RoiAlign" in check(pool, examples, free, tmp_path)


def test_a_roi_of_no_image_gives_zeros(tmp_path: Path) -> None:
    """As on CUDA; the CPU op raises."""
    program = cvops.onnx.export(
        Function(lambda x, rois: ops.roi_align(x, rois, 2)),
        (torch.ones(2, 1, 8, 8), torch.tensor([[1.0, 0, 0, 4, 4]] * 4)),
        tmp_path / "model.onnx",
        opset=18,
    )
    assert program.model.opset_imports[""] == 18
    runner = session(tmp_path / "model.onnx")
    rois = torch.tensor([[1.0, 0, 0, 4, 4], [2, 0, 0, 4, 4], [-1, 0, 0, 4, 4], [torch.nan, 0, 0, 4, 4]])
    names = [value.name for value in runner.get_inputs()]
    (out,) = runner.run(None, dict(zip(names, (torch.ones(2, 1, 8, 8).numpy(), rois.numpy()), strict=True)))
    assert out.max((1, 2, 3)).tolist() == [1, 0, 0, 0]


def test_box_matrices(tmp_path: Path) -> None:
    def matrices(a: Tensor, b: Tensor) -> list[Tensor]:
        kinds = (ops.box_iou, ops.generalized_box_iou, ops.distance_box_iou, ops.complete_box_iou)
        batched = ops.generalized_box_iou(torch.stack([a, a + 1]), b)
        converted = ops.box_convert(a, "xyxy", "cxcywh")
        return [*(kind(a, b) for kind in kinds), batched, converted, ops.box_area(a)]

    a, b = boxes_of(7), boxes_of(9)
    a[0, 2:] = a[0, :2]
    b[0] = a[0]
    b[1] = torch.tensor([5.0, 9.0, 3.0, 2.0])  # both sides negative
    check(matrices, [(a, b), (b, a)], ({0: "n"}, {0: "m"}), tmp_path)


def crowded(batch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that overlap, equal scores among them, and everything that has a rule of its own."""
    boxes, scores = boxes_of(batch, count), (torch.rand(batch, count) * 40).round() / 40
    boxes[:, 0, 2] = boxes[:, 0, 0]
    boxes[:, 1, [0, 2]] = boxes[:, 1, [2, 0]]
    boxes[:, 2, 3] = torch.nan
    boxes[:, 3, 2:] = torch.inf
    scores[:, 4] = torch.nan
    scores[:, 5] = -torch.inf
    boxes[:, 7] = boxes[:, 6]
    return boxes, scores, torch.randint(-3, 2, (batch, count)) * 2**40


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_padded_nms(threshold: float | None, tmp_path: Path) -> None:
    def suppress(boxes: Tensor, scores: Tensor, ids: Tensor) -> list[Tensor]:
        out = []
        for groups in (None, ids):
            for count in (8, 90):
                out += ops.batched_nms_padded(boxes, scores, groups, 0.3, count, threshold)
        return [*out, *ops.nms_padded(boxes[0], scores[0], 0.7, 20, threshold)]

    free = ({0: "batch", 1: "boxes"},) * 3
    assert "NonMaxSuppression" in check(suppress, [crowded(2, 70), crowded(1, 100)], free, tmp_path)


def test_nms_with_a_threshold_between_two_float32s(tmp_path: Path) -> None:
    """0.7 in float32 is less than 0.7, so an overlap of exactly that keeps both boxes; 0.6 is the other way about."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 7], [20, 0, 30, 10], [20, 0, 30, 6]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])

    def suppress(boxes: Tensor, scores: Tensor) -> list[Tensor]:
        return [out for threshold in (0.6, 0.7) for out in ops.nms_padded(boxes, scores, threshold, 4, threshold)]

    check(suppress, [(boxes, scores)], ({}, {}), tmp_path)


def test_nms_of_free_size(tmp_path: Path) -> None:
    def suppress(boxes: Tensor, scores: Tensor, ids: Tensor) -> list[Tensor]:
        return [ops.nms(boxes, scores, 0.3), ops.batched_nms(boxes, scores, ids, 0.3)]

    examples = [tuple(t[0] for t in crowded(1, count)) for count in (50, 80)]
    check(suppress, examples, ({0: "boxes"},) * 3, tmp_path)


def test_half_types(tmp_path: Path) -> None:
    """They compute in float32 there too, so the results are the same to a rounding."""

    def all_ops(
        maps: Tensor, rois: Tensor, boxes: Tensor, scores: Tensor, masks: Tensor, offset: Tensor
    ) -> list[Tensor]:
        return [
            ops.roi_align(maps, rois, 2, 0.25, 2, True),
            ops.multiscale_roi_align([maps, maps[..., ::2, ::2]], rois, 2, [1 / 2, 1 / 4]),
            ops.mask_paste(masks, rois[:, 1:], (20, 20), None),
            ops.deform_conv2d(maps, offset, torch.ones(1, 3, 1, 1).half()),
            ops.box_iou(boxes[0], boxes[0]),
            *ops.batched_nms_padded(boxes, scores, None, 0.5, 5),
            *ops.heatmap_peaks(maps, 4),
            ops.corner_pool(maps, "top"),
        ]

    rois = torch.tensor([[0.0, 0, 0, 9, 9], [1, 3, 3, 15, 16]])
    made = torch.randn(2, 3, 8, 8), boxes_of(2, 9), torch.rand(2, 9), torch.rand(2, 1, 7, 7), torch.randn(2, 2, 8, 8)
    maps, boxes, scores, masks, offset = (t.half() for t in made)
    check(all_ops, [(maps, rois, boxes, scores, masks, offset)], ({},) * 6, tmp_path, rtol=1e-3)


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_model_at_free_sizes(tmp_path: Path) -> None:
    model = fuse(cvops.create_model("resnet18", depths=(1, 1, 1, 1), num_classes=7)).train()
    training = [module.training for module in model.modules()]
    examples = [(torch.randn(2, 3, 64, 64),), (torch.randn(3, 3, 33, 70),)]
    path = tmp_path / "model.onnx"
    cvops.onnx.export(
        model, examples[0], path, dynamic_shapes=({0: "batch", 2: "height", 3: "width"},), output_names=["logits"]
    )
    assert [module.training for module in model.modules()] == training
    runner = session(path)
    assert runner.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert runner.get_outputs()[0].name == "logits"
    for (images,) in examples:
        (got,) = runner.run(None, {"x": images.numpy()})
        with torch.inference_mode():
            want = model.eval()(images)
        assert (torch.from_numpy(got) - want).abs().max() < 1e-5 * want.abs().max()


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(cvops.onnx, extraglobs={"cvops": cvops}).failed == 0
    assert (tmp_path / "layer.onnx").is_file()


def test_mistakes_are_named() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="args must be a tuple of example inputs, got Tensor"):
        cvops.onnx.export(layer, torch.zeros(1, 2))  # type: ignore[arg-type]
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    with pytest.raises(ValueError, match="dynamic_shapes must be None for a captured program"):
        cvops.onnx.export(program, (torch.zeros(2),), dynamic_shapes=({0: "batch"},))
    with pytest.raises(ValueError, match="opset must be 18 or more, got 11"):
        cvops.onnx.export(layer, (torch.zeros(1, 2),), opset=11)
