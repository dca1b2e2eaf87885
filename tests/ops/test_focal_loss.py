"""sigmoid, softmax and gaussian focal losses: values, kinds of targets, extremes, gradients, transforms, memory."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import (
    GaussianFocalLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    gaussian_focal_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from cvops.ops.focal_loss import (
    reference_gaussian_focal_loss,
    reference_sigmoid_focal_loss,
    reference_softmax_focal_loss,
)

DTYPES = list(TOLERANCE)
GAMMAS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
EXTREMES = [-1e30, -1e4, -200.0, -100.0, -88.0, -87.0, -30.0, 0.0, 30.0, 87.0, 88.0, 100.0, 200.0, 1e4, 1e30]
INF, NAN = float("inf"), float("nan")
REFERENCES = {
    sigmoid_focal_loss: reference_sigmoid_focal_loss,
    gaussian_focal_loss: reference_gaussian_focal_loss,
    softmax_focal_loss: reference_softmax_focal_loss,
}


def close(a, b, dtype=None, scale=1):
    tolerance = TOLERANCE[dtype or a.dtype]
    torch.testing.assert_close(a, b, rtol=tolerance["rtol"] * scale, atol=tolerance["atol"] * scale)


def hard(*shape, dtype=torch.float32, device="cpu"):
    x = (torch.randn(shape, dtype=torch.float64) * 4).to(device, dtype)
    return x, (torch.rand(shape) < 0.2).to(device, dtype)


def pairs(labels, index):
    """(function, targets): every loss with what it takes."""
    return [
        (sigmoid_focal_loss, labels),
        (sigmoid_focal_loss, index),
        (gaussian_focal_loss, labels),
        (softmax_focal_loss, index),
    ]


def gradient(function, inputs, *args, **kwargs):
    leaf = inputs.detach().requires_grad_()
    return torch.autograd.grad(function(leaf, *args, **kwargs).sum(), leaf)[0]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (5,), (37, 91)], ids=str)
def test_sigmoid_matches_reference(gamma, dtype, shape, device):
    x, t = hard(*shape, dtype=dtype, device=device)
    for labels in (t, torch.rand(shape, device=device).to(dtype)):
        out = sigmoid_focal_loss(x, labels, gamma=gamma)
        assert out.dtype == dtype
        assert out.shape == shape
        close(out, reference_sigmoid_focal_loss(x, labels, gamma=gamma))
        ours = gradient(sigmoid_focal_loss, x, labels, gamma=gamma)
        assert ours.dtype == dtype
        close(ours, gradient(reference_sigmoid_focal_loss, x, labels, gamma=gamma), scale=4)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, 1.0, -1])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sigmoid_equals_torchvision(gamma, alpha, reduction, device, torchvision):
    x, t = hard(33, 7, dtype=torch.float64, device=device)
    peer = torchvision.ops.sigmoid_focal_loss
    for labels in (t, torch.rand_like(t)):
        close(sigmoid_focal_loss(x, labels, alpha, gamma, reduction), peer(x, labels, alpha, gamma, reduction))
        close(
            gradient(sigmoid_focal_loss, x, labels, alpha, gamma, reduction),
            gradient(peer, x, labels, alpha, gamma, reduction),
        )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0, 0.5])
def test_soft_labels_beyond_zero_and_one_follow_torchvision(gamma, device, torchvision):
    x = torch.randn(400, dtype=torch.float64, device=device)
    t = torch.randn(400, dtype=torch.float64, device=device) * 2
    peer = torchvision.ops.sigmoid_focal_loss
    close(*(torch.nan_to_num(f(x, t, gamma=gamma), nan=-7.0) for f in (sigmoid_focal_loss, peer)))
    close(*(torch.nan_to_num(gradient(f, x, t, gamma=gamma), nan=-7.0) for f in (sigmoid_focal_loss, peer)))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturated_logits_have_finite_gradients_where_torchvision_has_nan(gamma, dtype, device):
    x = torch.tensor(EXTREMES, dtype=torch.float64, device=device).clamp(-3e4, 3e4).to(dtype)
    for label in (0.0, 1.0, 0.3):
        t = torch.full_like(x, label)
        assert sigmoid_focal_loss(x, t, gamma=gamma).isfinite().all()
        slope = gradient(sigmoid_focal_loss, x, t, gamma=gamma)
        assert slope.isfinite().all()
        close(slope, gradient(reference_sigmoid_focal_loss, x, t, gamma=gamma), scale=4)
        if label != 0.3:
            assert gradient(gaussian_focal_loss, x, t, alpha=gamma).isfinite().all()
    rows = torch.stack([x, x.flip(0), torch.zeros_like(x)], 1)
    for target in range(3):
        t = torch.full((len(x),), target, device=device)
        assert softmax_focal_loss(rows, t, gamma=gamma).isfinite().all()
        assert gradient(softmax_focal_loss, rows, t, gamma=gamma).isfinite().all()


def test_torchvision_still_has_nan_there(torchvision):
    x = torch.tensor([-100.0, 100.0])
    slope = gradient(torchvision.ops.sigmoid_focal_loss, x, torch.tensor([0.0, 1.0]), gamma=0.5)
    assert slope.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_does_not_make_nan_of_log_zero(dtype, device):
    """P#40497: log of a probability that float16 rounded to 0."""
    x = torch.tensor([[-60.0, 60.0], [15.0, -15.0]], device=device).to(dtype)
    for t in (torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device).to(dtype), torch.tensor([0, 1], device=device)):
        with torch.autocast(device, torch.bfloat16):
            loss = sigmoid_focal_loss(x, t, reduction="sum")
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        assert gradient(sigmoid_focal_loss, x, t).isfinite().all()


