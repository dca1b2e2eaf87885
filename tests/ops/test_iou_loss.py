"""iou_loss, generalized / distance / complete_box_iou_loss: values, weights, gradients, transforms, errors."""

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

import cvops
from cvops.ops.box_iou import CIOU, DIOU, GIOU, IOU
from cvops.ops.iou_loss import reference_iou_loss
from ops.boxes import AWKWARD_PAIRS, boxes_strategy, random_boxes

METRICS = {
    "iou_loss": IOU,
    "generalized_box_iou_loss": GIOU,
    "distance_box_iou_loss": DIOU,
    "complete_box_iou_loss": CIOU,
}
MODULES = {
    "iou_loss": cvops.ops.IoULoss,
    "generalized_box_iou_loss": cvops.ops.GeneralizedBoxIoULoss,
    "distance_box_iou_loss": cvops.ops.DistanceBoxIoULoss,
    "complete_box_iou_loss": cvops.ops.CompleteBoxIoULoss,
}
DTYPES = list(TOLERANCE)
SHAPES = [(4,), (0, 4), (1, 4), (700, 4), (3, 5, 4)]


@pytest.fixture(params=METRICS, ids=str)
def name(request):
    return request.param


def op(name):
    return getattr(cvops.ops, name)


def pair(*shape, dtype=torch.float32, device="cpu"):
    """Boxes and near neighbours of theirs, so that most pairs overlap."""
    a = random_boxes(*shape, dtype=torch.float64)
    return a.to(device, dtype), (a + torch.rand(*shape, 4, dtype=torch.float64)).to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(name, dtype, shape, device):
    a, b = pair(*shape[:-1], dtype=dtype, device=device)
    out = op(name)(a, b)
    assert out.shape == shape[:-1]
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out, reference_iou_loss(a, b, METRICS[name]), **TOLERANCE[out.dtype])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", [n for n in METRICS if n != "iou_loss"])
@pytest.mark.parametrize("n", [0, 50])
def test_equals_torchvision(name, reduction, n, device, torchvision):
    a, b = pair(n, dtype=torch.float64, device=device)
    peer = getattr(torchvision.ops, name)(a, b, reduction=reduction)
    torch.testing.assert_close(op(name)(a, b, reduction=reduction), peer, **TOLERANCE[torch.float64])


def test_aliases_and_modules(name):
    assert cvops.ops.giou_loss is cvops.ops.generalized_box_iou_loss
    a, b = pair(6)
    weight = torch.rand(6)
    torch.testing.assert_close(MODULES[name]("sum")(a, b, weight), op(name)(a, b, "sum", weight=weight))
    with pytest.raises(ValueError, match="reduction"):
        MODULES[name]("max")


def test_weight_scales_each_box(name, device):
    a, b = pair(9, device=device)
    weight = torch.rand(9, device=device)
    torch.testing.assert_close(op(name)(a, b, weight=weight), op(name)(a, b) * weight)
    torch.testing.assert_close(op(name)(a, b, "mean", weight=weight), (op(name)(a, b) * weight).mean())


def test_non_contiguous_and_expanded(name, device):
    a, b = pair(8, device=device)
    expected = op(name)(a[::2], b[:1].expand(4, 4).contiguous())
    torch.testing.assert_close(op(name)(a[::2], b[:1].expand(4, 4)), expected, rtol=0, atol=0)


def test_integer_boxes(name):
    a = torch.tensor([[0, 0, 4, 4]], dtype=torch.int32)
    assert op(name)(a, a).item() == pytest.approx(0, abs=1e-6)


