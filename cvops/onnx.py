"""Export to ONNX: `export` for any module, and the standard operators that stand for each custom op of cvops. Capture
and everything of torch itself is `torch.onnx`. Drops are the identity in eval mode, losses and gradients are not
exported, and soft_nms, matrix_nms, match_boxes, roi_pool, ps_roi_align and ps_roi_pool have no ONNX form here.

A lowering takes the arguments of the op's schema, tensors as symbolic values of ONNX, and records operators of opset 18
(19 for DeformConv). Half types compute in float32, as the ops do."""

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cvops.ops._activation import ACTIVATIONS
from cvops.ops.box_iou import CIOU, DIOU, GIOU, IOU
from cvops.ops.corner_pool import DIRECTIONS

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

OPSET = 20
Value = Any
"""A symbolic tensor of the graph that is being made."""

_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_LOWEST = torch.finfo(torch.float32).min
_END = 2**63 - 1  # of a slice: everything
_LARGEST_SIZE = 1 << 14  # pixels


def export(
    model: "nn.Module | ExportedProgram",
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = OPSET,
) -> "ONNXProgram":
    """Exports what `model` computes in eval mode to ONNX, its cvops ops as standard operators.

    model: any module, of the zoo or not; its mode is left as it was. Or what `torch.export.export` captured of one.
    args: example inputs, a tuple.
    path: the file to write; weights above 2 GB go into a file beside it. None: write nothing.
    dynamic_shapes: sizes that stay free: for each input {dimension: name}, as `torch.onnx.export` takes them. All
        others are those of `args`. A captured program has its own.
    input_names, output_names: names in the graph, in order.
    opset: version of the standard operators, at least 18.

    Returns torch's `ONNXProgram`; its `model_proto` is the graph. Raises `ModuleNotFoundError` if onnxscript is not
    installed, `ValueError` for a bad `args`, `opset` or `dynamic_shapes`, and torch's `OnnxExporterError` for what
    cannot be exported.

    >>> layer = cvops.ops.DepthwiseConv2d(8, 3, padding="same")
    >>> program = export(layer, (torch.zeros(2, 8, 16, 16),), "layer.onnx", dynamic_shapes=({0: "batch"},))
    >>> [node.op_type for node in program.model.graph]
    ['Conv']
    """
    network = model if isinstance(model, nn.Module) else None
    if network is None and dynamic_shapes is not None:
        raise ValueError("dynamic_shapes must be None for a captured program, which has its own")
    if not isinstance(args, tuple):
        raise ValueError(f"args must be a tuple of example inputs, got {type(args).__name__}")
    if opset < 18:
        raise ValueError(f"opset must be 18 or more, got {opset}")
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"export to ONNX needs {error.name}: pip install 'cvops[export]'", name=error.name
        ) from error
    modes = [] if network is None else [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                model if network is None else network.eval(),
                args,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset,
                custom_translation_table=lowerings(),  # type: ignore[arg-type]
                verbose=False,
            )
    finally:
        for module, training in modes:
            module.training = training
    assert program is not None
    if path is not None:
        program.save(os.fspath(path))
    return program


