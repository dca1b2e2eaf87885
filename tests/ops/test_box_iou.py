"""box_iou, generalized / distance / complete_box_iou, box_area, box_convert: values, gradients, transforms, errors."""

import itertools

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

import cvops
from cvops.ops.box_iou import CIOU, DIOU, GIOU, IOU, reference_box_iou
from ops.boxes import AWKWARD_PAIRS, boxes_strategy, random_boxes

METRICS = {
    "box_iou": IOU,
    "generalized_box_iou": GIOU,
    "distance_box_iou": DIOU,
    "complete_box_iou": CIOU,
}
DTYPES = list(TOLERANCE)
SHAPES = [
    ((5, 4), (3, 4)),
    ((1, 4), (70, 4)),
    ((2, 33, 4), (2, 17, 4)),
    ((0, 4), (3, 4)),
    ((3, 4), (0, 4)),
    ((0, 2, 4), (0, 3, 4)),
]


@pytest.fixture(params=METRICS, ids=str)
def name(request):
    return request.param


def op(name):
    return getattr(cvops.ops, name)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(name, dtype, shapes, device):
    a, b = (random_boxes(*s[:-1], dtype=dtype, device=device) for s in shapes)
    out = op(name)(a, b)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert out.shape == (*shapes[0][:-2], shapes[0][-2], shapes[1][-2])
    tolerance = TOLERANCE[out.dtype]
    torch.testing.assert_close(out, reference_box_iou(a, b, METRICS[name]), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(name, dtype, device, torchvision):
    a, b = random_boxes(50, dtype=dtype, device=device), random_boxes(40, dtype=dtype, device=device)
    peer = getattr(torchvision.ops, name)(a, b)
    if name == "complete_box_iou":  # atan(w / h) there, atan2(w, h) here: another rounding
        torch.testing.assert_close(op(name)(a, b), peer, **TOLERANCE[dtype])
    else:
        torch.testing.assert_close(op(name)(a, b), peer, rtol=1e-6, atol=1e-7)


def test_broadcasts_leading_dimensions(name):
    a, b = random_boxes(2, 1, 5), random_boxes(3, 6)
    out = op(name)(a, b)
    assert out.shape == (2, 3, 5, 6)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(out[i, j], op(name)(a[i, 0], b[j]), rtol=0, atol=0)


def test_formats():
    a, b = random_boxes(6), random_boxes(7)
    for fmt in ("xywh", "cxcywh"):
        out = cvops.ops.box_iou(cvops.ops.box_convert(a, "xyxy", fmt), cvops.ops.box_convert(b, "xyxy", fmt), fmt=fmt)
        torch.testing.assert_close(out, cvops.ops.box_iou(a, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_integer_boxes_give_float_results(name, dtype):
    a, b = (random_boxes(9, extent=20, size=30).abs().to(dtype) for _ in range(2))
    out = op(name)(a, b)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference_box_iou(a.float(), b.float(), METRICS[name]), **TOLERANCE[torch.float32])


def test_integer_areas_do_not_overflow():
    boxes = torch.tensor([[0, 0, 60_000, 60_000]], dtype=torch.int32)
    assert cvops.ops.box_area(boxes).item() == 3.6e9
    assert cvops.ops.box_iou(boxes, boxes).item() == 1.0


def test_half_areas_do_not_overflow():
    boxes = torch.tensor([[0, 0, 1000, 1000]], dtype=torch.float16)
    assert cvops.ops.box_area(boxes).item() == 1e6


def test_zero_over_zero_is_zero(device):
    point = torch.tensor([[3.0, 3, 3, 3]], device=device)
    assert cvops.ops.box_iou(point, point).item() == 0
    assert cvops.ops.generalized_box_iou(point, point).item() == 0


def test_nan_stays_visible(name, device):
    a, b = random_boxes(3, device=device), random_boxes(4, device=device)
    a[1, 2] = float("nan")
    out = op(name)(a, b)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


def test_non_contiguous(name, device):
    a, b = random_boxes(8, device=device), random_boxes(10, device=device)
    expected = op(name)(a, b[::2])
    strided = torch.empty(4, 16, device=device).t()[::2][:8]
    strided.copy_(a)
    assert not strided.is_contiguous()
    torch.testing.assert_close(op(name)(strided, b.clone()[::2]), expected, rtol=0, atol=0)


# CIoU's gradient treats alpha as a constant, as the paper does, so finite differences do not apply to it.
@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou"])
def test_gradcheck(name, device):
    a = random_boxes(2, 4, dtype=torch.float64, device=device).requires_grad_()
    b = random_boxes(2, 3, dtype=torch.float64, device=device).requires_grad_()
    assert torch.autograd.gradcheck(op(name), (a, b))
    assert torch.autograd.gradgradcheck(op(name), (a, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_matches_reference(name, dtype, device):
    a = random_boxes(37, dtype=dtype, device=device).requires_grad_()
    b = random_boxes(21, dtype=dtype, device=device).requires_grad_()
    out = op(name)(a, b)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, (a, b), grad)
    theirs = torch.autograd.grad(reference_box_iou(a, b, METRICS[name]), (a, b), grad)
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x, y, rtol=TOLERANCE[dtype]["rtol"] * 10, atol=TOLERANCE[dtype]["atol"] * 10)


@pytest.mark.parametrize("pair", AWKWARD_PAIRS, ids=str)
def test_awkward_pairs_are_finite(name, pair, device):
    a, b = (torch.tensor([box], device=device, requires_grad=True) for box in AWKWARD_PAIRS[pair])
    out = op(name)(a, b)
    assert out.isfinite().all()
    for grad in torch.autograd.grad(out.sum(), (a, b)):
        assert grad.isfinite().all()


def test_second_derivative_of_complete_box_iou_matches_reference(device):
    a = random_boxes(4, dtype=torch.float64, device=device).requires_grad_()
    b = random_boxes(3, dtype=torch.float64, device=device)

    def second(f):
        (grad,) = torch.autograd.grad(f(a, b).sum(), a, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), a)[0]

    torch.testing.assert_close(
        second(cvops.ops.complete_box_iou), second(lambda x, y: reference_box_iou(x, y, CIOU)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("shapes", [SHAPES[0], SHAPES[-1]], ids=str)
def test_opcheck(name, shapes, device):
    a, b = (random_boxes(*s[:-1], dtype=torch.float64, device=device).requires_grad_() for s in shapes)
    torch.library.opcheck(torch.ops.cvops.box_iou.default, (a, b, METRICS[name], 1e-7))
    grad = torch.rand(op(name)(a, b).shape, dtype=torch.float64, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.cvops.box_iou_backward.default, (grad, a, b, METRICS[name], 1e-7))


def test_compile_fullgraph(device):
    def loss(a, b):
        return cvops.ops.generalized_box_iou(a, b).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        a, b = random_boxes(n, device=device).requires_grad_(), random_boxes(7, device=device)
        torch.testing.assert_close(
            torch.autograd.grad(compiled(a, b), a), torch.autograd.grad(loss(a, b), a), **TOLERANCE[torch.float32]
        )


def test_vmap_and_func_grad(name):
    a, b = random_boxes(3, 5, dtype=torch.float64), random_boxes(4, dtype=torch.float64)
    out = torch.func.vmap(op(name), in_dims=(0, None))(a, b)
    torch.testing.assert_close(out, torch.stack([op(name)(x, b) for x in a]))

    def total(x):
        return op(name)(x, b).sum()

    per_sample = torch.func.vmap(torch.func.grad(total))(a)
    leaf = a.clone().requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(sum(total(x) for x in leaf), leaf)[0])


def test_autocast_computes_in_float32(device):
    a, b = random_boxes(5, device=device), random_boxes(4, device=device)
    with torch.autocast(device, torch.bfloat16):
        mixed = cvops.ops.box_iou(a.bfloat16(), b)
    torch.testing.assert_close(mixed, cvops.ops.box_iou(a.bfloat16().float(), b), rtol=0, atol=0)


def test_threads_do_not_change_bits(name):
    a, b = random_boxes(700).requires_grad_(), random_boxes(300).requires_grad_()
    grad = torch.randn(700, 300)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        out = op(name)(a, b)
        results.append([out, *torch.autograd.grad(out, (a, b), grad)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), r"boxes1 must be \[\.\.\., 4\], got \[3, 5\]"),
        (torch.zeros(4), torch.zeros(3, 4), r"\[\.\.\., N, 4\], got \[4\]"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 3, 4), "do not broadcast"),
        (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.float64), "one dtype, got Float and Double"),
        (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.complex64), "boxes2"),
        (torch.zeros(3, 4), torch.zeros(3), "boxes2"),
    ],
)
def test_bad_input(name, a, b, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        op(name)(a, b)


def test_bad_format_and_metric():
    a = random_boxes(2)
    with pytest.raises(ValueError, match="fmt must be 'xyxy', 'xywh' or 'cxcywh', got 'yxyx'"):
        cvops.ops.box_iou(a, a, fmt="yxyx")
    with pytest.raises(ValueError, match="out_fmt must be"):
        cvops.ops.box_convert(a, "xyxy", "xyxyxyxy")
    with pytest.raises(RuntimeError, match="metric must be 0 to 3, got 7"):
        torch.ops.cvops.box_iou(a, a, 7, 0.0)
    with pytest.raises(RuntimeError, match="eps must be >= 0"):
        cvops.ops.distance_box_iou(a, a, eps=-1.0)


@pytest.mark.parametrize("fmts", list(itertools.product(("xyxy", "xywh", "cxcywh"), repeat=2)), ids=str)
def test_box_convert_and_area_equal_torchvision(fmts, torchvision):
    boxes = random_boxes(3, 8)
    peer = torchvision.ops.box_convert(torchvision.ops.box_convert(boxes, "xyxy", fmts[0]), *fmts)
    ours = cvops.ops.box_convert(cvops.ops.box_convert(boxes, "xyxy", fmts[0]), *fmts)
    torch.testing.assert_close(ours, peer, rtol=0, atol=0)
    torch.testing.assert_close(cvops.ops.box_area(ours, fmts[1]), torchvision.ops.box_area(peer, fmts[1]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), n=st.integers(0, 40), m=st.integers(0, 40), metric=st.sampled_from(list(METRICS)))
def test_any_boxes(data, n, m, metric):
    dtype = data.draw(st.sampled_from(DTYPES))
    a, b = data.draw(boxes_strategy(n, dtype)).requires_grad_(), data.draw(boxes_strategy(m, dtype)).requires_grad_()
    out = op(metric)(a, b)
    torch.testing.assert_close(out, reference_box_iou(a, b, METRICS[metric]), rtol=1e-4, atol=1e-5)
    for grad in torch.autograd.grad(out.sum(), (a, b)):
        assert grad.isfinite().all()
