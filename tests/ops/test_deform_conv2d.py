"""deform_conv2d and DeformConv2d: values, layouts, gradients, memory, transforms, errors."""

import pytest
import torch
from conftest import EXAMPLES, ON_CUDA_HOST, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

import cvops
from cvops.ops.deform_conv2d import reference_deform_conv2d

DTYPES = list(TOLERANCE)

# input, out channels, kernel, stride, padding, dilation, groups, offset groups
CASES = {
    "plain": ((2, 5, 7, 8), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    "wide": ((1, 24, 6, 5), 50, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    "strided": ((2, 6, 9, 10), 4, (3, 2), (2, 1), (1, 0), (2, 1), 1, 1),
    "groups": ((2, 8, 6, 6), 4, (3, 3), (1, 1), (1, 1), (1, 1), 2, 1),
    "offset groups": ((1, 6, 5, 6), 3, (2, 3), (1, 2), (0, 1), (1, 1), 1, 3),
    "both groups, unaligned": ((1, 12, 5, 5), 6, (3, 3), (1, 1), (1, 1), (1, 1), 3, 2),
    "depthwise": ((1, 8, 6, 7), 8, (3, 3), (1, 1), (1, 1), (1, 1), 8, 8),
    "one tap": ((2, 3, 4, 5), 2, (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
    "no images": ((0, 4, 5, 5), 2, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
}
SMALL = ["strided", "both groups, unaligned"]


def tensors(case, dtype=torch.float32, device="cpu", mask=True, spread=1.5):
    (n, c, h, w), out_c, (kh, kw), stride, padding, dilation, groups, offset_groups = CASES[case]
    out_h = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    made = [
        torch.randn(n, c, h, w),
        torch.randn(n, 2 * offset_groups * kh * kw, out_h, out_w) * spread,
        torch.randn(out_c, c // groups, kh, kw),
        torch.randn(out_c),
        torch.rand(n, offset_groups * kh * kw, out_h, out_w),
    ]
    x, offset, weight, bias, modulation = (t.to(device, dtype) for t in made)
    return [x, offset, weight, bias, *([modulation] if mask else [])], (stride, padding, dilation)


def run(function, inputs, geometry):
    x, offset, weight, bias, *mask = inputs
    return function(x, offset, weight, bias, *geometry, mask[0] if mask else None)


def bound(case, inputs, geometry):
    """What rounding may cost: a tolerance times the sum of absolute values of what was added."""
    x, offset, weight, bias, *mask = (t.double() for t in inputs)
    return run(reference_deform_conv2d, [x.abs(), offset, weight.abs(), bias.abs(), *mask], geometry) + 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mask", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(case, mask, dtype, device):
    inputs, geometry = tensors(case, dtype, device, mask)
    out = run(cvops.ops.deform_conv2d, inputs, geometry)
    exact = run(reference_deform_conv2d, [t.double() for t in inputs], geometry)
    assert out.dtype == dtype
    assert out.shape == exact.shape
    assert ((out.double() - exact).abs() <= TOLERANCE[dtype]["rtol"] * bound(case, inputs, geometry)).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mask", [False, True], ids=["v1", "v2"])
def test_equals_torchvision_with_gradients(case, mask, device, torchvision):
    """Torchvision's on the CPU; its gradients on CUDA are others, which differ from numerical ones."""
    inputs, geometry = tensors(case, torch.float64, "cpu", mask)
    results = []
    for function, place in ((cvops.ops.deform_conv2d, device), (torchvision.ops.deform_conv2d, "cpu")):
        leaves = [t.to(place).requires_grad_() for t in inputs]
        out = run(function, leaves, geometry)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("mask", [False, True], ids=["v1", "v2"])
def test_gradcheck(case, mask, device):
    inputs, geometry = tensors(case, torch.float64, device, mask)
    leaves = [t.requires_grad_() for t in inputs]
    # On a GPU, atomic additions vary the last bits.
    settings = {"fast_mode": True, "nondet_tol": 1e-12 if device == "cuda" else 0.0}
    assert torch.autograd.gradcheck(lambda *a: run(cvops.ops.deform_conv2d, a, geometry), leaves, **settings)
    assert torch.autograd.gradgradcheck(lambda *a: run(cvops.ops.deform_conv2d, a, geometry), leaves, **settings)


@pytest.mark.parametrize("wanted", range(5))
def test_one_gradient_at_a_time(wanted, device):
    inputs, geometry = tensors("strided", torch.float64, device)
    inputs[wanted].requires_grad_()
    ours = torch.autograd.grad(run(cvops.ops.deform_conv2d, inputs, geometry).sin().sum(), inputs[wanted])
    theirs = torch.autograd.grad(run(reference_deform_conv2d, inputs, geometry).sin().sum(), inputs[wanted])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_gradients(dtype, device):
    inputs, geometry = tensors("plain", dtype, device)
    leaves = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    ours = torch.autograd.grad(run(cvops.ops.deform_conv2d, leaves, geometry).float().sum(), leaves)
    theirs = torch.autograd.grad(run(reference_deform_conv2d, exact, geometry).sum(), exact)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        scale = b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype]["rtol"], atol=TOLERANCE[dtype]["atol"] * scale)


def test_zero_offsets_make_an_ordinary_convolution(device):
    x, weight = torch.randn(2, 6, 9, 8, device=device), torch.randn(5, 6, 3, 3, device=device)
    offset = torch.zeros(2, 18, 5, 4, device=device)
    out = cvops.ops.deform_conv2d(x, offset, weight, stride=2, padding=1)
    torch.testing.assert_close(out, torch.nn.functional.conv2d(x, weight, stride=2, padding=1), rtol=1e-4, atol=1e-4)


def test_channels_last_in_channels_last_out(device):
    inputs, geometry = tensors("wide", device=device)
    expected = run(cvops.ops.deform_conv2d, inputs, geometry)
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    out = run(cvops.ops.deform_conv2d, inputs, geometry)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(out.sum(), inputs[0])
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_non_contiguous_inputs(device):
    inputs, geometry = tensors("plain", torch.float64, device)
    expected = run(cvops.ops.deform_conv2d, inputs, geometry)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim == 4 else t for t in inputs]
    strided[1] = strided[1].repeat(1, 1, 1, 2)[..., : inputs[1].shape[3]]
    torch.testing.assert_close(run(cvops.ops.deform_conv2d, strided, geometry), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 1e18])
def test_wild_offsets_sample_nothing(value, device):
    inputs, geometry = tensors("plain", device=device)
    inputs[1] = torch.full_like(inputs[1], value)
    leaves = [t.requires_grad_() for t in inputs]
    out = run(cvops.ops.deform_conv2d, leaves, geometry)
    torch.testing.assert_close(out, inputs[3][None, :, None, None].expand_as(out), rtol=0, atol=0)
    for grad in torch.autograd.grad(out.sum(), leaves[:3]):
        assert (grad == 0).all()


def test_what_lies_outside_is_not_read(device):
    """Infinite pixels at the border do not leak into samples that do not touch them."""
    x = torch.full((1, 1, 4, 4), float("inf"), device=device)
    x[..., 1:3, 1:3] = 1.0
    offset = torch.zeros(1, 2, 4, 4, device=device)
    offset[:, :, 0, 0] = -5.0
    out = cvops.ops.deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, device=device))
    assert out[0, 0, 0, 0] == 0


