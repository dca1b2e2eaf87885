"""corner_pool: values, where the gradient goes, memory formats, transforms, errors."""

import math

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import CornerPool, corner_pool
from cvops.ops.corner_pool import DIRECTIONS, reference_corner_pool

DTYPES = list(TOLERANCE)
SIZES = [(2, 3, 5, 7), (1, 18, 4, 16), (2, 2, 21, 37), (1, 1, 1, 9), (3, 17, 6, 1), (0, 3, 4, 4), (2, 0, 4, 4)]
SIZES += [(2, 3, 0, 4), (2, 3, 4, 0)]


def exactly(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def awkward(size, dtype, device="cpu"):
    """Few different values, so that most maxima are tied, and some NaN and infinities."""
    x = torch.randint(-3, 4, size, device=device).double()
    odd = torch.rand(size, device=device)
    x[odd < 0.02] = math.nan
    x[(odd > 0.02) & (odd < 0.04)] = -math.inf
    x[odd > 0.99] = math.inf
    return x.to(dtype)


def layouts(x):
    """The same values as contiguous, channels_last, with gaps, transposed, and from an odd address."""
    gaps = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    shifted = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    yield x
    yield x.to(memory_format=torch.channels_last)
    yield gaps.copy_(x)
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    yield shifted.copy_(x)


def gradient(x, direction, grad, pool):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(pool(x, direction), x, grad)[0]


def reference_gradient(x, direction, grad):
    """In double, from the indices of cummax on the flipped tensor."""
    return gradient(x.double(), direction, grad.double(), reference_corner_pool).to(x.dtype)


@pytest.fixture(params=DIRECTIONS)
def direction(request):
    return request.param


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(direction, size, dtype, device):
    for x in (torch.randn(size, device=device).to(dtype), awkward(size, dtype, device)):
        expected = reference_corner_pool(x, direction)
        for view in layouts(x):
            exactly(corner_pool(view, direction), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_matches_reference(direction, size, dtype, device):
    for x in (torch.randn(size, device=device).to(dtype), awkward(size, dtype, device)):
        grad = torch.randn(size, device=device).to(dtype)
        expected = reference_gradient(x, direction, grad)
        for view, other in zip(layouts(x), reversed(list(layouts(grad))), strict=True):
            torch.testing.assert_close(gradient(view, direction, other, corner_pool), expected, **TOLERANCE[dtype])


def test_gather_takes_values_from_the_maxima(direction, device):
    for size in SIZES[:5]:
        x, values = awkward(size, torch.float32, device), torch.randn(size, device=device)
        axis = 2 if direction in ("top", "bottom") else 3
        flip = (lambda t: t.flip(axis)) if direction in ("top", "left") else (lambda t: t)  # noqa: B023
        expected = flip(flip(values).gather(axis, flip(x).cummax(axis).indices))
        for view, other in zip(layouts(x), reversed(list(layouts(values))), strict=True):
            exactly(torch.ops.cvops.corner_pool_gather(other, view, DIRECTIONS.index(direction)), expected)


def test_long_lines(direction, device):
    """Longer than the pieces that kernels work in, with records in some of them only."""
    x = torch.randint(0, 300, (1, 1, 3, 700), device=device).float()
    x[..., 300:] += torch.arange(400, device=device) * (x[..., 300:] > 290)
    if direction in ("top", "bottom"):
        x = x.transpose(2, 3)
    for view in layouts(x):
        exactly(corner_pool(view, direction), reference_corner_pool(x, direction))
        grad = torch.randint(-8, 9, x.shape, device=device).float()
        exactly(gradient(view, direction, grad, corner_pool), reference_gradient(x, direction, grad))
        exactly(torch.ops.cvops.corner_pool_gather(x, view, DIRECTIONS.index(direction)), corner_pool(x, direction))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_many_columns(dtype, device):
    """As many as make CUDA threads take several neighbours each."""
    columns = 1 << (16 if dtype == torch.float64 else 18)
    x, grad = (torch.randint(-3, 4, (1, 1, 3, columns), device=device).to(dtype) for _ in range(2))
    for direction in ("top", "bottom"):
        exactly(corner_pool(x, direction), reference_corner_pool(x, direction))
        exactly(gradient(x, direction, grad, corner_pool), reference_gradient(x, direction, grad))
        exactly(torch.ops.cvops.corner_pool_gather(x, x, DIRECTIONS.index(direction)), corner_pool(x, direction))


def test_directions_are_those_of_mmcv(device):
    x = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0], [2.0, 1.0, 0.0]], device=device)[None]
    expected = {
        "top": [[4, 5, 3], [4, 1, 3], [2, 1, 0]],
        "bottom": [[1, 5, 2], [4, 5, 3], [4, 5, 3]],
        "left": [[5, 5, 2], [4, 3, 3], [2, 1, 0]],
        "right": [[1, 5, 5], [4, 4, 4], [2, 2, 2]],
    }
    for direction, values in expected.items():
        exactly(corner_pool(x, direction), torch.tensor(values, device=device).float()[None])


