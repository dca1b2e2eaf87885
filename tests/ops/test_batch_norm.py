"""fold_batch_norm, frozen_batch_norm, and batch_norm_act_ in place: values, memory formats, gradients, transforms,
errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

import cvops
from cvops.ops import fold_batch_norm, frozen_batch_norm
from cvops.ops._activation import ACTIVATIONS, FUNCTIONS
from cvops.ops.batch_norm import batch_norm_act_, reference_fold_batch_norm, reference_frozen_batch_norm

DTYPES = list(TOLERANCE)
SHAPES = [(6, 4, 3, 3), (7, 1, 5, 5), (33, 17, 1, 1), (5, 9), (3, 2, 3, 3, 3), (0, 4, 1, 1), (4, 0, 3, 3)]
ALL = (True, True, True)  # bias, norm_weight, norm_bias


def drawn(shape, dtype=torch.float32, device="cpu", present=ALL):
    """weight, bias, running_mean, running_var, norm_weight, norm_bias."""
    weight = torch.randn(shape, device=device).to(dtype)
    entries = [torch.randn(shape[0], device=device).to(dtype) for _ in range(4)]
    bias, mean, gain, offset = entries
    bias, gain, offset = (t if there else None for t, there in zip((bias, gain, offset), present, strict=True))
    return weight, bias, mean, (torch.rand(shape[0], device=device) + 0.3).to(dtype), gain, offset


def close(got, want, dtype):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("present", [ALL, (False, False, False), (True, False, True), (False, True, False)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, shape, present, device):
    tensors = drawn(shape, dtype, device, present)
    close(fold_batch_norm(*tensors, eps=1e-3), reference_fold_batch_norm(*tensors, eps=1e-3), dtype)


@pytest.mark.parametrize("present", [ALL, (False, True, True)], ids=str)
def test_equals_the_norm_after_the_convolution(present, device):
    weight, bias, mean, var, gain, offset = tensors = drawn((6, 4, 3, 3), torch.float64, device, present)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64, device=device)
    want = F.batch_norm(F.conv2d(x, weight, bias), mean, var, gain, offset, eps=1e-3)
    torch.testing.assert_close(F.conv2d(x, *fold_batch_norm(*tensors, eps=1e-3)), want, rtol=1e-10, atol=1e-10)


def test_equals_torch(device):
    weight, bias, mean, var, gain, offset = drawn((6, 4, 3, 3), device=device)
    want = torch.nn.utils.fusion.fuse_conv_bn_weights(weight, bias, mean, var, 1e-5, gain, offset)
    close(fold_batch_norm(weight, bias, mean, var, gain, offset), [t.detach() for t in want], torch.float32)


def test_memory_formats(device):
    weight, *entries = drawn((6, 4, 3, 5), device=device)
    want = fold_batch_norm(weight, *entries)
    last = fold_batch_norm(weight.to(memory_format=torch.channels_last), *entries)
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    gaps = fold_batch_norm(weight.repeat(1, 1, 1, 2)[..., :5], *(t.repeat_interleave(3)[::3] for t in entries))
    shifted = weight.new_empty(weight.numel() + 1)[1:].view(weight.shape).copy_(weight)
    turned = fold_batch_norm(weight.transpose(2, 3).contiguous().transpose(2, 3), *entries)
    for got in (last, gaps, fold_batch_norm(shifted, *entries), turned):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("present", [ALL, (False, False, False), (True, False, True)], ids=str)
def test_gradcheck(present, device):
    tensors = [
        None if t is None else t.requires_grad_()
        for t in drawn((3, 2, 1, 2), torch.float64, device=device, present=present)
    ]
    assert torch.autograd.gradcheck(fold_batch_norm, tensors)
    assert torch.autograd.gradgradcheck(fold_batch_norm, tensors)
    assert torch.autograd.gradcheck(lambda *t: fold_batch_norm(*t)[1], tensors)  # one output only


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_matches_reference(dtype, device):
    tensors = [t.requires_grad_() for t in drawn((6, 4, 3, 3), dtype, device)]
    grads = torch.randn(6, 4, 3, 3, device=device).to(dtype), torch.randn(6, device=device).to(dtype)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    want = torch.autograd.grad(reference_fold_batch_norm(*wide), wide, [g.double() for g in grads])
    got = torch.autograd.grad(fold_batch_norm(*tensors), tensors, grads)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 4 * TOLERANCE[dtype]["rtol"] * b.abs().max()


def test_only_what_is_asked_for_is_differentiated():
    weight, *entries = drawn((6, 4, 3, 3))
    weight.requires_grad_()
    (by_weight,) = torch.autograd.grad(fold_batch_norm(weight, *entries)[0].sum(), weight)
    torch.testing.assert_close(by_weight, fold_batch_norm(torch.ones_like(weight), *entries)[0].detach())


@pytest.mark.parametrize("present", [ALL, (False, False, False)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last, present, device):
    weight, *entries = drawn((4, 3, 2, 5), torch.float64, device, present)
    if last:
        weight = weight.to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.cvops.fold_batch_norm.default, (weight.requires_grad_(), *entries, 1e-5))


def test_compile_fullgraph(device):
    compiled = torch.compile(lambda *t: fold_batch_norm(*t), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 3, 3, 3), (5, 4, 1, 1)):
        tensors = [t.requires_grad_() for t in drawn(shape, device=device)]
        got, want = compiled(*tensors), fold_batch_norm(*tensors)
        close(got, want, torch.float32)
        ones = [torch.ones_like(t) for t in want]
        close(torch.autograd.grad(got, tensors, ones), torch.autograd.grad(want, tensors, ones), torch.float32)


def test_vmap_and_func_grad(device):
    many = [drawn((4, 3, 3, 3), device=device) for _ in range(3)]
    stacked = [torch.stack(t) for t in zip(*many, strict=True)]
    found = torch.func.vmap(fold_batch_norm)(*stacked)
    for i, tensors in enumerate(many):
        close([t[i] for t in found], fold_batch_norm(*tensors), torch.float32)
    shared = torch.func.vmap(fold_batch_norm, in_dims=(None, None, 0, None, None, None))(
        *many[0][:2], stacked[2], *many[0][3:]
    )
    weight, bias, _, *rest = many[0]
    close([t[2] for t in shared], fold_batch_norm(weight, bias, stacked[2][2], *rest), torch.float32)

    def loss(*t):
        scaled, shift = fold_batch_norm(*t)
        return scaled.square().sum() + shift.square().sum()

    leaves = [t.clone().requires_grad_() for t in many[1]]
    want = torch.autograd.grad(loss(*leaves), leaves)
    got = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(6))))(*stacked)
    close([t[1] for t in got], want, torch.float32)


def test_autocast_computes_in_float32(device):
    tensors = drawn((4, 3, 3, 3), torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        got = fold_batch_norm(*tensors)
    close(got, reference_fold_batch_norm(*(t.float() for t in tensors)), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t[0][:, 0, 0, 0], *t[1:]], r"weight must be \[C, ...\] with at least 2 dimensions, got \[4\]"),
        (lambda t: [t[0].int(), *t[1:]], "weight must be float64, float32, float16 or bfloat16, got Int"),
        (lambda t: [t[0], t[1][:3], *t[2:]], r"bias must be \[4\], one number per channel of weight, got \[3\]"),
        (lambda t: [*t[:2], t[2][:, None], *t[3:]], r"running_mean must be \[4\], .*, got \[4, 1\]"),
        (lambda t: [*t[:3], t[3].double(), *t[4:]], "running_var and weight must have one dtype, got Double and Float"),
        (lambda t: [*t[:4], t[4].repeat(2), t[5]], r"norm_weight must be \[4\], .*, got \[8\]"),
        (lambda t: [*t[:5], t[5].half()], "norm_bias and weight must have one dtype, got Half and Float"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(RuntimeError, match=message):
        fold_batch_norm(*change(drawn((4, 3, 3, 3))))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3)),
    present=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_input(shape, present, dtype, seed):
    torch.manual_seed(seed)
    tensors = drawn(shape, dtype, present=present)
    close(fold_batch_norm(*tensors), reference_fold_batch_norm(*tensors), dtype)


MAPS = [(2, 6, 5, 7), (1, 33, 4, 4), (3, 4, 1, 1), (2, 70, 23, 31), (5, 9), (2, 3, 2, 3, 4), (0, 4, 3, 3), (2, 4, 0, 3)]


def maps_and_norm(shape, dtype=torch.float32, device="cpu", present=ALL):
    """input, running_mean, running_var, norm_weight, norm_bias."""
    _, _, *entries = drawn((shape[1], 1), dtype, device, present)
    return (2 * torch.randn(shape, device=device)).to(dtype), *entries


@pytest.mark.parametrize("present", [ALL, (True, False, False), (True, False, True), (True, True, False)], ids=str)
@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_matches_reference_and_torch(dtype, shape, present, device):
    x, *entries = maps_and_norm(shape, dtype, device, present)
    out = frozen_batch_norm(x, *entries, eps=1e-3)
    assert out.dtype == dtype
    torch.testing.assert_close(out, reference_frozen_batch_norm(x, *entries, eps=1e-3), **TOLERANCE[dtype])
    if x.numel():
        wide = F.batch_norm(*(None if t is None else t.double() for t in (x, *entries)), eps=1e-3)
        torch.testing.assert_close(out, wide.to(dtype), **TOLERANCE[dtype])


def test_frozen_keeps_the_input_and_the_memory_format(device):
    x, *entries = maps_and_norm((2, 70, 5, 7), device=device)
    before = x.clone()
    want = frozen_batch_norm(x, *entries)
    assert torch.equal(x, before)
    last = frozen_batch_norm(x.to(memory_format=torch.channels_last), *entries)
    assert last.is_contiguous(memory_format=torch.channels_last)
    gaps = frozen_batch_norm(x.repeat(1, 1, 1, 2)[..., :7], *(t.repeat_interleave(3)[::3] for t in entries))
    shifted = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    for got in (last, gaps, frozen_batch_norm(shifted, *entries)):
        assert torch.equal(got, want)


@pytest.mark.parametrize("leaves", [(0,), (1,), (2, 4), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("present", [ALL, (True, False, False)], ids=str)
def test_frozen_gradcheck(leaves, present, device):
    tensors = list(maps_and_norm((2, 3, 2, 2), torch.float64, device, present))
    leaves = [i for i in leaves if tensors[i] is not None]
    for i in leaves:
        tensors[i].requires_grad_()
    assert torch.autograd.gradcheck(frozen_batch_norm, tensors)
    assert torch.autograd.gradgradcheck(frozen_batch_norm, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_gradient_matches_reference(dtype, device):
    tensors = [t.requires_grad_() for t in maps_and_norm((3, 6, 5, 7), dtype, device)]
    grad = torch.randn(3, 6, 5, 7, device=device).to(dtype)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    want = torch.autograd.grad(reference_frozen_batch_norm(*wide), wide, grad.double())
    got = torch.autograd.grad(frozen_batch_norm(*tensors), tensors, grad)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 4 * TOLERANCE[dtype]["rtol"] * b.abs().max()


@pytest.mark.parametrize("op", ["frozen_batch_norm", "FrozenBatchNorm2d"])
def test_frozen_saves_nothing_of_the_size_of_the_maps(op, device):
    x, *entries = maps_and_norm((2, 6, 15, 17), device=device)
    layer = cvops.nn.FrozenBatchNorm2d(6).to(device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        leaf = x.requires_grad_()
        out = frozen_batch_norm(leaf, *entries) if op == "frozen_batch_norm" else layer(leaf)
    assert out.requires_grad
    assert saved
    assert max(saved) <= 6


@pytest.mark.parametrize("present", [ALL, (True, False, False)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_frozen_opcheck(last, present, device):
    x, *entries = maps_and_norm((2, 4, 3, 5), torch.float64, device, present)
    x = x.to(memory_format=torch.channels_last) if last else x
    op = torch.ops.cvops.frozen_batch_norm.default
    torch.library.opcheck(op, (x.detach().requires_grad_(), *entries, 1e-5))
    torch.library.opcheck(op, (x, *(None if t is None else t.requires_grad_() for t in entries), 1e-5))


def test_frozen_compile_fullgraph(device):
    compiled = torch.compile(lambda *t: frozen_batch_norm(*t), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 4, 3, 3), (3, 5, 4, 1)):
        tensors = [t.requires_grad_() for t in maps_and_norm(shape, device=device)]
        got, want = compiled(*tensors), frozen_batch_norm(*tensors)
        grad = torch.randn_like(want)
        close(
            [got, *torch.autograd.grad(got, tensors, grad)],
            [want, *torch.autograd.grad(want, tensors, grad)],
            torch.float32,
        )


def test_frozen_vmap_and_func_grad(device):
    many = [maps_and_norm((2, 4, 3, 5), device=device) for _ in range(3)]
    stacked = [torch.stack(t) for t in zip(*many, strict=True)]
    close(torch.func.vmap(frozen_batch_norm)(*stacked), [frozen_batch_norm(*t) for t in many], torch.float32)
    one = many[0][1:]
    shared = torch.func.vmap(frozen_batch_norm, (0, None, None, None, None))(stacked[0], *one)
    close(shared, [frozen_batch_norm(t[0], *one) for t in many], torch.float32)
    scales = torch.func.vmap(frozen_batch_norm, (None, None, None, 1, None))(
        many[0][0], *one[:2], stacked[3].t(), one[3]
    )
    close(scales, [frozen_batch_norm(many[0][0], *one[:2], t[3], one[3]) for t in many], torch.float32)

    def loss(*t):
        return frozen_batch_norm(*t).pow(3).sum()

    leaves = [t.clone().requires_grad_() for t in many[1]]
    got = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(5))))(*stacked)
    for a, b in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(a[1], b, rtol=1e-4, atol=1e-3)


def test_frozen_autocast_computes_in_float32(device):
    tensors = maps_and_norm((2, 4, 3, 3), torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        got = frozen_batch_norm(*tensors)
    close([got], [reference_frozen_batch_norm(*(t.float() for t in tensors))], torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t[0][0, 0, 0], *t[1:]], r"input must be \[N, C, ...\] with at least 2 dimensions, got \[5\]"),
        (lambda t: [t[0].long(), *t[1:]], "input must be float64, float32, float16 or bfloat16, got Long"),
        (lambda t: [t[0], t[1][:3], *t[2:]], r"running_mean must be \[4\], .* of input, got \[3\]"),
        (lambda t: [*t[:2], t[2].double(), *t[3:]], "running_var and input must have one dtype, got Double and Float"),
        (lambda t: [*t[:3], t[3].repeat(2), t[4]], r"norm_weight must be \[4\], .*, got \[8\]"),
        (lambda t: [*t[:4], t[4].half()], "norm_bias and input must have one dtype, got Half and Float"),
    ],
)
def test_frozen_bad_input(change, message):
    with pytest.raises(RuntimeError, match=message):
        frozen_batch_norm(*change(maps_and_norm((2, 4, 3, 5))))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 33)),
    present=st.tuples(st.just(True), st.booleans(), st.booleans()),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_frozen_any_input(shape, present, dtype, last, seed):
    torch.manual_seed(seed)
    x, *entries = maps_and_norm(shape, dtype, present=present)
    x = x.to(memory_format=torch.channels_last) if last else x
    out = frozen_batch_norm(x, *entries)
    torch.testing.assert_close(out, reference_frozen_batch_norm(x, *entries), **TOLERANCE[dtype])


def reference_batch_norm_act(x, mean, var, gain, offset, eps, activation):
    """In float64, rounded once."""
    wide = [None if t is None else t.double() for t in (x, mean, var, gain, offset)]
    if x.numel() == 0:
        return x.clone()
    return FUNCTIONS[ACTIVATIONS.index(activation)](F.batch_norm(*wide, eps=eps)).to(x.dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_and_activation_in_place(dtype, shape, activation, device):
    for present in (ALL, (False, False, True)):
        _, _, *entries = drawn((shape[1], 1), dtype, device, present)
        x = (3 * torch.randn(shape, device=device)).to(dtype)
        want = reference_batch_norm_act(x, *entries, 1e-3, activation)
        shifted = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
        last = x.clone(memory_format=torch.channels_last) if x.ndim == 4 else x.clone()
        for view in (x.clone(), shifted, last):
            got = batch_norm_act_(view, *entries, 1e-3, activation)
            assert got is view
            torch.testing.assert_close(view, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_passes_through(activation, device):
    x = torch.tensor([[float("nan"), 1.0]], device=device).repeat(9, 1)
    batch_norm_act_(x, torch.zeros(2, device=device), torch.ones(2, device=device), activation=activation)
    assert x[:, 0].isnan().all()
    assert not x[:, 1].isnan().any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_bits_in_place(layout):
    _, _, *entries = drawn((70, 1))
    x = torch.randn(4, 70, 41, 31).contiguous(memory_format=layout)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(batch_norm_act_(x.clone(), *entries, activation="silu"))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("last", [False, True])
def test_opcheck_in_place(last, device):
    _, _, *entries = drawn((4, 1), device=device)
    x = torch.randn(2, 4, 3, 5, device=device)
    x = x.to(memory_format=torch.channels_last) if last else x
    torch.library.opcheck(torch.ops.cvops.batch_norm_act_.default, (x, *entries, 1e-5, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op, x, e: op(x[:, :, ::2], *e, 1e-5, 0), "input must be contiguous or channels_last, as it is changed"),
        (lambda op, x, e: op(x[0, 0, 0], *e, 1e-5, 0), r"input must be \[N, C, ...\] with at least 2 .*, got \[5\]"),
        (lambda op, x, e: op(x.long(), *e, 1e-5, 0), "input must be float64, .* got Long"),
        (lambda op, x, e: op(x, *e, 1e-5, 5), "activation must be 0 to 4, got 5"),
        (lambda op, x, e: op(x, *e, 1e-5, -1), "activation must be 0 to 4, got -1"),
        (
            lambda op, x, e: op(x[:, :3].contiguous(), *e, 1e-5, 0),
            r"running_mean must be \[3\], .* of input, got \[4\]",
        ),
        (
            lambda op, x, e: op(x.double(), *e, 1e-5, 0),
            "running_mean and input must have one dtype, got Float and Doub",
        ),
    ],
)
def test_bad_input_in_place(call, message):
    _, _, *entries = drawn((4, 1))
    with pytest.raises(ValueError, match=r"activation must be one of \(None, 'relu', .*\), got 'gelu'"):
        batch_norm_act_(torch.zeros(2, 4), *entries, activation="gelu")
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.cvops.batch_norm_act_.default, torch.zeros(2, 4, 3, 5), entries)
