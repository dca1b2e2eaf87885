"""drop_block2d, drop_block3d: values, drop rate, seeds, memory formats, gradients, transforms, errors."""

import math

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import DropBlock2d, DropBlock3d, drop_block2d, drop_block3d
from cvops.ops._random import reference_philox
from cvops.ops.drop_block import reference_drop_block, reference_drop_block_gamma

DTYPES = list(TOLERANCE)
# size, block, p: even blocks, blocks larger than one or both sides, rows of more than one word, blocks of more than one
CASES = [
    ((2, 3, 14, 14), (7, 7), 0.1),
    ((1, 2, 5, 9), (4, 4), 0.5),
    ((2, 2, 7, 7), (9, 9), 0.3),
    ((1, 1, 40, 200), (70, 70), 0.2),
    ((1, 2, 67, 130), (3, 2), 0.3),
    ((1, 1, 3, 300), (2, 129), 0.4),
    ((3, 5, 1, 1), (1, 1), 0.5),
    ((2, 2, 16, 64), (2, 2), 1.0),
    ((3, 5, 17, 19), (5, 4), 0.1),
    ((2, 70, 4, 5, 6), (2, 3, 2), 0.3),
    ((1, 3, 6, 7, 8), (3, 3, 3), 0.05),
    ((1, 3, 2, 9, 66), (5, 4, 65), 0.6),
]
BOTH = {4: drop_block2d, 5: drop_block3d}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def drop(x, block, p, **kwargs):
    return BOTH[x.ndim](x, p, block, **kwargs)


def mask_of(size, block, p, seed):
    return drop(torch.ones(size), block, p, seed=seed) != 0


def exactly(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(case, dtype, device):
    size, block, p = case
    x = torch.randn(size, device=device).to(dtype)
    expected = reference_drop_block(x, p, block, seed=-7)
    for view in (x, x.to(memory_format=LAST[x.ndim]), x.transpose(0, 1).contiguous().transpose(0, 1)):
        out = drop(view, block, p, seed=-7)
        exactly(out, expected)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=LAST[x.ndim]) or out.is_contiguous()
    assert drop(x.to(memory_format=LAST[x.ndim]), block, p, seed=-7).is_contiguous(memory_format=LAST[x.ndim])


def test_philox_known_answers():
    """The vectors that are published with Random123 for ten rounds."""
    zero = [int(w[0]) for w in reference_philox(0, torch.tensor([0]), 0)]
    assert zero == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_values_and_scale_are_those_of_torchvision(dtype, device, torchvision):
    """Masks are random, so what can be compared is the rule: zeros, and the others times numel / kept."""
    x = torch.rand(4, 8, 16, 16, device=device).to(dtype) + 0.5
    peer = torchvision.ops.drop_block2d(x.double(), 0.2, 5)
    ours = drop_block2d(x, 0.2, 5)
    for out in (peer, ours):
        kept = out != 0
        scaled = x[kept].double() * x.numel() / (1e-6 + int(kept.sum()))
        torch.testing.assert_close(out[kept].double(), scaled, **TOLERANCE[dtype])


# What users report about other implementations.


@pytest.mark.parametrize("size", [(8, 8), (14, 14), (14, 9)])
@pytest.mark.parametrize("block", [2, 4, 6])
def test_even_block_sizes_drop_whole_blocks(size, block, device):
    kept = drop_block2d(torch.ones(1, 4, *size, device=device), 0.3, block, seed=3) != 0
    dropped = (~kept).float()
    # Opening with the block changes nothing: what is dropped is a union of whole blocks.
    inside = -torch.nn.functional.max_pool2d(-dropped, block, 1)
    again = torch.nn.functional.max_pool2d(torch.nn.functional.pad(inside, [block - 1] * 4), block, 1)
    assert torch.equal(again, dropped)
    assert dropped.any()


@pytest.mark.parametrize("size", [(3, 5), (5, 3), (1, 9), (2, 2), (1, 1)])
def test_maps_smaller_than_the_block(size, device):
    kept = drop_block2d(torch.ones(500, 4, *size, device=device), 0.3, 7, seed=0) != 0
    if max(size) <= 7:  # the block covers the map: all or nothing
        flat = kept.flatten(2)
        assert torch.equal(flat.any(2), flat.all(2))
    assert abs((~kept).float().mean().item() - 0.3) < 0.04