@pytest.mark.parametrize("last", [False, True])
def test_tied_maxima_give_the_gradient_to_the_nearest(direction, last, device):
    """The authors' kernels keep the first maximum of the walk instead; torch.cummax, and so we, the last."""
    line = torch.tensor([2.0, 2.0, 1.0, 2.0, 0.0], device=device)
    grad = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0], device=device)
    expected = torch.tensor([1.0, 110.0, 0.0, 11000.0, 0.0], device=device)
    if direction in ("top", "left"):
        line, grad, expected = line.flip(0), grad.flip(0), expected.flip(0)
    shape = (1, 1, 5, 1) if direction in ("top", "bottom") else (1, 1, 1, 5)
    maps = [t.view(shape).repeat(1, 3, 2, 2) for t in (line, grad, expected)]
    maps = [t[..., :5, :2] if shape[2] == 5 else t[..., :2, :5] for t in maps]
    if last:
        maps = [t.contiguous(memory_format=torch.channels_last) for t in maps]
    exactly(gradient(maps[0], direction, maps[1], corner_pool), maps[2])


def test_nan_reaches_every_pixel_after_it(direction, device):
    x = torch.zeros(1, 2, 9, 9, device=device)
    x[0, 0, 4, 4] = math.nan
    out = corner_pool(x, direction)
    found = out[0, 0].isnan().nonzero().tolist()
    after = {
        "top": [[y, 4] for y in range(5)],
        "bottom": [[y, 4] for y in range(4, 9)],
        "left": [[4, x] for x in range(5)],
        "right": [[4, x] for x in range(4, 9)],
    }
    assert found == after[direction]
    exactly(out[0, 1], x[0, 1])
    assert gradient(x, direction, torch.ones_like(x), corner_pool)[0, 0, 4, 4] == 5


def test_minus_infinity_only(direction, device):
    x = torch.full((1, 2, 3, 4), -math.inf, device=device)
    exactly(corner_pool(x, direction), x)
    exactly(gradient(x, direction, torch.ones_like(x), corner_pool), torch.ones_like(x))


def test_large_half_gradient_saturates(direction, device):
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float16, device=device)
    x[0, 0, 0] = x[0, 0, -1] = x[0, 0, :, 0] = x[0, 0, :, -1] = 1
    x = x.where(x == 0, torch.arange(16, device=device).view(4, 4).half())
    found = gradient(x, direction, torch.full_like(x, 50000), corner_pool)
    assert found.isfinite().all()
    assert found.max() == 65504


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_keeps_the_memory_format(direction, layout, device):
    x = torch.randn(2, 3, 4, 5, device=device).to(memory_format=layout)
    assert corner_pool(x, direction).is_contiguous(memory_format=layout)
    assert gradient(x, direction, torch.ones(2, 3, 4, 5, device=device), corner_pool).is_contiguous(
        memory_format=layout
    )


def test_map_without_batch_and_module(direction, device):
    x = torch.randn(3, 5, 6, device=device)
    exactly(corner_pool(x, direction), corner_pool(x[None], direction)[0])
    exactly(CornerPool(direction)(x), corner_pool(x, direction))
    assert repr(CornerPool(direction)) == f"CornerPool(direction='{direction}')"
    assert not CornerPool(direction).state_dict()
    x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert corner_pool(x, direction).stride() == x.stride()


def test_backward_keeps_the_input_only(direction, device):
    saved = []
    x = torch.randn(1, 2, 8, 8, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        corner_pool(x, direction)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


def test_gradcheck(direction, device):
    x = torch.randperm(2 * 2 * 4 * 3, device=device).double().view(2, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: corner_pool(t, direction), x)
    assert torch.autograd.gradgradcheck(lambda t: corner_pool(t, direction), x)
    assert torch.autograd.gradgradcheck(lambda t: corner_pool(t, direction).square(), x)


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(direction, last, device):
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, device=device)
    other = torch.randn(2, 4, 3, 5, dtype=torch.float64, device=device)
    if last:
        x = x.to(memory_format=torch.channels_last)
    index = DIRECTIONS.index(direction)
    torch.library.opcheck(torch.ops.cvops.corner_pool.default, (x.clone().requires_grad_(), index))
    for op in (torch.ops.cvops.corner_pool_backward.default, torch.ops.cvops.corner_pool_gather.default):
        torch.library.opcheck(op, (other.clone().requires_grad_(), x, index))