def test_infinite_logits_have_their_limits(device):
    x = torch.tensor([-INF, INF, -INF, INF, NAN], device=device)
    t = torch.tensor([0.0, 1, 1, 0, 0], device=device)
    for gamma in GAMMAS:
        loss = sigmoid_focal_loss(x, t, -1, gamma)
        assert loss[:2].tolist() == [0, 0]
        assert loss[2:4].tolist() == [INF, INF]
        assert loss[4].isnan()
        slope = gradient(sigmoid_focal_loss, x, t, -1, gamma)
        assert slope[:4].tolist() == [0, 0, -1, 1]
        assert slope[4].isnan()
        assert gaussian_focal_loss(x, t, gamma)[:4].tolist() == [0, 0, INF, INF]
        rows = torch.tensor([[-INF, 0.0], [0.0, -INF]], device=device)
        targets = torch.tensor([0, 0], device=device)
        assert softmax_focal_loss(rows, targets, gamma=gamma).tolist() == [INF, 0]
        assert gradient(softmax_focal_loss, rows, targets, gamma=gamma).tolist() == [[-1, 1], [0, 0]]


# Kinds of targets


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 80, 1500])
def test_class_indices_equal_one_hot(dtype, classes, device):
    n = 40 if classes < 1000 else 3
    x, _ = hard(n, classes, dtype=dtype, device=device)
    index = torch.randint(-1, classes + 1, (n,), device=device)
    one_hot = (index.unsqueeze(1) == torch.arange(classes, device=device)).to(dtype)
    assert torch.equal(sigmoid_focal_loss(x, index), sigmoid_focal_loss(x, one_hot))
    assert torch.equal(gradient(sigmoid_focal_loss, x, index), gradient(sigmoid_focal_loss, x, one_hot))
    assert torch.equal(sigmoid_focal_loss(x, index, reduction="sum"), sigmoid_focal_loss(x, one_hot, reduction="sum"))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64], ids=str)
