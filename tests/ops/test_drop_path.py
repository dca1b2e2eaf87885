"""drop_path, drop_channel, scheduled_drop_path: values, rates, schedule, gradients, transforms, errors."""

import math

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import DropChannel, DropPath, ScheduledDropPath, drop_channel, drop_path, scheduled_drop_path
from cvops.ops.drop_path import reference_drop_path

DTYPES = list(TOLERANCE)
CALLS = {
    0: lambda x, p, **kwargs: drop_path(x, p, mode="batch", **kwargs),
    1: drop_path,
    2: drop_channel,
}
SIZES = [(7, 5), (6, 37, 4, 5), (3, 16, 2, 2), (2, 3, 2, 3, 4), (5, 4, 6), (0, 3, 2, 2), (4, 0, 2, 2)]


def exactly(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture(params=CALLS, ids=["batch", "row", "channel"])
def leading(request):
    return request.param


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(leading, size, dtype, device):
    x = torch.randn(size, device=device).to(dtype)
    layouts = [x, x.transpose(0, 1).contiguous().transpose(0, 1)]
    if x.ndim in (4, 5):
        layouts.append(x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d))
    for seed in (0, -3):
        expected = reference_drop_path(x, 0.4, seed, leading)
        for view in layouts:
            exactly(CALLS[leading](view, 0.4, seed=seed), expected)
    if x.ndim == 4:
        assert CALLS[leading](layouts[-1], 0.4).is_contiguous(memory_format=torch.channels_last)


def test_kept_samples_equal_timm_and_torchvision(device, torchvision):
    timm = pytest.importorskip("timm.layers")
    x = torch.rand(64, 3, 4, 4, device=device) + 0.5
    ours, theirs = drop_path(x, 0.3), timm.drop_path(x, 0.3, True)
    depth = torchvision.ops.stochastic_depth(x, 0.3, "row")
    for out in (ours, theirs, depth):
        kept = out.flatten(1)[:, 0] != 0
        torch.testing.assert_close(out[kept], x[kept] / 0.7)
        assert (out[~kept] == 0).all()
    unscaled = drop_path(x, 0.3, scale_by_keep=False)
    kept = unscaled.flatten(1)[:, 0] != 0
    exactly(unscaled[kept], x[kept])


def test_batch_mode_drops_all_samples_or_none(device):
    sums = {float(drop_path(torch.ones(4, 2, device=device), 0.5, mode="batch", seed=s).sum()) for s in range(12)}
    assert sums == {0.0, 16.0}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_drop_rate_is_p(p):
    n = 20_000
    for call in (drop_path, drop_channel):
        size = (n, 2) if call is drop_path else (n // 4, 4, 2)
        dropped = (call(torch.ones(size), p, seed=9) == 0).flatten(0, -2)[:, 0].double().mean().item()
        assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_probability_one_and_zero(leading, device):
    x = torch.randn(4, 3, 2, device=device)
    assert CALLS[leading](x, 0.0) is x
    assert CALLS[leading](x, 0.5, training=False) is x
    exactly(CALLS[leading](x, 1.0), torch.zeros_like(x))


def test_dropped_nan_is_zero(leading, device):
    x = torch.full((64, 8, 3), math.nan, device=device)
    out = CALLS[leading](
        x,
        0.5,
        seed=0
        if leading
        else next(s for s in range(20) if not drop_path(torch.ones(1), 0.5, mode="batch", seed=s).any()),
    )
    assert (out == 0).any()
    assert (out.isnan() | (out == 0)).all()


def test_manual_seed_governs(leading, device):
    x = torch.ones(64, 8, 2, device=device)
    torch.manual_seed(3)
    results = [CALLS[leading](x, 0.5) for _ in range(8)]
    torch.manual_seed(3)
    for result in results:
        assert torch.equal(CALLS[leading](x, 0.5), result)
    assert any(not torch.equal(r, results[0]) for r in results)


def test_schedule_grows_with_depth_and_time():
    x = torch.ones(4000, 1)
    for layer, layers, step, steps, share in (
        (12, 12, 100, 100, 1),
        (6, 12, 100, 100, 0.5),
        (6, 12, 50, 100, 0.25),
        (12, 12, 500, 100, 1),
    ):
        out = scheduled_drop_path(x, 0.4, layer, layers, step, steps, seed=1)
        exactly(out, drop_path(x, 0.4 * share, seed=1))
    assert scheduled_drop_path(x, 0.4, 0, 12, 100, 100) is x
    assert scheduled_drop_path(x, 0.4, 5, 12, 0, 100) is x


def test_modules_repeat_the_functions():
    x = torch.randn(6, 4, 3, 3)
    scheduled = ScheduledDropPath(0.8, 3, 4, 10)
    assert scheduled(x) is x
    scheduled.step = 5
    pairs = [
        (DropPath(0.4), lambda: drop_path(x, 0.4)),
        (DropPath(0.4, False, "batch"), lambda: drop_path(x, 0.4, scale_by_keep=False, mode="batch")),
        (DropChannel(0.4), lambda: drop_channel(x, 0.4)),
        (scheduled, lambda: scheduled_drop_path(x, 0.8, 3, 4, 5, 10)),
    ]
    for module, call in pairs:
        torch.manual_seed(2)
        expected = call()
        torch.manual_seed(2)
        exactly(module(x), expected)
        assert module.eval()(x) is x
        assert not module.state_dict()
    assert repr(DropPath(0.4, False)) == "DropPath(p=0.4, scale_by_keep=False)"


def test_views_that_start_anywhere(leading, device):
    x = torch.randn(5 * 6 * 7 + 1, device=device)[1:].reshape(5, 6, 7)
    exactly(CALLS[leading](x, 0.5, seed=1), CALLS[leading](x.clone(), 0.5, seed=1))
    exactly(CALLS[leading](x[:, :, ::2], 0.5, seed=1), CALLS[leading](x[:, :, ::2].contiguous(), 0.5, seed=1))


def test_gradcheck(leading, device):
    x = torch.randn(4, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: CALLS[leading](t, 0.5, seed=2), x)
    assert torch.autograd.gradgradcheck(lambda t: CALLS[leading](t, 0.5, seed=2), x)


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(leading, last, device):
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64, device=device)
    if last:
        x = x.to(memory_format=torch.channels_last)
    arguments = (x.requires_grad_(), torch.tensor([1], device=device), leading, 0.5, 2.0)
    torch.library.opcheck(torch.ops.cvops.drop_path.default, arguments)