# CIoU's gradient treats alpha as a constant, as the paper does, so finite differences do not apply to it.
@pytest.mark.parametrize("name", ["iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(name, reduction, device):
    a, b = (t.requires_grad_() for t in pair(5, dtype=torch.float64, device=device))
    assert torch.autograd.gradcheck(lambda x, y: op(name)(x, y, reduction), (a, b))
    assert torch.autograd.gradgradcheck(lambda x, y: op(name)(x, y, reduction), (a, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_matches_reference(name, dtype, device):
    a, b = (t.requires_grad_() for t in pair(301, dtype=dtype, device=device))
    weight = torch.rand(301, device=device)
    ours = torch.autograd.grad(op(name)(a, b, "sum", weight=weight), (a, b))
    theirs = torch.autograd.grad((reference_iou_loss(a, b, METRICS[name]) * weight).sum(), (a, b))
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x, y, rtol=TOLERANCE[dtype]["rtol"] * 10, atol=TOLERANCE[dtype]["atol"] * 10)


@pytest.mark.parametrize("case", AWKWARD_PAIRS, ids=str)
@pytest.mark.parametrize("eps", [1e-7, 0.0])
def test_awkward_pairs_are_finite(name, case, eps, device):
    a, b = (torch.tensor([box], device=device, requires_grad=True) for box in AWKWARD_PAIRS[case])
    loss = op(name)(a, b, "sum", eps=eps)
    assert loss.isfinite()
    for grad in torch.autograd.grad(loss, (a, b)):
        assert grad.isfinite().all()


def test_descent_separates_nothing_and_joins_disjoint_boxes():
    """GIoU has a gradient where boxes do not overlap: twenty steps bring them closer, IoU alone does not."""
    target = torch.tensor([[6.0, 6, 8, 8]])
    for name, moves in (("generalized_box_iou_loss", True), ("iou_loss", False)):
        box = torch.tensor([[0.0, 0, 2, 2]], requires_grad=True)
        for _ in range(20):
            (grad,) = torch.autograd.grad(op(name)(box, target, "sum"), box)
            box = (box - 5 * grad).detach().requires_grad_()
        assert (box[0, 2] > 2.5).item() is moves


@pytest.mark.parametrize("n", [0, 7])
def test_opcheck(name, n, device):
    a, b = (t.requires_grad_() for t in pair(n, dtype=torch.float64, device=device))
    torch.library.opcheck(torch.ops.cvops.iou_loss.default, (a, b, METRICS[name], 1e-7))
    grad = torch.rand(n, dtype=torch.float64, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.cvops.iou_loss_backward.default, (grad, a, b, METRICS[name], 1e-7))


def test_compile_fullgraph(name, device):
    def loss(a, b):
        return op(name)(a, b, "mean")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        a, b = pair(n, device=device)
        a.requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(compiled(a, b), a), torch.autograd.grad(loss(a, b), a))


def test_vmap_and_func_grad(name):
    a, b = pair(3, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(op(name))(a, b), op(name)(a, b))
    per_sample = torch.func.vmap(torch.func.grad(lambda x, y: op(name)(x, y, "sum")))(a, b)
    leaf = a.clone().requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(op(name)(leaf, b, "sum"), leaf)[0])


def test_autocast_accepts_mixed_precision(name, device):
    a, b = pair(6, device=device)
    with torch.autocast(device, torch.bfloat16):
        mixed = op(name)(a.bfloat16(), b)
    torch.testing.assert_close(mixed, op(name)(a.bfloat16().float(), b), rtol=0, atol=0)


def test_threads_do_not_change_bits(name):
    a, b = (t.requires_grad_() for t in pair(40_000))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        out = op(name)(a, b)
        results.append([out, *torch.autograd.grad(out.sum(), (a, b))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("a", "b", "kwargs", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 5), {}, r"must be \[\.\.\., 4\] and of one shape, got \[3, 5\]"),
        (torch.zeros(3, 4), torch.zeros(2, 4), {}, r"one shape, got \[3, 4\] and \[2, 4\]"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"reduction": "max"}, "reduction must be 'none', 'mean' or 'sum'"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"weight": torch.ones(2)}, r"weight must be \[3\], one per box"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"eps": -1.0}, "eps must be >= 0, got -1"),
        (torch.zeros(3, 4), torch.zeros(3, 4).double(), {}, "one dtype, got Float and Double"),
    ],
)
def test_bad_input(name, a, b, kwargs, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        op(name)(a, b, **kwargs)


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), n=st.integers(0, 300), metric=st.sampled_from(list(METRICS)))
def test_any_boxes(data, n, metric):
    dtype = data.draw(st.sampled_from(DTYPES))
    a, b = data.draw(boxes_strategy(n, dtype)).requires_grad_(), data.draw(boxes_strategy(n, dtype)).requires_grad_()
    out = op(metric)(a, b)
    torch.testing.assert_close(out, reference_iou_loss(a, b, METRICS[metric]), rtol=1e-4, atol=1e-5)
    for grad in torch.autograd.grad(out.sum(), (a, b)):
        assert grad.isfinite().all()