def test_integer_and_bool_labels(dtype, device):
    x, t = hard(9, 5, device=device)
    assert torch.equal(sigmoid_focal_loss(x, t.to(dtype)), sigmoid_focal_loss(x, t))
    assert torch.equal(gradient(sigmoid_focal_loss, x, t.to(dtype)), gradient(sigmoid_focal_loss, x, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_with_float32_labels(dtype, device):
    x, t = hard(9, 130, dtype=dtype, device=device)
    soft = torch.rand(9, 130, device=device)
    out = sigmoid_focal_loss(x, soft)
    assert out.dtype == dtype
    close(out, sigmoid_focal_loss(x.float(), soft).to(dtype))
    close(gaussian_focal_loss(x, soft), gaussian_focal_loss(x.float(), soft).to(dtype))
    assert sigmoid_focal_loss(x.float(), t).dtype == torch.float32


def test_float16_sum_does_not_overflow(device):
    x = torch.full((4000,), 100.0, dtype=torch.float16, device=device)
    total = sigmoid_focal_loss(x, torch.zeros_like(x), -1, reduction="sum")
    assert total.item() == pytest.approx(4e5)
    assert sigmoid_focal_loss(x, torch.zeros_like(x), -1, reduction="mean").item() == pytest.approx(100)


def test_ignore_index_rows_cost_nothing_even_with_nan_logits(device):
    x, _ = hard(12, 7, device=device)
    index = torch.randint(0, 7, (12,), device=device)
    index[::3] = 255
    kept = index != 255
    poisoned = torch.where(kept.unsqueeze(1), x, NAN)
    for reduction, peer in (("sum", lambda loss: loss.sum()), ("mean", lambda loss: loss.mean())):
        out = sigmoid_focal_loss(poisoned, index, reduction=reduction, ignore_index=255)
        close(out, peer(sigmoid_focal_loss(x[kept], index[kept])))
    slope = gradient(sigmoid_focal_loss, poisoned, index, ignore_index=255)
    assert slope[~kept].abs().max() == 0
    assert torch.equal(slope[kept], gradient(sigmoid_focal_loss, x[kept], index[kept]))
    assert torch.equal(
        gradient(softmax_focal_loss, poisoned, index, ignore_index=255)[kept],
        gradient(softmax_focal_loss, x[kept], index[kept]),
    )
    assert softmax_focal_loss(poisoned, index, ignore_index=255)[~kept].abs().max() == 0
    labels = torch.tensor([[0, 1, 255], [255, 0, 1]], device=device)
    out = sigmoid_focal_loss(x[:2, :3], labels, ignore_index=255)
    assert torch.equal(out, torch.where(labels == 255, 0, sigmoid_focal_loss(x[:2, :3], labels == 1)))


def test_nothing_kept_has_mean_zero(device):
    x = torch.randn(3, 4, device=device)
    assert sigmoid_focal_loss(x, torch.full((3,), 9, device=device), reduction="mean", ignore_index=9) == 0
    assert softmax_focal_loss(x, torch.full((3,), -100, device=device), reduction="mean") == 0
    for out in (
        sigmoid_focal_loss(x[:0], x[:0], reduction="mean"),
        gaussian_focal_loss(x[:0], x[:0], reduction="mean"),
        softmax_focal_loss(x[:0], torch.zeros(0, dtype=torch.int64, device=device), reduction="mean"),
    ):
        assert out == 0


@pytest.mark.parametrize("kind", ["labels", "indices"])
def test_tensor_alpha_per_class(kind, device):
    x, t = hard(50, 11, device=device)
    targets = t if kind == "labels" else torch.randint(0, 11, (50,), device=device)
    alpha = torch.rand(11, device=device)
    alpha[4] = -1
    per_class = torch.stack(
        [
            sigmoid_focal_loss(x[:, c], t[:, c] if kind == "labels" else (targets == c), alpha[c].item())
            for c in range(11)
        ],
        1,
    )
    close(sigmoid_focal_loss(x, targets, alpha), per_class)
    close(gradient(sigmoid_focal_loss, x, targets, alpha), gradient(reference_sigmoid_focal_loss, x, targets, alpha))


@pytest.mark.parametrize("shape", [(20, 6), (20,)], ids=str)
def test_weight_per_element_or_row(shape, device):
    x, t = hard(20, 6, dtype=torch.float64, device=device)
    weight = torch.rand(shape, dtype=torch.float64, device=device)
    factor = weight if weight.ndim == 2 else weight.unsqueeze(1)
    plain = sigmoid_focal_loss(x, t)
    close(sigmoid_focal_loss(x, t, weight=weight), plain * factor)
    close(sigmoid_focal_loss(x, t, weight=weight, reduction="mean"), (plain * factor).mean())
    close(gradient(sigmoid_focal_loss, x, t, weight=weight), gradient(sigmoid_focal_loss, x, t) * factor)
    leaf = weight.clone().requires_grad_()
    total = sigmoid_focal_loss(x, t, weight=leaf, reduction="sum")
    (slope,) = torch.autograd.grad(total, leaf)
    close(slope, plain if weight.ndim == 2 else plain.sum(1))


# Softmax and heatmaps


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (5, 1), (70, 4), (9, 91), (3, 9001), (2, 5, 3, 23), (3, 2, 1)], ids=str)
def test_softmax_matches_reference(gamma, dtype, shape, device):
    x = (torch.randn(shape, dtype=torch.float64) * 4).to(device, dtype)
    t = torch.randint(0, shape[1], shape[:1] + shape[2:], device=device)
    t[..., ::5] = -100
    alpha = torch.rand(shape[1], device=device)
    out = softmax_focal_loss(x, t, alpha, gamma)
    assert out.dtype == dtype
    close(out, reference_softmax_focal_loss(x, t, alpha, gamma))
    close(
        gradient(softmax_focal_loss, x, t, alpha, gamma),
        gradient(reference_softmax_focal_loss, x, t, alpha, gamma),
        scale=4,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(30, 7), (2, 7, 3, 5)], ids=str)