def test_compile_fullgraph(direction, device):
    def run(x):
        return corner_pool(x * 2, direction) + 1

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 3, 4, 5), (3, 4, 6, 7)):
        x = torch.randn(size, device=device, requires_grad=True)
        out = compiled(x)
        exactly(out, run(x))
        grad = torch.randn(size, device=device)
        exactly(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(run(x), x, grad)[0])


def test_vmap_and_func_grad(direction, device):
    x = torch.randn(3, 2, 3, 4, 5, device=device)
    out = torch.func.vmap(lambda t: corner_pool(t, direction), in_dims=1, out_dims=1)(x)
    exactly(out, corner_pool(x.flatten(0, 1), direction).view_as(x))

    def loss(t):
        return corner_pool(t, direction).square().sum()

    expected = gradient(x.flatten(0, 1), direction, 2 * corner_pool(x.flatten(0, 1), direction), corner_pool)
    exactly(torch.func.vmap(torch.func.grad(loss))(x), expected.view_as(x))
    tangent = torch.randn_like(x[0])
    pushed = torch.func.vmap(lambda t: torch.func.jvp(lambda u: corner_pool(u, direction), (t,), (tangent,))[1])(x)
    gathered = torch.ops.cvops.corner_pool_gather(
        tangent.expand_as(x).flatten(0, 1), x.flatten(0, 1), DIRECTIONS.index(direction)
    )
    exactly(pushed, gathered.view_as(x))


def test_autocast_keeps_the_dtype(direction, device):
    x = torch.randn(1, 3, 4, 5, device=device)
    with torch.autocast(device, torch.bfloat16):
        exactly(corner_pool(x, direction), reference_corner_pool(x, direction))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(2, 18, 33, 40), (1, 1, 60, 90)], ids=str)
def test_threads_do_not_change_bits(direction, layout, size):
    x, grad = (torch.randn(size).contiguous(memory_format=layout) for _ in range(2))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append((corner_pool(x, direction), gradient(x, direction, grad, corner_pool)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: corner_pool(x, "up"), r"direction must be one of \('top', 'bottom', 'left', 'right'\), got 'up'"),
        (lambda x: CornerPool("down"), "direction must be one of .* got 'down'"),
        (lambda x: corner_pool(x[0, 0], "top"), r"input must be \[N, C, H, W\] or \[C, H, W\], got \[4, 5\]"),
        (lambda x: corner_pool(x.int(), "top"), "input must be float64, float32, float16 or bfloat16, got torch.int32"),
        (lambda x: torch.ops.cvops.corner_pool(x[0], 0), r"corner_pool: input must be \[N, C, H, W\], got \[3, 4, 5\]"),
        (lambda x: torch.ops.cvops.corner_pool(x, 4), r"direction must be 0 \(top\), .* or 3 \(right\), got 4"),
        (lambda x: torch.ops.cvops.corner_pool(x, -1), "direction must be 0 .* got -1"),
        (lambda x: torch.ops.cvops.corner_pool(x.long(), 0), "corner_pool: input must be float64, .* got Long"),
        (
            lambda x: torch.ops.cvops.corner_pool_backward(x[:, :2], x, 0),
            r"corner_pool_backward: grad must have the shape of input, \[2, 3, 4, 5\], got \[2, 2, 4, 5\]",
        ),
        (
            lambda x: torch.ops.cvops.corner_pool_gather(x.double(), x, 0),
            "corner_pool_gather: values and input must have one dtype, got Double and Float",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(torch.zeros(2, 3, 4, 5))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 40)),
    name=st.sampled_from(DIRECTIONS),
    layout=st.integers(0, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_input(size, name, layout, dtype, seed):
    torch.manual_seed(seed)
    x, grad = awkward(size, dtype), torch.randint(-3, 4, size).to(dtype)
    view = list(layouts(x))[layout]
    exactly(corner_pool(view, name), reference_corner_pool(x, name))
    exactly(gradient(view, name, grad, corner_pool), reference_gradient(x, name, grad))