def test_gradient_of_the_input_repeats_in_deterministic_mode(device):
    inputs, geometry = tensors("wide", device=device)
    leaves = [t.requires_grad_() for t in inputs]
    expected = torch.autograd.grad(run(cvops.ops.deform_conv2d, leaves, geometry).sin().sum(), leaves)
    torch.use_deterministic_algorithms(True)
    try:
        found = torch.autograd.grad(run(cvops.ops.deform_conv2d, leaves, geometry).sin().sum(), leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [*SMALL, "no images"])
@pytest.mark.parametrize("mask", [False, True], ids=["v1", "v2"])
def test_opcheck(case, mask, device):
    inputs, geometry = tensors(case, torch.float64, device, mask)
    x, offset, weight, bias, *rest = (t.requires_grad_() for t in inputs)
    modulation = rest[0] if rest else None
    groups, offset_groups = CASES[case][-2:]
    lists = [list(g) for g in geometry]
    op, backward = torch.ops.cvops.deform_conv2d.default, torch.ops.cvops.deform_conv2d_backward.default
    torch.library.opcheck(op, (x, weight, offset, modulation, bias, *lists, groups, offset_groups))
    grad = torch.randn_like(op(x, weight, offset, modulation, bias, *lists, groups, offset_groups)).detach()
    # Without leaves: tracing second derivatives through the reference takes a minute; gradgradcheck covers them.
    tensors_in = (grad, *(None if t is None else t.detach() for t in (x, weight, offset, modulation)))
    arguments = (*tensors_in, *lists, groups, offset_groups)
    for gradients in (7, 1):
        torch.library.opcheck(backward, (*arguments, gradients, False))


