"""depthwise_conv2d and DepthwiseConv2d: values, layouts, gradients, transforms, errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cvops
from cvops.ops._activation import ACTIVATIONS
from cvops.ops.depthwise_conv2d import reference_depthwise_conv2d

DTYPES = list(TOLERANCE)

# input, multiplier, kernel, stride, padding (top, left, bottom, right), dilation
CASES = [
    ((2, 5, 9, 11), 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 16, 14, 14), 1, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((1, 24, 7, 7), 1, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    ((1, 17, 15, 21), 1, (5, 5), (2, 2), (1, 1, 2, 2), (1, 1)),
    ((1, 3, 20, 40), 1, (7, 7), (1, 1), (3, 3, 3, 3), (1, 1)),
    ((1, 9, 18, 37), 1, (7, 7), (2, 2), (3, 2, 3, 3), (1, 1)),
    ((2, 3, 12, 13), 1, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    ((1, 4, 17, 12), 1, (3, 5), (3, 2), (0, 4, 2, 1), (2, 3)),
    ((1, 2, 10, 9), 3, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 4, 11, 10), 2, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    ((1, 2, 6, 50), 1, (1, 4), (1, 4), (0, 0, 0, 0), (1, 1)),
    ((1, 2, 5, 5), 1, (5, 5), (7, 9), (0, 0, 0, 0), (1, 1)),
    ((1, 1, 3, 3), 1, (3, 3), (1, 1), (5, 6, 7, 8), (1, 1)),
    ((1, 2, 130, 4), 1, (9, 2), (1, 1), (4, 0, 4, 1), (1, 1)),
    ((0, 3, 8, 8), 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 3, 0, 4), 1, (3, 3), (1, 1), (2, 1, 2, 1), (1, 1)),
]
SMALL = [case for case in CASES if 0 < torch.Size(case[0]).numel() < 700]


def tensors(shape, m, kernel, dtype=torch.float32, device="cpu", requires_grad=False):
    planes = shape[1] * m
    made = (torch.randn(shape), torch.randn(planes, 1, *kernel), torch.randn(planes))
    return [t.to(device, dtype).requires_grad_(requires_grad) for t in made]


def double_reference(x, weight, bias, *geometry, activation=None):
    bias = None if bias is None else bias.double()
    return reference_depthwise_conv2d(x.double(), weight.double(), bias, *geometry, activation)


def assert_rounded(out, exact, magnitude, dtype):
    """Error at most the tolerance of the dtype times the sum of absolute values of what was added."""
    assert out.dtype == dtype
    assert out.shape == exact.shape
    allowed = TOLERANCE[dtype]["rtol"] * (magnitude.abs() + 1)
    assert torch.isfinite(out).all()
    assert ((out.double() - exact.double()).abs() <= allowed).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case, dtype, layout, device):
    shape, m, kernel, *geometry = case
    x, weight, bias = tensors(shape, m, kernel, dtype, device)
    x = x.contiguous(memory_format=layout)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = cvops.ops.depthwise_conv2d(*leaves, *geometry)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    size = [t.double().abs().requires_grad_() for t in (x, weight, bias)]
    expected, magnitude = double_reference(*exact, *geometry), double_reference(*size, *geometry)
    assert_rounded(out, expected, magnitude, dtype)
    if not x.is_contiguous() and out.numel():
        assert out.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(out.shape).to(device, dtype)
    ours = torch.autograd.grad(out, leaves, grad)
    theirs = torch.autograd.grad(expected, exact, grad.double())
    bounds = torch.autograd.grad(magnitude, size, grad.double().abs())
    for a, b, bound in zip(ours, theirs, bounds, strict=True):
        assert_rounded(a, b, bound, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_activation(activation, dtype, layout, device):
    x, weight, bias = tensors((2, 12, 9, 20), 1, (3, 3), dtype, device)
    x = (4 * x).contiguous(memory_format=layout)
    geometry = (1, 1), (1, 1, 1, 1), (1, 1)
    expected = double_reference(x, weight, bias, *geometry, activation=activation)
    magnitude = double_reference(x.abs(), weight.abs(), bias.abs(), *geometry)
    out = cvops.ops.depthwise_conv2d(x, weight, bias, padding=1, activation=activation)
    assert_rounded(out, expected, magnitude, dtype)
    weight.requires_grad_()
    composed = cvops.ops.depthwise_conv2d(x, weight, bias, padding=1, activation=activation)
    assert_rounded(composed.detach(), expected, magnitude, dtype)
    (ours,) = torch.autograd.grad(composed.sum(), weight)
    fused = torch.ops.cvops.depthwise_conv2d(x, weight, bias, [1, 1], [1] * 4, [1, 1], ACTIVATIONS.index(activation))
    (theirs,) = torch.autograd.grad(fused.sum(), weight)
    torch.testing.assert_close(ours, theirs, rtol=20 * TOLERANCE[dtype]["rtol"], atol=100 * TOLERANCE[dtype]["rtol"])


def test_activation_at_the_ends_of_the_range(device):
    x = torch.tensor([-1e30, -200, -88, -20, 0, 20, 88, 200, 1e30, float("inf"), float("nan")], device=device)
    x = x.reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, device=device)
    for activation, function in (("relu", F.relu), ("relu6", F.relu6), ("silu", F.silu), ("hardswish", F.hardswish)):
        out = cvops.ops.depthwise_conv2d(x, one, activation=activation)
        torch.testing.assert_close(out, function(x), rtol=1e-5, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch(case, device):
    shape, m, kernel, stride, (top, left, bottom, right), dilation = case
    x, weight, bias = tensors(shape, m, kernel, device=device)
    padded = F.pad(x, (left, right, top, bottom))
    expected = F.conv2d(padded, weight, bias, stride, 0, dilation, shape[1])
    out = cvops.ops.depthwise_conv2d(x, weight, bias, stride, (top, left, bottom, right), dilation)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_padding_forms(device):
    x, weight, bias = tensors((1, 3, 10, 12), 1, (3, 5), device=device)
    call = cvops.ops.depthwise_conv2d
    torch.testing.assert_close(call(x, weight, bias, padding=2), F.conv2d(x, weight, bias, 1, 2, 1, 3))
    torch.testing.assert_close(call(x, weight, bias, padding=(1, 2)), F.conv2d(x, weight, bias, 1, (1, 2), 1, 3))
    torch.testing.assert_close(call(x, weight, bias, padding="valid"), F.conv2d(x, weight, bias, 1, 0, 1, 3))
    torch.testing.assert_close(call(x, weight, bias, padding="same"), F.conv2d(x, weight, bias, 1, "same", 1, 3))


def test_same_is_that_of_tensorflow(device):
    # An even size, stride 2, kernel 3: one zero in all, and it goes to the end.
    x = torch.arange(1.0, 5, device=device).reshape(1, 1, 1, 4)
    out = cvops.ops.depthwise_conv2d(x, torch.ones(1, 1, 1, 3, device=device), stride=2, padding="same")
    assert out.flatten().tolist() == [6, 7]
    for size in range(1, 12):
        for stride in (1, 2, 3):
            y = cvops.ops.depthwise_conv2d(torch.ones(1, 1, size, size), torch.ones(1, 1, 5, 5), None, stride, "same")
            assert y.shape[2] == -(-size // stride)


def test_unbatched(device):
    x, weight, bias = tensors((1, 3, 8, 9), 1, (3, 3), device=device)
    torch.testing.assert_close(
        cvops.ops.depthwise_conv2d(x[0], weight, bias), cvops.ops.depthwise_conv2d(x, weight, bias)[0], rtol=0, atol=0
    )


def test_non_contiguous(device):
    x, weight, bias = tensors((2, 10, 20, 22), 1, (3, 3), device=device)
    views = [x[:, ::2], x[:, :5, 1::2, ::3], x.transpose(2, 3)[:, 2:7], x.contiguous(memory_format=torch.channels_last)]
    views += [views[-1][:, :5, 3:9, 2:], x[:1, :5].expand(3, -1, -1, -1)]
    for view in views:
        c = view.shape[1]
        w, b = weight[:c].transpose(2, 3), bias[::2][:c] if c == 5 else bias
        expected = cvops.ops.depthwise_conv2d(view.contiguous(), w.contiguous(), b.contiguous(), padding=1)
        out = cvops.ops.depthwise_conv2d(view, w, b, padding=1)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        leaf = view.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        grad = torch.randn(out.shape, device=device).transpose(2, 3).contiguous().transpose(2, 3)
        (ours,) = torch.autograd.grad(cvops.ops.depthwise_conv2d(leaf, w, b, padding=1), leaf, grad)
        (theirs,) = torch.autograd.grad(F.conv2d(leaf, w, b, 1, 1, 1, c), leaf, grad)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_memory_format_follows_the_input(device):
    x, weight, _ = tensors((2, 6, 8, 8), 2, (3, 3), device=device, requires_grad=True)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert cvops.ops.depthwise_conv2d(x, weight).is_contiguous()
    out = cvops.ops.depthwise_conv2d(last, weight)
    assert out.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(out.sum(), last)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("stride", [1, 2])
def test_does_not_depend_on_threads(layout, stride):
    x, weight, bias = tensors((5, 40, 37, 45), 1, (5, 5), requires_grad=True)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            out = cvops.ops.depthwise_conv2d(x, weight, bias, stride, 2)
            results.append((out, *torch.autograd.grad((out * out).sum(), (x, weight, bias))))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("height", [3, 6, 7, 15])
def test_planes_do_not_depend_on_their_neighbours(height, kernel, stride, m, device):
    # Two of up to eight columns share a vector: of an odd number one is left over, and pairs reach across images.
    x, weight, bias = tensors((3, 5, height, 7 * stride), m, (kernel, kernel), device=device)
    geometry = stride, kernel // 2

    def run(x, weight, bias, grad=None):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        out = cvops.ops.depthwise_conv2d(*leaves, *geometry, activation="relu6" if grad is None else None)
        grad = torch.ones_like(out) if grad is None else grad
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    grad = torch.randn_like(cvops.ops.depthwise_conv2d(x, weight, bias, *geometry))
    out, grad_x, grad_weight, grad_bias = run(x, weight, bias, grad)
    active = run(x, weight, bias)[0]
    for c in range(5):
        planes = slice(c * m, c * m + m)
        own = weight[planes], bias[planes]
        summed = [torch.zeros_like(t) for t in own]
        for image in range(3):
            part = x[image : image + 1, c : c + 1]
            assert run(part, *own)[0].equal(active[image : image + 1, planes])
            alone = run(part, *own, grad[image : image + 1, planes])
            assert alone[0].equal(out[image : image + 1, planes])
            assert alone[1].equal(grad_x[image : image + 1, c : c + 1])
            for total, one in zip(summed, alone[2:], strict=True):
                total += one
        torch.testing.assert_close(grad_weight[planes], summed[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad_bias[planes], summed[1], rtol=1e-4, atol=1e-4)


def test_large_planes_in_strips(device):
    x, weight, bias = tensors((1, 2, 700, 300), 1, (7, 7), device=device, requires_grad=True)
    for dtype, dilation in ((torch.float32, 1), (torch.float32, 2), (torch.float64, 1)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        out = cvops.ops.depthwise_conv2d(*leaves, 1, 3 * dilation, dilation)
        peer = F.conv2d(*leaves, 1, 3 * dilation, dilation, 2)
        torch.testing.assert_close(out, peer, rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (out, peer)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-1)


def test_what_lies_outside_stays_outside(device):
    # Neighbouring planes, rows and the pad must not leak in, not even as infinity times zero.
    x = torch.full((1, 3, 9, 9), float("inf"), device=device)
    x[:, 1] = 1
    weight = torch.ones(3, 1, 3, 3, device=device)
    for stride in (1, 2):
        out = cvops.ops.depthwise_conv2d(x, weight, None, stride, 1)
        assert torch.isfinite(out[:, 1]).all()
        assert out[0, 1, 0, 0] == 4
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.contiguous(memory_format=layout)
        weight = weight.clone().requires_grad_()
        for stride in (1, 2):
            out = cvops.ops.depthwise_conv2d(leaf, weight, None, stride, 1)
            (grad,) = torch.autograd.grad(out[:, 1].sum(), weight)
            assert torch.isfinite(grad[1]).all()


geometries = st.fixed_dictionaries(
    {
        "n": st.integers(0, 2),
        "c": st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 24, 33]),
        "m": st.sampled_from([1, 1, 1, 2, 3]),
        "size": st.tuples(st.integers(1, 34), st.integers(1, 40)),
        "kernel": st.one_of(st.sampled_from([(3, 3), (5, 5), (7, 7)]), st.tuples(st.integers(1, 9), st.integers(1, 9))),
        "stride": st.one_of(st.sampled_from([(1, 1), (2, 2)]), st.tuples(st.integers(1, 5), st.integers(1, 5))),
        "dilation": st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "padding": st.one_of(st.just("same"), st.tuples(*[st.integers(0, 9)] * 4)),
        "dtype": st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]),
        "last": st.booleans(),
        "bias": st.booleans(),
        "activation": st.sampled_from(ACTIVATIONS),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(geometries)
def test_any_geometry(g):
    torch.manual_seed(g["seed"])
    x, weight, bias = tensors((g["n"], g["c"], *g["size"]), g["m"], g["kernel"], g["dtype"])
    if g["last"]:
        x = x.contiguous(memory_format=torch.channels_last)
    bias = bias if g["bias"] else None
    reach = [d * (k - 1) + 1 for k, d in zip(g["kernel"], g["dilation"], strict=True)]
    sides = g["padding"]
    if sides == "same":
        totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(g["size"], g["stride"], reach, strict=True)]
        sides = [t // 2 for t in totals] + [t - t // 2 for t in totals]
    elif any(g["size"][i] + sides[i] + sides[i + 2] < reach[i] for i in (0, 1)):
        with pytest.raises(RuntimeError, match="smaller than the dilated kernel"):
            cvops.ops.depthwise_conv2d(x, weight, bias, g["stride"], g["padding"], g["dilation"])
        return
    geometry = g["stride"], sides, g["dilation"]
    out = cvops.ops.depthwise_conv2d(x, weight, bias, g["stride"], g["padding"], g["dilation"], g["activation"])
    size = [x.double().abs().requires_grad_(), weight.double().abs().requires_grad_()]
    magnitude = double_reference(*size, None if bias is None else bias.abs(), *geometry)
    expected = double_reference(x, weight, bias, *geometry, activation=g["activation"])
    assert_rounded(out, expected, magnitude, g["dtype"])
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    grad = torch.randn(out.shape).to(out.dtype)
    ours = torch.autograd.grad(cvops.ops.depthwise_conv2d(*leaves, bias, *geometry), leaves, grad)
    theirs = torch.autograd.grad(double_reference(*exact, bias, *geometry), exact, grad.double())
    bounds = torch.autograd.grad(magnitude, size, grad.double().abs())
    for a, b, bound in zip(ours, theirs, bounds, strict=True):
        assert_rounded(a, b, bound, g["dtype"])


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "case",
    [
        ((2, 2, 4, 5), 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((1, 2, 5, 4), 2, (3, 2), (2, 1), (1, 0, 1, 1), (1, 2)),
        ((1, 3, 5, 5), 1, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    ],
    ids=str,
)
def test_gradcheck(case, last, device):
    shape, m, kernel, *geometry = case
    x, weight, bias = tensors(shape, m, kernel, torch.float64, device, requires_grad=True)

    def call(x, weight, bias):
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        return cvops.ops.depthwise_conv2d(x, weight, bias, *geometry)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


def test_only_wanted_gradients(device):
    x, weight, bias = tensors((2, 4, 8, 8), 1, (3, 3), device=device)
    reference = [t.clone().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(F.conv2d(*reference, 1, 1, 1, 4).square().sum(), reference)
    for i in range(3):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate((x, weight, bias))]
        (ours,) = torch.autograd.grad(cvops.ops.depthwise_conv2d(*leaves, padding=1).square().sum(), leaves[i])
        torch.testing.assert_close(ours, expected[i], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_opcheck(case, last, device):
    shape, m, kernel, *geometry = case
    x, weight, bias = tensors(shape, m, kernel, device=device, requires_grad=True)
    if last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    geometry = [list(part) for part in geometry]
    torch.library.opcheck(torch.ops.cvops.depthwise_conv2d.default, (x, weight, bias, *geometry, 0))
    torch.library.opcheck(torch.ops.cvops.depthwise_conv2d.default, (x.detach(), weight.detach(), None, *geometry, 3))
    out = torch.ops.cvops.depthwise_conv2d(x, weight, bias, *geometry, 0).detach().requires_grad_()
    for gradients in (1, 6, 7):
        args = (out, x, weight, *geometry, gradients)
        torch.library.opcheck(torch.ops.cvops.depthwise_conv2d_backward.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic, device):
    module = cvops.ops.DepthwiseConv2d(6, 3, 2, "same", activation="silu").to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (9, 12):
        x = torch.randn(2, 6, size, size, device=device, requires_grad=True)
        out, expected = compiled(x), module(x)
        torch.testing.assert_close(out, expected)
        grads = [torch.autograd.grad(y.square().sum(), (x, *module.parameters())) for y in (out, expected)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_autocast(device):
    x, weight, bias = tensors((1, 4, 8, 8), 1, (3, 3), device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = cvops.ops.depthwise_conv2d(x, weight, bias, padding=1)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.sum(), (x, weight, bias))
    assert all(g.dtype == torch.float32 for g in grads)
    torch.testing.assert_close(out.float(), F.conv2d(x, weight, bias, 1, 1, 1, 4), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("in_dims", [(0, None, None), (1, 0, 0), (None, 0, None), (0, 0, None), (2, 1, 0)], ids=str)
def test_vmap(in_dims, device):
    shapes = (2, 3, 7, 8), (6, 1, 3, 3), (6,)
    batch = 4
    full = [
        torch.randn([*s[:d], batch, *s[d:]] if d is not None else s, device=device)
        for s, d in zip(shapes, in_dims, strict=True)
    ]

    def call(x, weight, bias):
        return cvops.ops.depthwise_conv2d(x, weight, bias, 2, 1)

    def one(i):
        return [t if d is None else t.select(d, i) for t, d in zip(full, in_dims, strict=True)]

    out = torch.func.vmap(call, in_dims)(*full)
    torch.testing.assert_close(out, torch.stack([call(*one(i)) for i in range(batch)]), rtol=1e-5, atol=1e-5)
    gradient = torch.func.grad(lambda *args: call(*args).square().sum(), argnums=(0, 1, 2))
    per_sample = torch.func.vmap(gradient, in_dims)(*full)
    for i in range(batch):
        for a, b in zip(per_sample, gradient(*one(i)), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [1, 2])
def test_module_is_a_drop_in(m, device):
    ours = cvops.ops.DepthwiseConv2d(8, (3, 5), 2, (1, 2), multiplier=m).to(device)
    theirs = nn.Conv2d(8, 8 * m, (3, 5), 2, (1, 2), groups=8).to(device)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 10, 11, device=device)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert "multiplier" in repr(ours) or m == 1
    assert cvops.ops.DepthwiseConv2d(8, 3, bias=False).bias is None
    bound = theirs.weight[0].numel() ** -0.5
    assert ours.weight.abs().max() <= bound
    assert ours.weight.abs().max() > 0.9 * bound


def test_errors(device):
    call = cvops.ops.depthwise_conv2d
    x, weight, bias = tensors((1, 4, 8, 8), 1, (3, 3), device=device)
    with pytest.raises(ValueError, match=r"input must be .* got \[8, 8\]"):
        call(x[0, 0], weight)
    with pytest.raises(RuntimeError, match=r"weight must be \[C \* m, 1, kh, kw\].* got \[4, 2, 3, 3\]"):
        call(x, weight.expand(4, 2, 3, 3))
    with pytest.raises(RuntimeError, match=r"positive multiple of the input's 4 channels, got \[6, 1, 3, 3\]"):
        call(x, torch.zeros(6, 1, 3, 3, device=device))
    with pytest.raises(RuntimeError, match=r"bias must be \[4\], got \[3\]"):
        call(x, weight, bias[:3])
    with pytest.raises(RuntimeError, match="input and weight must have one dtype"):
        call(x, weight.double())
    with pytest.raises(RuntimeError, match="input must be float64, float32, float16 or bfloat16, got"):
        call(x.int(), weight.int())
    with pytest.raises(ValueError, match="stride must be one or two integers >= 1, got 0"):
        call(x, weight, stride=0)
    with pytest.raises(ValueError, match="dilation must be one or two integers >= 1"):
        call(x, weight, dilation=(1, 2, 3))
    with pytest.raises(ValueError, match=r"padding must be 'same'.* got -1"):
        call(x, weight, padding=-1)
    with pytest.raises(ValueError, match=r"padding must be 'same'.* got 'full'"):
        call(x, weight, padding="full")
    with pytest.raises(ValueError, match=r"activation must be one of .* got 'tanh'"):
        call(x, weight, activation="tanh")
    with pytest.raises(RuntimeError, match=r"height of the padded input \(8 \+ 0 \+ 0\) is smaller .* \(9\)"):
        call(x, weight, dilation=4)
    with pytest.raises(RuntimeError, match=r"grad must be \[1, 4, 6, 6\], got \[1, 4, 8, 8\]"):
        torch.ops.cvops.depthwise_conv2d_backward(x, x, weight, [1, 1], [0] * 4, [1, 1], 7)