def test_compile_fullgraph(leading, device):
    def loss(x):
        return CALLS[leading](x * 2, 0.5)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 8):
        x = torch.ones(n, 6, 4, device=device, requires_grad=True)
        out = compiled(x)
        assert set(out.unique().tolist()) <= {0.0, 4.0}
        exactly(torch.autograd.grad(out.sum(), x)[0], out.detach())


def test_vmap_and_func_grad(leading):
    x = torch.ones(16, 4, 3, 2)
    different = torch.func.vmap(lambda t: CALLS[leading](t, 0.5), randomness="different")(x)
    same = torch.func.vmap(lambda t: CALLS[leading](t, 0.5), randomness="same")(x)
    assert any(not torch.equal(d, different[0]) for d in different)
    assert all(torch.equal(s, same[0]) for s in same)

    def loss(t):
        return CALLS[leading](t, 0.5, seed=1).square().sum()

    leaf = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    exactly(torch.func.vmap(torch.func.grad(loss), randomness="same")(x)[0], expected)


def test_autocast_keeps_the_dtype(leading, device):
    x = torch.randn(4, 3, 2, device=device)
    with torch.autocast(device, torch.bfloat16):
        exactly(CALLS[leading](x, 0.5, seed=1), reference_drop_path(x, 0.5, 1, leading))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_bits(leading, layout):
    x = torch.randn(8, 70, 23, 31).contiguous(memory_format=layout)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(CALLS[leading](x, 0.3, seed=1))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: drop_path(x, -0.1), r"p must be in \[0, 1\], got -0.1"),
        (lambda x: drop_channel(x, 1.5), r"p must be in \[0, 1\], got 1.5"),
        (lambda x: drop_path(x, 0.1, mode="column"), r"mode must be one of \('batch', 'row'\), got 'column'"),
        (lambda x: drop_path(x[0, 0], 0.1), r"input must be \[N, ...\], got \[\]"),
        (lambda x: drop_channel(x[0], 0.1), r"input must be \[N, C, ...\], got \[3\]"),
        (lambda x: drop_path(x.long(), 0.1), "input must be float64, float32, float16 or bfloat16, got torch.int64"),
        (lambda x: drop_path(x, 0.1, seed=torch.zeros(2).long()), r"seed must be one int64 value, got Long \[2\]"),
        (lambda x: scheduled_drop_path(x, 2.0, 1, 2, 1, 2), r"p must be in \[0, 1\], got 2"),
        (lambda x: scheduled_drop_path(x, 0.1, 3, 2, 1, 2), r"layer must be in \[0, layers\] and layers >= 1, got 3"),
        (lambda x: scheduled_drop_path(x, 0.1, 1, 2, -1, 2), "step must be >= 0 and steps >= 1, got -1 and 2"),
        (lambda x: torch.ops.cvops.drop_path(x, torch.tensor([1]), 3, 0.1, 1.0), "leading must be 0, 1 or 2, got 3"),
        (lambda x: torch.ops.cvops.drop_path(x, torch.tensor([1]), 1, 0.0, 1.0), r"p must be in \(0, 1\], got 0"),
        (lambda x: torch.ops.cvops.drop_path(x, torch.tensor([1]), 1, 0.5, -1.0), "scale must be >= 0, got -1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(torch.zeros(2, 3))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    size=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    leading=st.integers(0, 2),
    p=st.floats(1e-6, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
)
def test_any_input(size, leading, p, seed, dtype, last):
    x = torch.randn(size).to(dtype)
    if last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    scale = 1 / (1 - p) if p < 1 else 1.0
    out = torch.ops.cvops.drop_path(x, torch.tensor([seed]), leading, p, scale)
    exactly(out, reference_drop_path(x, p, seed, leading))