def test_softmax_equals_cross_entropy_at_gamma_zero(reduction, shape, device):
    x = torch.randn(shape, dtype=torch.float64, device=device) * 3
    t = torch.randint(0, 7, shape[:1] + shape[2:], device=device)
    t[0] = -100
    close(softmax_focal_loss(x, t, gamma=0, reduction=reduction), F.cross_entropy(x, t, reduction=reduction))
    close(
        gradient(softmax_focal_loss, x, t, gamma=0, reduction=reduction),
        gradient(F.cross_entropy, x, t, reduction=reduction),
    )


def test_softmax_is_precise_for_confident_predictions(device):
    """1 - p computed from p = 1 - 1e-9 in float32 would be 0."""
    x = torch.tensor([[0.0, -20.0], [-20.0, 0.0]], device=device)
    t = torch.tensor([0, 1], device=device)
    close(
        softmax_focal_loss(x, t, gamma=1).double() * 1e17,
        softmax_focal_loss(x.double(), t, gamma=1) * 1e17,
        torch.float32,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5, 4.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_matches_reference_and_mmdetection(alpha, gamma, dtype, device):
    x = (torch.randn(3, 50, dtype=torch.float64) * 3).to(device, dtype)
    t = torch.rand(3, 50, device=device).to(dtype)
    t[:, ::7] = 1
    close(gaussian_focal_loss(x, t, alpha, gamma), reference_gaussian_focal_loss(x, t, alpha, gamma))
    close(
        gradient(gaussian_focal_loss, x, t, alpha, gamma),
        gradient(reference_gaussian_focal_loss, x, t, alpha, gamma),
        scale=4,
    )
    if dtype == torch.float64:
        p, eps = x.sigmoid(), 1e-12
        peak = -(p + eps).log() * (1 - p).pow(alpha) * t.eq(1)
        rest = -(1 - p + eps).log() * p.pow(alpha) * (1 - t).pow(gamma) * t.ne(1)
        torch.testing.assert_close(gaussian_focal_loss(x, t, alpha, gamma), peak + rest, rtol=1e-8, atol=1e-10)


def test_modules(device):
    x, t = hard(6, 4, device=device)
    index = torch.randint(0, 4, (6,), device=device)
    alpha = torch.rand(4, device=device)
    module = SigmoidFocalLoss(alpha, 1.5, "sum", ignore_index=2)
    assert "alpha" in dict(module.named_buffers())
    assert torch.equal(module(x, index), sigmoid_focal_loss(x, index, alpha, 1.5, "sum", ignore_index=2))
    assert torch.equal(SigmoidFocalLoss()(x, t), sigmoid_focal_loss(x, t, reduction="mean"))
    assert torch.equal(SoftmaxFocalLoss(0.5)(x, index), softmax_focal_loss(x, index, 0.5, reduction="mean"))
    assert torch.equal(GaussianFocalLoss()(x, t), gaussian_focal_loss(x, t, reduction="mean"))
    assert "gamma=2.0" in repr(SoftmaxFocalLoss())
    with pytest.raises(ValueError, match="reduction"):
        GaussianFocalLoss(reduction="max")


def test_non_contiguous_and_channels_last(device):
    x, t = hard(2, 6, 4, 5, device=device)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(sigmoid_focal_loss(last, t), sigmoid_focal_loss(x, t))
    assert torch.equal(gaussian_focal_loss(last, t), gaussian_focal_loss(x, t))
    assert torch.equal(sigmoid_focal_loss(x[..., ::2], t[..., ::2]), sigmoid_focal_loss(x, t)[..., ::2])
    index = torch.randint(0, 6, (2, 4, 5), device=device)
    assert torch.equal(softmax_focal_loss(last, index), softmax_focal_loss(x, index))
    weight = torch.rand(2, 6, 4, device=device)
    assert torch.equal(
        gradient(lambda y: sigmoid_focal_loss(y, t) * weight.unsqueeze(-1), last),
        gradient(lambda y: sigmoid_focal_loss(y, t) * weight.unsqueeze(-1), x),
    )


# Gradients and transforms


def losses(device, dtype=torch.float64):
    """name -> (loss of the logits, logits), one of each kind."""
    x, t = hard(5, 4, dtype=dtype, device=device)
    index = torch.tensor([0, 3, 4, -1, 2], device=device)
    heat = torch.rand(5, 4, dtype=dtype, device=device)
    heat[0] = 1
    alpha = torch.rand(4, dtype=dtype, device=device)
    weight = torch.rand(5, dtype=dtype, device=device)
    return {
        "labels": (lambda y, **k: sigmoid_focal_loss(y, t, **k), x),
        "indices": (lambda y, **k: sigmoid_focal_loss(y, index, alpha, ignore_index=2, weight=weight, **k), x),
        "gaussian": (lambda y, **k: gaussian_focal_loss(y, heat, **k), x),
        "softmax": (lambda y, **k: softmax_focal_loss(y, index.clamp(0, 3), alpha, **k), x),
    }


@pytest.mark.parametrize("kind", ["labels", "indices", "gaussian", "softmax"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(kind, reduction, device):
    loss, x = losses(device)[kind]
    for gamma in (0.5, 2.0):
        leaf = x.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda y, g=gamma: loss(y, gamma=g, reduction=reduction), leaf)
        assert torch.autograd.gradgradcheck(lambda y, g=gamma: loss(y, gamma=g, reduction=reduction), leaf)


def test_gradient_of_soft_targets(device):
    x = torch.randn(4, 3, dtype=torch.float64, device=device, requires_grad=True)
    t = (torch.rand(4, 3, dtype=torch.float64, device=device) * 0.8 + 0.1).requires_grad_()
    for function in (sigmoid_focal_loss, gaussian_focal_loss):
        for gamma in (1.5, 2.0):
            assert torch.autograd.gradcheck(lambda a, b, f=function, g=gamma: f(a, b, 0.4, g), (x, t))
    assert torch.autograd.gradgradcheck(lambda a, b: sigmoid_focal_loss(a, b, 0.4, 1.5), (x, t))


def test_second_derivatives_of_saturated_logits_are_finite(device):
    x = torch.tensor(EXTREMES, device=device, requires_grad=True)
    for label in (0.0, 1.0):
        (slope,) = torch.autograd.grad(
            sigmoid_focal_loss(x, torch.full_like(x, label), gamma=0.5).sum(), x, create_graph=True
        )
        assert torch.autograd.grad(slope.sum(), x)[0].isfinite().all()


def test_opcheck(device):
    """Forward with one kind of reduction, backward with the other: every call of opcheck takes a second."""
    x, t = hard(3, 4, device=device)
    x.requires_grad_()
    index = torch.randint(0, 4, (3,), device=device)
    weight, alpha = torch.rand(3, 4, device=device), torch.rand(4, device=device)
    ops = torch.ops.cvops
    scalar, each = torch.ones((), device=device), torch.rand(3, 4, device=device)
    labels, indices = (x, t, None, None, 0.25, 2.0, None), (x, index, weight, alpha, 0.0, 1.5, 1)
    torch.library.opcheck(ops.sigmoid_focal_loss.default, (*labels, True))
    torch.library.opcheck(ops.sigmoid_focal_loss.default, (*indices, False))
    torch.library.opcheck(ops.sigmoid_focal_loss_backward.default, (each.requires_grad_(), *labels))
    torch.library.opcheck(ops.sigmoid_focal_loss_backward.default, (scalar, *indices))
    torch.library.opcheck(ops.gaussian_focal_loss.default, (x, t, 2.0, 4.0, True))
    torch.library.opcheck(ops.gaussian_focal_loss_backward.default, (each, x, t, 2.0, 4.0))
    rows, targets = x.detach().unsqueeze(2).requires_grad_(), index.unsqueeze(1)
    torch.library.opcheck(ops.softmax_focal_loss.default, (rows, targets, alpha, 1.0, 2.0, -100, False))
    torch.library.opcheck(ops.softmax_focal_loss_backward.default, (scalar, rows, targets, alpha, 1.0, 2.0, -100))


@pytest.mark.parametrize("kind", ["sigmoid", "indices", "softmax", "gaussian"])
def test_compile_fullgraph(kind, device):
    function = {"softmax": softmax_focal_loss, "gaussian": gaussian_focal_loss}.get(kind, sigmoid_focal_loss)

    def loss(x, t):
        return function(x, t, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        x, t = hard(n, 6, device=device)
        targets = torch.randint(0, 6, (n,), device=device) if kind in ("indices", "softmax") else t
        x.requires_grad_()
        torch.testing.assert_close(
            torch.autograd.grad(compiled(x, targets), x), torch.autograd.grad(loss(x, targets), x)
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["sigmoid", "indices", "softmax", "gaussian"])
def test_vmap_and_per_sample_gradients(kind, reduction, device):
    function = {"softmax": softmax_focal_loss, "gaussian": gaussian_focal_loss}.get(kind, sigmoid_focal_loss)
    x, t = hard(3, 5, 4, dtype=torch.float64, device=device)
    targets = torch.randint(0, 4, (3, 5), device=device) if kind in ("indices", "softmax") else t

    def loss(a, b):
        return function(a, b, reduction=reduction)

    torch.testing.assert_close(torch.func.vmap(loss)(x, targets), torch.stack([*map(loss, x, targets)]))
    slopes = torch.func.vmap(torch.func.grad(lambda a, b: loss(a, b).sum()))(x, targets)
    torch.testing.assert_close(slopes, torch.stack([gradient(loss, a, b) for a, b in zip(x, targets, strict=True)]))


def test_vmap_over_scalars(device):
    x, t = hard(7, device=device)
    torch.testing.assert_close(torch.func.vmap(sigmoid_focal_loss)(x, t), sigmoid_focal_loss(x, t))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(sigmoid_focal_loss))(x, t), gradient(sigmoid_focal_loss, x, t)
    )


@pytest.mark.parametrize("kind", ["labels", "gaussian", "softmax"])
def test_autocast_computes_in_float32(kind, device):
    loss, x = losses(device, torch.float32)[kind]
    with torch.autocast(device, torch.bfloat16):
        mixed = loss(x.bfloat16())
    assert mixed.dtype == torch.float32
    close(mixed, loss(x.bfloat16().float()))


def test_threads_do_not_change_bits():
    x, t = hard(700, 80)
    index = torch.randint(0, 80, (700,))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found = [(f(x, targets, reduction="sum"), gradient(f, x, targets)) for f, targets in pairs(t, index)]
        results.append([out for both in found for out in both])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Memory


def saved_bytes(call, own):
    """Bytes of the distinct storages that autograd saves during the call, beside those of `own`."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    mine = {t.untyped_storage().data_ptr() for t in own}
    return sum(size for at, size in storages.items() if at not in mine)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_backward_saves_only_logits_and_targets(reduction, device):
    """MD#490: torchvision saves 32 bytes an element; logits and labels are 8, logits and class indices 4 and a bit."""
    x, t = hard(50, 80, device=device)
    index = torch.randint(0, 80, (50,), device=device)
    x.requires_grad_()
    for function, targets in pairs(t, index):
        call = partial(function, x, targets, reduction=reduction)
        assert saved_bytes(call, (x, targets)) <= 16


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_allocates_no_temporary(reduction):
    x, t = hard(500, 80)
    index = torch.randint(0, 80, (500,))
    x.requires_grad_()
    for function, targets in pairs(t, index):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            loss = function(x, targets, reduction=reduction)
        allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.events())
        assert allocated <= 32 << 10, "the sum needs no [N, C] temporary (160 kB here)"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            torch.autograd.grad(loss, x)
        allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.events())
        assert allocated <= x.numel() * 4 + (32 << 10), "backward allocates the gradient and nothing else of its size"


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: sigmoid_focal_loss(x, x, reduction="max"), "reduction must be 'none', 'mean' or 'sum', got 'max'"),
        (lambda x: sigmoid_focal_loss(x, x, gamma=-1), "gamma must be >= 0, got -1"),
        (lambda x: sigmoid_focal_loss(x, x, gamma=NAN), "gamma must be >= 0, got nan"),
        (lambda x: sigmoid_focal_loss(x, x[:2]), r"targets must be \[3, 4\].*got \[2, 4\]"),
        (lambda x: sigmoid_focal_loss(x, x[:, 0]), "class indices must be int64, got Float"),
        (
            lambda x: sigmoid_focal_loss(x, x, torch.ones(3)),
            r"alpha must be a number or \[4\], one per class, got \[3\]",
        ),
        (lambda x: sigmoid_focal_loss(x, x, weight=torch.ones(4)), r"weight must be \[3, 4\].*or \[3\].*got \[4\]"),
        (lambda x: sigmoid_focal_loss(x, x, ignore_index=1), "ignore_index needs integer targets"),
        (lambda x: sigmoid_focal_loss(x.long(), x), "inputs must be float64, float32, float16 or bfloat16, got Long"),
        (lambda x: softmax_focal_loss(x[0], x[0]), r"inputs must be \[N, C\] or \[N, C, d1, ...\], got \[4\]"),
        (lambda x: softmax_focal_loss(x, x.long()), r"targets must be \[3\], got \[3, 4\]"),
        (lambda x: softmax_focal_loss(x, x[:, 0]), "targets must be int64 class indices, got Float"),
        (lambda x: softmax_focal_loss(x, x[:, 0].long(), torch.ones(3)), "alpha must be a number or"),
        (lambda x: gaussian_focal_loss(x, x[0]), r"targets must be \[3, 4\], the shape of inputs, got \[4\]"),
        (lambda x: gaussian_focal_loss(x, x, alpha=-1), "alpha must be >= 0, got -1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(torch.zeros(3, 4))


@pytest.mark.parametrize("index", [-2, 6, 2**40, -(2**40)])
def test_class_index_out_of_range(index, on_cuda_host):
    """An error on the CPU; on CUDA, where nothing waits for the device, background or NaN."""
    x = torch.randn(2, 4)
    t = torch.tensor([1, index])
    if on_cuda_host:
        assert torch.equal(sigmoid_focal_loss(x, t), sigmoid_focal_loss(x, torch.tensor([1, -1])))
        assert softmax_focal_loss(x, t).isnan().tolist() == [False, True]
        assert gradient(softmax_focal_loss, x, t).isnan().all(1).tolist() == [False, True]
        return
    with pytest.raises(RuntimeError, match=r"class indices must be -1 \(none\) to 4 \(none\), or ignore_index"):
        sigmoid_focal_loss(x, t)
    with pytest.raises(RuntimeError, match="targets must be 0 to 3 or ignore_index = -100"):
        softmax_focal_loss(x, t)
    assert sigmoid_focal_loss(x, t, ignore_index=index)[1].abs().max() == 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(0, 9),
    classes=st.sampled_from([1, 2, 7, 16, 33]),
    gamma=st.floats(0, 6),
    scale=st.sampled_from([0.1, 3.0, 1e3]),
)
def test_any_logits(data, rows, classes, gamma, scale):
    dtype = data.draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = (torch.randn(rows, classes, generator=generator) * scale).to(dtype)
    t = torch.rand(rows, classes, generator=generator).to(dtype)
    if data.draw(st.booleans()):
        t = t.round()
    index = torch.randint(0, classes, (rows,), generator=generator)
    function, targets = data.draw(st.sampled_from(pairs(t, index)))
    reference = REFERENCES[function]
    tolerance = TOLERANCE[dtype]["rtol"] * 20
    out = function(x, targets, gamma=gamma)
    torch.testing.assert_close(out, reference(x, targets, gamma=gamma), rtol=tolerance, atol=tolerance)
    assert gradient(function, x, targets, gamma=gamma).isfinite().all()