def test_height_and_width_are_not_mixed_up(device):
    """A block of 1 x 5 drops runs along the width, one of 5 x 1 along the height, on maps that are not square."""
    ones = torch.ones(1, 3, 9, 40, device=device)
    wide, tall = (~(drop_block2d(ones, 0.2, block, seed=5) != 0) for block in ((1, 5), (5, 1)))
    run = torch.nn.functional.max_pool2d(-wide.float(), (1, 5), 1)
    assert (run == -1).any()
    assert wide.any()
    assert tall.any()
    column = torch.nn.functional.max_pool2d(-tall.float(), (5, 1), 1)
    assert (column == -1).sum() * 5 >= tall.sum()
    assert (run == -1).sum() * 5 >= wide.sum()


@pytest.mark.parametrize(
    ("size", "block", "p"),
    [
        ((14, 14), 7, 0.1),
        ((14, 14), 7, 0.5),
        ((7, 7), 7, 0.1),
        ((8, 20), 4, 0.3),
        ((16, 16), 1, 0.1),
        ((64, 64), 7, 0.1),
    ],
)
def test_drop_rate_is_p_on_small_and_large_maps(size, block, p, on_cuda_host):
    """Where others drop 21 % for p = 0.1 (14 x 14, block 7). Planes are independent, so the mean over n of them is
    within 5 standard errors; on the CPU there are enough for 1 % of p."""
    n = 300 if on_cuda_host else 200_000_000 // (size[0] * size[1] * 100)
    share = (drop_block2d(torch.ones(1, n, *size), p, block, seed=11) == 0).float().mean((0, 2, 3))
    error = abs(share.double().mean().item() - p)
    assert error <= 5 * share.std().item() / math.sqrt(n)
    if not on_cuda_host and n >= 10_000:
        assert error <= 0.03 * p


@pytest.mark.parametrize("size", [(14, 14), (5, 9), (6, 7, 8)])
@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.9])
def test_expected_drop_rate_is_p_exactly(size, block, p):
    """Exact, not sampled: the mean over elements of 1 - (1 - gamma)^c, with c counted by pooling."""
    sides = [min(block, n) for n in size]
    gamma = reference_drop_block_gamma(size, sides, p)
    region = torch.ones(1, *[n - b + 1 for n, b in zip(size, sides, strict=True)], dtype=torch.float64)
    kernel = torch.ones(1, 1, *sides, dtype=torch.float64)
    convolve = torch.nn.functional.conv_transpose2d if len(size) == 2 else torch.nn.functional.conv_transpose3d
    cover = convolve(region[None], kernel)
    assert (1 - (1 - gamma) ** cover).mean().item() == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_do_not_overflow_the_normaliser(dtype, device, on_cuda_host):
    """4 M float16 elements, where a sum in float16 is infinite and the result of others all zero."""
    size = (8, 8, 32, 32) if on_cuda_host else (64, 64, 32, 32)
    out = drop_block2d(torch.ones(size, dtype=dtype, device=device), 0.1, 7, seed=0)
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.9) < 0.05
    expected = torch.tensor(out.numel() / (1e-6 + int(kept.sum()))).to(dtype)
    assert (out[kept] == expected.to(device)).all()


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_everything_dropped_is_zero_not_nan(eps, device):
    x = torch.randn(2, 3, 5, 5, device=device, requires_grad=True)
    out = drop_block2d(x, 1.0, 3, eps=eps)
    assert torch.equal(out, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.zeros_like(x))


def test_dropped_nan_and_infinity_are_zero(device):
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0], device=device).repeat(64).reshape(1, 4, 8, 8)
    kept = drop_block2d(torch.ones_like(x), 0.5, 2, seed=1) != 0
    assert torch.equal(drop_block2d(x, 0.5, 2, seed=1)[~kept], torch.zeros(int((~kept).sum()), device=device))


# Seeds.