def test_compile_fullgraph(device):
    def loss(x, offset, weight):
        return cvops.ops.deform_conv2d(x, offset, weight, padding=1).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 8):
        x = torch.randn(1, 4, size, size, device=device, requires_grad=True)
        offset, weight = torch.randn(1, 18, size, size, device=device), torch.randn(3, 4, 3, 3, device=device)
        ours = torch.autograd.grad(compiled(x, offset, weight), x)
        torch.testing.assert_close(ours, torch.autograd.grad(loss(x, offset, weight), x))


def test_vmap_and_func_grad():
    inputs, geometry = tensors("strided", torch.float64)
    x, offset, weight, bias, mask = inputs
    xs, offsets, masks = (t.unsqueeze(1) for t in (x, offset, mask))

    def one(x, offset, mask, weight=weight):
        return cvops.ops.deform_conv2d(x, offset, weight, bias, *geometry, mask)

    expected = one(x, offset, mask)
    torch.testing.assert_close(torch.func.vmap(one)(xs, offsets, masks).squeeze(1), expected)
    weights = torch.stack([weight, 2 * weight])
    each = torch.func.vmap(lambda w: one(x, offset, mask, w))(weights)
    torch.testing.assert_close(each[1], one(x, offset, mask, 2 * weight))
    per_sample = torch.func.vmap(torch.func.grad(lambda w, *a: one(*a, w).sum()), in_dims=(None, 0, 0, 0))(
        weight, xs, offsets, masks
    )
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(per_sample.sum(0), torch.autograd.grad(one(x, offset, mask, leaf).sum(), leaf)[0])


def test_autocast_computes_in_float32(device):
    inputs, geometry = tensors("plain", device=device)
    with torch.autocast(device, torch.bfloat16):
        out = run(cvops.ops.deform_conv2d, [inputs[0].bfloat16(), *inputs[1:]], geometry)
    expected = run(cvops.ops.deform_conv2d, [inputs[0].bfloat16().float(), *inputs[1:]], geometry)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.skipif(ON_CUDA_HOST, reason="the CUDA side multiplies with torch's own product")