def lowerings() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What stands for each op of cvops: a `custom_translation_table` for those who call `torch.onnx.export`
    themselves.

    >>> torch.ops.cvops.roi_align.default in lowerings()
    True
    """
    return {getattr(torch.ops.cvops, name).default: function for name, function in _LOWERINGS.items()}


# --- convolutions -----------------------------------------------------------------------------------------------------


def _depthwise_conv2d(
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> Value:
    op = _opset()
    y = op.Conv(
        input,
        weight,
        bias,
        group=int(input.shape[1]),
        strides=list(stride),
        pads=list(padding),
        dilations=list(dilation),
    )
    name = ACTIVATIONS[activation]
    if name == "relu":
        return op.Relu(y)
    if name == "relu6":
        return op.Clip(y, op.CastLike(0.0, y), op.CastLike(6.0, y))
    if name == "silu":
        return op.Mul(y, op.Sigmoid(y))
    if name == "hardswish":
        return op.HardSwish(y)
    return y


def _deform_conv2d(
    input: Value,
    weight: Value,
    offset: Value,
    mask: Value | None,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Value:
    from onnxscript import opset19

    x, weights, offsets = _in_float(input), _in_float(weight), _in_float(offset)
    out = opset19.DeformConv(
        x,
        weights,
        offsets,
        None if bias is None else _in_float(bias),
        None if mask is None else _in_float(mask),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        offset_group=offset_groups,
    )
    return _opset().CastLike(out, input)


# --- norms ------------------------------------------------------------------------------------------------------------


def _fold_batch_norm(
    weight: Value, bias: Value | None, mean: Value, var: Value, gain: Value | None, offset: Value | None, eps: float
) -> tuple[Value, Value]:
    op = _opset()
    scale, shift = _scale_and_shift(bias, mean, var, gain, offset, eps)
    rows = op.Reshape(scale, _ints(-1, *[1] * (len(weight.shape) - 1)))
    return op.CastLike(op.Mul(_in_float(weight), rows), weight), op.CastLike(shift, weight)


def _frozen_batch_norm(
    input: Value, mean: Value, var: Value, gain: Value | None, offset: Value | None, eps: float
) -> Value:
    op = _opset()
    planes = _ints(-1, *[1] * (len(input.shape) - 2))
    scale, shift = (op.Reshape(entry, planes) for entry in _scale_and_shift(None, mean, var, gain, offset, eps))
    return op.CastLike(op.Add(op.Mul(_in_float(input), scale), shift), input)


def _scale_and_shift(
    bias: Value | None, mean: Value, var: Value, gain: Value | None, offset: Value | None, eps: float
) -> tuple[Value, Value]:
    """Of every channel, [C] each; `norm_of_channel` in csrc/ops/norm_of_channel.h."""
    op = _opset()
    var = _in_float(var)
    deviation = op.Sqrt(op.Add(var, op.CastLike(eps, var)))
    scale = op.Reciprocal(deviation) if gain is None else op.Div(_in_float(gain), deviation)
    centred = op.Neg(_in_float(mean)) if bias is None else op.Sub(_in_float(bias), _in_float(mean))
    shift = op.Mul(centred, scale)
    return scale, shift if offset is None else op.Add(shift, _in_float(offset))


# --- maps -------------------------------------------------------------------------------------------------------------


def _corner_pool(input: Value, direction: int) -> Value:
    """A running maximum in steps of 1, 2, 4, ... pixels; of a map of free size over up to `_LARGEST_SIZE` pixels."""
    op = _opset()
    name = DIRECTIONS[direction]
    axis = 2 if name in ("top", "bottom") else 3
    size = input.shape[axis]
    length = size if isinstance(size, int) else _LARGEST_SIZE
    lowest = op.CastLike(-math.inf, input)
    step = 1
    while step < length:
        if name in ("top", "left"):  # from the far end
            padded = op.Pad(input, _ints(0, step), lowest, _ints(axis))
            moved = op.Slice(padded, _ints(step), _ints(_END), _ints(axis))
        else:
            padded = op.Pad(input, _ints(step, 0), lowest, _ints(axis))
            moved = op.Slice(padded, _ints(0), _ints(-step), _ints(axis))
        input = op.Max(input, moved)
        step *= 2
    return input


def _heatmap_peaks(heatmap: Value, k: int, kernel: int) -> tuple[Value, ...]:
    op = _opset()
    wide = _in_float(heatmap)
    nothing = op.CastLike(-math.inf, wide)
    values = op.Where(op.IsNaN(wide), nothing, wide)
    highest, _ = op.MaxPool(values, kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
    values = op.Where(op.Equal(values, highest), values, nothing)
    sizes = op.Shape(heatmap)
    flat = op.Reshape(values, _ints(0, -1))
    flat = op.Pad(flat, _ints(0, k), nothing, _ints(1))  # for fewer than k cells
    scores, index = op.TopK(flat, _ints(k))  # of equal ones the first, as ONNX demands
    width = op.Slice(sizes, _ints(3), _ints(4))
    area = op.Mul(op.Slice(sizes, _ints(2), _ints(3)), width)
    within = op.Mod(index, area)
    used = op.Greater(scores, nothing)
    places = (op.Div(index, area), op.Div(within, width), op.Mod(within, width))
    return op.CastLike(scores, heatmap), *(op.Where(used, place, _ints(-1)) for place in places)


def _mask_paste(masks: Value, boxes: Value, height: Any, width: Any) -> Value:
    """GridSample over the whole image; boxes that hold nothing look far outside of their mask."""
    op = _opset()
    wide = _in_float(masks)
    boxes = op.CastLike(boxes, wide)
    low, high = _columns(boxes, 0, 2), _columns(boxes, 2, 4)
    extent = op.Sub(high, low)
    proper = op.And(op.Greater(extent, op.CastLike(0.0, extent)), op.Not(op.IsInf(extent)))
    proper = op.Equal(op.ReduceMin(op.Cast(proper, to=_INT64), _ints(1)), _ints(1))  # [K, 1]
    far = op.CastLike(1e6, wide)
    axes = []
    for i, size in enumerate((width, height)):
        count = op.Squeeze(op.Reshape(size, _ints(1)), _ints(0))
        centres = op.Range(op.Constant(value_int=0), op.Cast(count, to=_INT64), op.Constant(value_int=1))
        centres = op.Add(op.CastLike(centres, wide), op.CastLike(0.5, wide))
        at = op.Div(op.Sub(centres, _columns(low, i, i + 1)), _columns(extent, i, i + 1))
        at = op.Sub(op.Mul(at, op.CastLike(2.0, wide)), op.CastLike(1.0, wide))
        at = op.Where(op.And(proper, op.Not(op.Or(op.IsNaN(at), op.IsInf(at)))), at, far)
        axes.append(op.Clip(at, op.Neg(far), far))
    x, y = op.Unsqueeze(axes[0], _ints(1)), op.Unsqueeze(axes[1], _ints(2))  # [K, 1, W] and [K, H, 1]
    shape = op.Concat(op.Shape(x, end=1), op.Shape(y, start=1, end=2), op.Shape(x, start=2), axis=0)
    grid = op.Concat(*(op.Unsqueeze(op.Expand(t, shape), _ints(3)) for t in (x, y)), axis=3)
    pasted = op.GridSample(op.Unsqueeze(wide, _ints(1)), grid, align_corners=0, mode="bilinear", padding_mode="zeros")
    return op.CastLike(op.Squeeze(pasted, _ints(1)), masks)


def _mask_paste_binary(masks: Value, boxes: Value, height: Any, width: Any, threshold: float) -> Value:
    op = _opset()
    values = _mask_paste(_in_float(masks), boxes, height, width)
    return op.GreaterOrEqual(values, op.CastLike(threshold, values))


# --- regions of interest ----------------------------------------------------------------------------------------------


def _roi_align(
    input: Value, rois: Value, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Value:
    op = _opset()
    wide, rois = _in_float(input), _in_float(rois)
    # A RoI that is not finite, or of no image, looks far outside, where everything is zero.
    images = op.CastLike(op.Shape(input, end=1), rois)
    index = op.Floor(_columns(rois, 0, 1))
    inside = op.And(op.GreaterOrEqual(index, op.CastLike(0.0, rois)), op.Less(index, images))
    nought = op.CastLike(0.0, rois)
    finite = op.Equal(op.ReduceSum(op.Mul(rois, nought), _ints(1)), nought)  # x * 0 is 0 of numbers only
    valid = op.And(inside, finite)  # [K, 1]
    boxes = op.Where(valid, _columns(rois, 1, 5), op.CastLike(-1e6 / scale, rois))
    index = op.Squeeze(op.Where(valid, index, nought), _ints(1))
    out = op.RoiAlign(
        wide,
        op.CastLike(boxes, wide),
        op.Cast(index, to=_INT64),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=int(height),
        output_width=int(width),
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=scale,
    )
    return op.CastLike(out, input)


def _multiscale_roi_align(
    features: Sequence[Value],
    rois: Value,
    scales: Sequence[float],
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: int,
    canonical_level: int,
) -> Value:
    """roi_align of the RoIs of each level, and their results put in the order of the RoIs."""
    rest = (height, width, sampling_ratio, aligned)
    if len(features) == 1:
        return _roi_align(features[0], rois, scales[0], *rest)
    op = _opset()
    rois = _in_float(rois)
    area = op.Mul(
        op.Sub(_columns(rois, 3, 4), _columns(rois, 1, 2)), op.Sub(_columns(rois, 4, 5), _columns(rois, 2, 3))
    )
    side = op.Squeeze(op.Div(op.Sqrt(area), op.CastLike(float(canonical_scale), rois)), _ints(1))  # [K]
    lowest, highest = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    indices, pooled = [], []
    for i, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        # From 2 ** (level - canonical_level) on, less the epsilon of the definition; the end levels take the rest.
        # Comparisons leave NaN, the side of a negative area, on no level.
        level = lowest + i
        if level > highest:
            continue
        low = 0.0 if level == lowest else 2.0 ** (level - canonical_level - 1e-6)
        here = op.GreaterOrEqual(side, op.CastLike(low, rois))
        if level < highest:
            here = op.And(here, op.Less(side, op.CastLike(2.0 ** (level + 1 - canonical_level - 1e-6), rois)))
        index = op.Squeeze(op.NonZero(here), _ints(0))
        indices.append(index)
        pooled.append(_roi_align(feature, op.Gather(rois, index), scale, *rest))
    shape = op.Concat(op.Shape(rois, end=1), op.Shape(features[0], start=1, end=2), _ints(height, width), axis=0)
    empty = op.Expand(op.CastLike(0.0, features[0]), shape)
    index = op.Unsqueeze(op.Concat(*indices, axis=0), _ints(1))
    return op.ScatterND(empty, index, op.Concat(*pooled, axis=0))


# --- boxes ------------------------------------------------------------------------------------------------------------


def _box_iou(boxes1: Value, boxes2: Value, metric: int, eps: float) -> Value:
    """[..., N, 4] and [..., M, 4] to [..., N, M]; the terms are those of `reference_metric` in ops/box_iou.py."""
    op = _opset()
    a, b = op.Unsqueeze(_in_float(boxes1), _ints(-2)), op.Unsqueeze(_in_float(boxes2), _ints(-3))
    low_a, high_a, low_b, high_b = _corner(a, 0), _corner(a, 2), _corner(b, 0), _corner(b, 2)
    nought = op.CastLike(0.0, a)

    def product(sizes: Value) -> Value:
        return op.Mul(_corner(sizes, 0, 1), _corner(sizes, 1, 1))

    def divide(numerator: Value, denominator: Value) -> Value:
        return op.Div(numerator, op.Where(op.Equal(denominator, nought), op.CastLike(1.0, a), denominator))

    def squared(sizes: Value) -> Value:
        return op.ReduceSum(op.Mul(sizes, sizes), _ints(-1), keepdims=1)

    size_a, size_b = op.Sub(high_a, low_a), op.Sub(high_b, low_b)
    shared = product(op.Max(op.Sub(op.Min(high_a, high_b), op.Max(low_a, low_b)), nought))
    union = op.Sub(op.Add(product(size_a), product(size_b)), shared)
    result = divide(shared, union)
    hull = op.Max(op.Sub(op.Max(high_a, high_b), op.Min(low_a, low_b)), nought)
    if metric == GIOU:
        result = op.Sub(result, divide(op.Sub(product(hull), union), product(hull)))
    elif metric in (DIOU, CIOU):
        two, tiny = op.CastLike(2.0, a), op.CastLike(eps, a)
        offset = op.Sub(op.Div(op.Add(low_a, high_a), two), op.Div(op.Add(low_b, high_b), two))
        iou = result
        result = op.Sub(iou, divide(squared(offset), op.Add(squared(hull), tiny)))
        if metric == CIOU:
            turn = op.Sub(_angle(size_a), _angle(size_b))
            v = op.Mul(op.Mul(turn, turn), op.CastLike(4 / math.pi**2, a))
            alpha = divide(v, op.Add(op.Add(op.Sub(op.CastLike(1.0, a), iou), v), tiny))
            result = op.Sub(result, op.Mul(alpha, v))
    else:
        assert metric == IOU
    return op.Squeeze(result, _ints(-1))


def _angle(sizes: Value) -> Value:
    """atan2(width, height), of which ONNX has the case of a positive height; the others are turned."""
    op = _opset()
    width, height = _corner(sizes, 0, 1), _corner(sizes, 1, 1)
    nought = op.CastLike(0.0, sizes)
    half = op.CastLike(math.pi, sizes)
    still = op.Equal(height, nought)
    angle = op.Atan(op.Div(width, op.Where(still, op.CastLike(1.0, sizes), height)))
    upright = op.Mul(op.Sign(width), op.CastLike(math.pi / 2, sizes))
    behind = op.Where(op.Less(width, nought), op.Neg(half), half)
    angle = op.Add(angle, op.Where(op.Less(height, nought), behind, nought))
    return op.Where(still, upright, angle)


def _nms(boxes: Value, scores: Value, idxs: Value | None, iou_threshold: float) -> Value:
    op = _opset()
    first = _ints(0)
    ids = None if idxs is None else op.Unsqueeze(idxs, first)
    ranks = _surviving(op.Unsqueeze(boxes, first), op.Unsqueeze(scores, first), ids, iou_threshold, _END, None)
    ranks = op.Squeeze(ranks, first)
    count = op.ReduceSum(op.Cast(op.Greater(ranks, op.CastLike(-math.inf, ranks)), to=_INT64), keepdims=1)
    return op.TopK(ranks, count)[1]


def _nms_padded(
    boxes: Value,
    scores: Value,
    idxs: Value | None,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None,
) -> tuple[Value, Value]:
    op = _opset()
    ranks = _surviving(boxes, scores, idxs, iou_threshold, max_output, score_threshold)
    nothing = op.CastLike(-math.inf, ranks)
    best, index = op.TopK(op.Pad(ranks, _ints(0, max_output), nothing, _ints(1)), _ints(max_output))
    used = op.Greater(best, nothing)
    return op.Where(used, index, _ints(-1)), op.ReduceSum(op.Cast(used, to=_INT64), _ints(1), keepdims=0)


def _surviving(
    boxes: Value,
    scores: Value,
    idxs: Value | None,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None,
) -> Value:
    """NonMaxSuppression of [B, N] scores: those of the boxes that it keeps, -inf elsewhere; float32, which is all that
    runtimes have.

    A group is a class of ONNX, numbered as Unique finds them, with NaN, which passes no threshold, for the scores of
    other groups' boxes. Boxes without a positive finite area become points, which overlap nothing."""
    op = _opset()
    boxes, scores = op.Cast(boxes, to=_FLOAT), op.Cast(scores, to=_FLOAT)
    nought, nan = op.CastLike(0.0, boxes), op.CastLike(math.nan, boxes)
    sizes = op.Sub(_corner(boxes, 2), _corner(boxes, 0))
    area = op.Mul(_corner(sizes, 0, 1), _corner(sizes, 1, 1))
    proper = op.Greater(op.ReduceMin(sizes, _ints(2)), nought)
    proper = op.And(proper, op.Not(op.Or(op.IsInf(area), op.IsNaN(area))))
    broken = op.Greater(op.ReduceMax(op.Cast(op.IsNaN(boxes), to=_FLOAT), _ints(2), keepdims=0), nought)
    boxes = op.Where(proper, boxes, nought)
    # A score of -inf would not pass a threshold of -inf, which stands for none.
    scores = op.Where(op.Or(broken, op.IsNaN(scores)), nan, op.Max(scores, op.CastLike(_LOWEST, scores)))
    by_class = op.Unsqueeze(scores, _ints(1))
    if idxs is not None:
        groups = op.Unsqueeze(op.Unique(op.Reshape(idxs, _ints(-1)))[0], _ints(0, 2))  # [1, groups, 1]
        by_class = op.Where(op.Equal(op.Unsqueeze(idxs, _ints(1)), groups), by_class, nan)
    kept = op.NonMaxSuppression(
        boxes,
        by_class,
        _ints(max_output),
        _floats(_round_down(iou_threshold)),
        _floats(-math.inf if score_threshold is None else _round_down(score_threshold)),
    )
    places = op.Gather(kept, _ints(0, 2), axis=1)
    nothing = op.Expand(op.CastLike(-math.inf, scores), op.Shape(scores))
    return op.ScatterND(nothing, places, op.GatherND(scores, places))