def test_manual_seed_governs(device):
    x = torch.ones(2, 8, 16, 16, device=device)
    torch.manual_seed(5)
    first, second = drop_block2d(x, 0.3, 3), drop_block2d(x, 0.3, 3)
    torch.manual_seed(5)
    assert torch.equal(drop_block2d(x, 0.3, 3), first)
    assert not torch.equal(first, second)
    generators = [torch.Generator(device).manual_seed(9) for _ in range(2)]
    a, b = (drop_block2d(x, 0.3, 3, generator=g) for g in generators)
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="seed and generator"):
        drop_block2d(x, 0.3, 3, generator=generators[0], seed=1)


def test_mask_does_not_depend_on_dtype_or_memory_format(device):
    x = torch.ones(2, 5, 9, 11, device=device)
    masks = [
        drop_block2d(x.to(dtype, memory_format=layout), 0.4, 3, seed=8) != 0
        for dtype in DTYPES
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert all(torch.equal(m, masks[0]) for m in masks)


def test_planes_and_seeds_are_independent():
    kept = mask_of((40, 50, 6, 6), (6, 6), 0.5, seed=2)[..., 0, 0]
    assert abs((kept[:, 1:] == kept[:, :-1]).float().mean().item() - 0.5) < 0.06
    other = mask_of((40, 50, 6, 6), (6, 6), 0.5, seed=3)[..., 0, 0]
    assert abs((kept == other).float().mean().item() - 0.5) < 0.06


def test_ties_of_the_first_sixteen_bits():
    """Where 16 bits do not decide about a seed, 48 more do. A gamma of (k + 1/2) / 65536 makes half of the ties seeds;
    with block 1, gamma is p. Each of these seeds has a tie in a map of this size; one is dropped and one is kept."""
    k, size, decisions = 700, (1, 1, 60, 100), set()
    index = torch.arange(6000)
    for seed in (8, 11):
        words = torch.stack(reference_philox(seed, index // 128 * 16 + index % 32 // 2, 0))
        piece = words.gather(0, (index % 128 // 32)[None])[0] >> index % 2 * 16 & 0xFFFF
        out = drop_block2d(torch.ones(size), (k + 0.5) / 65536, 1, seed=seed)
        exactly(out, reference_drop_block(torch.ones(size), (k + 0.5) / 65536, (1, 1), seed))
        decisions |= {bool(x == 0) for x in out.flatten()[piece == k]}
    assert decisions == {False, True}


@pytest.mark.parametrize("p", [1 / 130, 1 / 127])
def test_both_ways_to_draw_seeds(p, device):
    """Up to a gamma of 1/128 gaps are drawn, above seeds; some words have three seeds and more, which take several
    counters."""
    x = torch.ones(1, 1, 100, 256, device=device)
    out = drop_block2d(x, p, 1, seed=6)
    exactly(out, reference_drop_block(x, p, (1, 1), 6))
    assert ((out == 0).reshape(-1, 64).sum(1) >= 4).any()


# The rest of the contract.


def test_identity_without_training_or_p():
    x = torch.randn(2, 3, 4, 4)
    assert drop_block2d(x, 0.0, 3) is x
    assert drop_block2d(x, 0.5, 3, training=False) is x
    assert DropBlock2d(0.5, 3).eval()(x) is x


def test_modules_repeat_the_functions():
    for module, function, size in (
        (DropBlock2d, drop_block2d, (2, 3, 8, 8)),
        (DropBlock3d, drop_block3d, (1, 2, 4, 5, 6)),
    ):
        x = torch.randn(size)
        torch.manual_seed(1)
        expected = function(x, 0.3, 3)
        torch.manual_seed(1)
        assert torch.equal(module(0.3, 3)(x), expected)
        torch.manual_seed(1)
        written = x.clone()
        assert module(0.3, 3, inplace=True)(written) is written
        assert torch.equal(written, expected)
        assert not module(0.3, 3).state_dict()
    assert repr(DropBlock2d(0.1, 7)) == "DropBlock2d(p=0.1, block_size=7, inplace=False)"


@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (1, 1, 3, 0, 2)])
def test_empty(size, device):
    x = torch.zeros(size, device=device, requires_grad=True)
    out = drop(x, 2, 0.5)
    assert out.shape == size
    assert torch.autograd.grad(out.sum(), x)[0].shape == size


def test_inputs_that_start_anywhere(device):
    """Views that start between vectors, and expanded and strided ones."""
    base = torch.randn(2 * 3 * 10 * 12 + 3, device=device)
    x = base[3:].reshape(2, 3, 10, 12)
    exactly(drop_block2d(x, 0.3, 3, seed=1), drop_block2d(x.clone(), 0.3, 3, seed=1))
    strided = x[:, :, ::2, 1::3]
    exactly(drop_block2d(strided, 0.3, 3, seed=1), drop_block2d(strided.contiguous(), 0.3, 3, seed=1))
    expanded = x[:1].expand(4, 3, 10, 12)
    exactly(drop_block2d(expanded, 0.3, 3, seed=1), drop_block2d(expanded.contiguous(), 0.3, 3, seed=1))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_inplace_writes_and_keeps_autograd(layout, device):
    def source():
        leaf = torch.arange(2.0 * 3 * 8 * 8, device=device).reshape(2, 3, 8, 8).requires_grad_()
        x = leaf * 2
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        return leaf, x[:, :, ::2] if layout == "strided" else x

    leaf, x = source()
    expected = drop_block2d(x, 0.4, 3, seed=6)
    (expected_grad,) = torch.autograd.grad((expected * 3).sum(), leaf)
    leaf, x = source()
    version = x._version
    out = drop_block2d(x, 0.4, 3, inplace=True, seed=6)
    assert out.data_ptr() == x.data_ptr()
    assert x._version > version
    exactly(x, expected)
    exactly(torch.autograd.grad((out * 3).sum(), leaf)[0], expected_grad)
    with pytest.raises(RuntimeError, match="leaf"):
        drop_block2d(torch.ones(1, 1, 2, 2, device=device, requires_grad=True), 0.5, 1, inplace=True)


def test_inplace_without_gradients_is_seen_by_saved_tensors(device):
    x = torch.ones(1, 2, 4, 4, device=device)
    weight = torch.ones_like(x, requires_grad=True)
    product = x * weight
    drop_block2d(x, 0.5, 2, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("size", [(2, 3, 5, 4), (1, 2, 3, 4, 3)])
def test_gradcheck(size, device):
    x = torch.randn(size, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: drop(t, 2, 0.4, seed=1), x)
    assert torch.autograd.gradgradcheck(lambda t: drop(t, 2, 0.4, seed=1), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_is_the_same_mask_and_scale(dtype, layout, device):
    x = torch.randn(2, 9, 13, 7, device=device).to(dtype, memory_format=layout).requires_grad_()
    grad = torch.randn(2, 9, 13, 7, device=device).to(dtype)
    (ours,) = torch.autograd.grad(drop_block2d(x, 0.3, 3, seed=2), x, grad)
    exactly(ours, reference_drop_block(grad, 0.3, (3, 3), 2))


@pytest.mark.parametrize("size", [(2, 3, 6, 5), (1, 2, 3, 4, 5), (0, 2, 4, 4)])
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(size, last, device):
    x = torch.randn(size, dtype=torch.float64, device=device)
    if last:
        x = x.to(memory_format=LAST[x.ndim])
    block = [2] * (x.ndim - 2)
    seed = torch.tensor([3], device=device)
    torch.library.opcheck(torch.ops.cvops.drop_block_mask.default, (x, seed, block, 0.3))
    mask, kept = torch.ops.cvops.drop_block_mask(x, seed, block, 0.3)
    torch.library.opcheck(torch.ops.cvops.drop_block.default, (x.clone().requires_grad_(), mask, kept, 1e-6))
    torch.library.opcheck(torch.ops.cvops.drop_block_.default, (x.clone(), mask, kept, 1e-6))


@pytest.mark.parametrize("inplace", [False, True])
def test_compile_fullgraph(inplace, device):
    def double(x):
        y = drop_block2d(x * 2, 0.5, 3, inplace)
        return y * 1

    compiled = torch.compile(double, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 5):
        x = torch.rand(n, 4, 9, 10, device=device) + 0.5
        x.requires_grad_()
        out = compiled(x)
        kept = out != 0
        scale = out.numel() / (1e-6 + int(kept.sum()))
        assert 0 < kept.float().mean().item() < 1
        torch.testing.assert_close(out[kept], x[kept] * 2 * scale)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], kept * 2 * scale)


def test_vmap_randomness():
    x = torch.ones(4, 2, 3, 8, 8)

    def sample(t):
        return drop_block2d(t, 0.4, 2)

    different = torch.func.vmap(sample, randomness="different")(x)
    same = torch.func.vmap(sample, randomness="same")(x)
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])
    for example in (*different, same[0]):  # every example has a normaliser of its own
        kept = example != 0
        torch.testing.assert_close(example[kept].unique(), torch.tensor([384 / (1e-6 + int(kept.sum()))]))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(sample)(x)


def test_func_grad_and_vmap_of_grad():
    x = torch.randn(3, 1, 2, 6, 6, dtype=torch.float64)

    def loss(t):
        return drop_block2d(t, 0.4, 2, seed=5).square().sum()

    leaf = x[1].clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(x[1]), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss), randomness="same")(x)[1], expected)