def test_threads_do_not_change_bits():
    inputs, geometry = tensors("wide")
    leaves = [t.requires_grad_() for t in inputs]
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        out = run(cvops.ops.deform_conv2d, leaves, geometry)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves[:3])])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_module_has_the_parameters_of_torchvisions(torchvision):
    theirs = torchvision.ops.DeformConv2d(4, 6, (3, 2), 2, 1, groups=2)
    ours = cvops.ops.DeformConv2d(4, 6, (3, 2), 2, 1, groups=2)
    ours.load_state_dict(theirs.state_dict())
    x, offset = torch.randn(1, 4, 6, 7), torch.randn(1, 12, 3, 4)
    torch.testing.assert_close(ours(x, offset), theirs(x, offset), rtol=1e-4, atol=1e-5)
    assert "groups=2" in repr(ours)
    with pytest.raises(ValueError, match="groups must divide"):
        cvops.ops.DeformConv2d(4, 6, 3, groups=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": torch.zeros(1, 36, 5, 4)}, "offset_groups"),
        ({"offset": torch.zeros(1, 2, 5, 5)}, "the shape of the offset is not valid"),
        ({"offset": torch.zeros(1, 18, 4, 5)}, "the shape of the offset must be"),
        ({"offset": torch.zeros(2, 18, 5, 5)}, "the shape of the offset must be"),
        ({"mask": torch.zeros(1, 8, 5, 5)}, r"mask\.shape\[1\] is not valid: it must be 9"),
        ({"mask": torch.zeros(1, 9, 5, 4)}, "the shape of the mask must be"),
        ({"weight": torch.zeros(2, 4, 3, 3)}, "groups|input channels per group"),
        ({"weight": torch.zeros(2, 3, 9, 9)}, "offset"),
        ({"input": torch.zeros(3, 5, 5)}, r"input must be \[N, C, H, W\]"),
        ({"bias": torch.zeros(3)}, r"bias must be \[2\]"),
        ({"stride": 0}, "stride must be one or two integers >= 1"),
        ({"padding": -1}, "padding must be one or two integers >= 0"),
        ({"weight": torch.zeros(2, 3, 3, 3).double()}, "one dtype"),
        ({"input": torch.zeros(1, 3, 5, 5).int()}, "input must be float64"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "input": torch.zeros(1, 3, 5, 5),
        "offset": torch.zeros(1, 18, 5, 5),
        "weight": torch.zeros(2, 3, 3, 3),
        "padding": 1,
        **change,
    }
    with pytest.raises((ValueError, RuntimeError), match=message):
        cvops.ops.deform_conv2d(**arguments)


@settings(max_examples=EXAMPLES // 5, deadline=None)
@given(
    n=st.integers(0, 2),
    group_in=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 3]),
    group_out=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    spread=st.sampled_from([0.0, 0.5, 4.0]),
    seed=st.integers(0, 2**31),
)
def test_any_geometry(n, group_in, groups, group_out, kernel, stride, padding, dilation, size, spread, seed):
    torch.manual_seed(seed)
    c, taps = group_in * groups, kernel[0] * kernel[1]
    offset_groups = 2 if c % 2 == 0 else 1
    out = [(s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(size, kernel, strict=True)]
    x = torch.randn(n, c, *size, dtype=torch.float64)
    offset = torch.randn(n, 2 * offset_groups * taps, *out, dtype=torch.float64) * spread
    weight = torch.randn(group_out * groups, group_in, *kernel, dtype=torch.float64)
    pair = [(v, v) for v in (stride, padding, dilation)]
    ours = cvops.ops.deform_conv2d(x, offset, weight, None, *pair)
    torch.testing.assert_close(ours, reference_deform_conv2d(x, offset, weight, None, *pair), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(ON_CUDA_HOST, reason="the memory of the CPU kernels")
def test_no_im2col_buffer_of_the_batch():
    from test_build import peak_bytes

    setup = """
x, w = torch.randn(8, 64, 64, 64), torch.randn(64, 64, 3, 3)
offset = torch.zeros(8, 18, 64, 64)
cvops.ops.deform_conv2d(x[:1], offset[:1], w, padding=1)
"""
    im2col = 4 * 8 * 64 * 9 * 64 * 64
    tensors = 4 * 2 * 8 * 64 * 64 * 64  # a channels-last copy of the input, and the output
    assert peak_bytes(setup, "cvops.ops.deform_conv2d(x, offset, w, padding=1)") < tensors + 0.15 * im2col