def _round_down(threshold: float) -> float:
    """The largest float32 that is not above: a float32 is greater than it where it is greater than `threshold`."""
    nearest = torch.tensor(threshold, dtype=torch.float32)
    if nearest.double().item() > threshold:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return float(nearest)


# --- building ---------------------------------------------------------------------------------------------------------


def _opset() -> Any:
    """Operators of opset 18, imported when they are needed: onnxscript takes a second to load."""
    from onnxscript import opset18

    return opset18


def _ints(*values: int) -> Value:
    return _opset().Constant(value_ints=list(values))


def _floats(*values: float) -> Value:
    return _opset().Constant(value_floats=list(values))


def _columns(rows: Value, start: int, end: int) -> Value:
    """rows[:, start:end]"""
    return _opset().Slice(rows, _ints(start), _ints(end), _ints(1))


def _corner(boxes: Value, start: int, count: int = 2) -> Value:
    """boxes[..., start : start + count]"""
    return _opset().Slice(boxes, _ints(start), _ints(start + count), _ints(-1))


def _in_float(values: Value) -> Value:
    """`values`, in float32 if they are of a half type."""
    if values.dtype is not None and values.dtype.itemsize < 4:
        return _opset().Cast(values, to=_FLOAT)
    return values


_LOWERINGS: dict[str, Callable[..., Any]] = {
    "box_iou": _box_iou,
    "corner_pool": _corner_pool,
    "deform_conv2d": _deform_conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "fold_batch_norm": _fold_batch_norm,
    "frozen_batch_norm": _frozen_batch_norm,
    "heatmap_peaks": _heatmap_peaks,
    "mask_paste": _mask_paste,
    "mask_paste_binary": _mask_paste_binary,
    "multiscale_roi_align": _multiscale_roi_align,
    "nms": _nms,
    "nms_padded": _nms_padded,
    "roi_align": _roi_align,
}