def test_autocast_keeps_the_dtype(device):
    x = torch.randn(1, 2, 6, 6, device=device)
    with torch.autocast(device, torch.bfloat16):
        out = drop_block2d(x, 0.3, 2, seed=1)
        half = drop_block2d(x.bfloat16(), 0.3, 2, seed=1)
    exactly(out, drop_block2d(x, 0.3, 2, seed=1))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_bits(layout):
    x = torch.randn(4, 70, 33, 41).contiguous(memory_format=layout)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(drop_block2d(x, 0.2, 5, seed=1))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: drop_block2d(x, -0.1, 3), r"p must be in \[0, 1\], got -0.1"),
        (lambda x: drop_block2d(x, 1.1, 3), r"p must be in \[0, 1\], got 1.1"),
        (lambda x: drop_block2d(x, math.nan, 3), r"p must be in \[0, 1\], got nan"),
        (lambda x: drop_block2d(x, 0.1, 0), "block_size must be one or 2 integers >= 1, got 0"),
        (lambda x: drop_block2d(x, 0.1, (3, 3, 3)), "block_size must be one or 2 integers"),
        (lambda x: drop_block2d(x, 0.1, 3, eps=-1.0), "eps must be >= 0, got -1"),
        (lambda x: drop_block2d(x[0], 0.1, 3), r"input must be \[N, C, H, W\], got \[2, 4, 4\]"),
        (lambda x: drop_block3d(x, 0.1, 3), r"input must be \[N, C, D, H, W\], got \[1, 2, 4, 4\]"),
        (
            lambda x: drop_block2d(x.int(), 0.1, 3),
            "input must be float64, float32, float16 or bfloat16, got torch.int32",
        ),
        (lambda x: drop_block2d(x, 0.1, 3, seed=2**63), "seed must fit into int64"),
        (
            lambda x: drop_block2d(x, 0.1, 3, seed=torch.zeros(2).long()),
            r"seed must be one int64 value, got Long \[2\]",
        ),
        (lambda x: drop_block2d(x, 0.1, 3, seed=torch.zeros(1)), r"seed must be one int64 value, got Float \[1\]"),
        (lambda x: torch.ops.cvops.drop_block_mask(x, torch.tensor([1]), [3], 0.1), "block must have 2 sizes"),
        (lambda x: torch.ops.cvops.drop_block_mask(x, torch.tensor([1]), [3, 0], 0.1), "block must be >= 1, got 0"),
        (lambda x: torch.ops.cvops.drop_block_mask(x, torch.tensor([1]), [3, 3], 0.0), r"p must be in \(0, 1\], got 0"),
        (
            lambda x: torch.ops.cvops.drop_block(x, torch.zeros(1).long(), torch.zeros(1).long(), 0.0),
            r"mask must be 2 contiguous int64 words for input \[1, 2, 4, 4\], got Long \[1\]",
        ),
        (
            lambda x: torch.ops.cvops.drop_block(x, torch.zeros(2).long(), torch.zeros(2).long(), 0.0),
            "kept must be one int64 value",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(torch.zeros(1, 2, 4, 4))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 140)),
    block=st.tuples(st.integers(1, 12), st.integers(1, 150)),
    p=st.floats(1e-6, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
)
def test_any_input(size, block, p, seed, dtype, last):
    x = torch.randn(size).to(dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    exactly(drop_block2d(x, p, block, seed=seed), reference_drop_block(x, p, block, seed))
