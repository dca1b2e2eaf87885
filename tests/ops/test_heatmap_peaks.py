"""heatmap_peaks: the composition it replaces, plateaus, ties, padding, NaN, gradients, transforms, memory."""

import pytest
import torch
import torch.nn.functional as F
from conftest import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import HeatmapPeaks, heatmap_peaks
from cvops.ops.heatmap_peaks import reference_heatmap_peaks

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


def same(ours, theirs):
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def centernet_decode(heat, k, kernel=3):
    """`_nms` and `_topk` of CenterNet (arXiv:1904.07850): the peer that everybody copies."""
    height, width = heat.shape[2:]
    heat = heat * (F.max_pool2d(heat, kernel, 1, kernel // 2) == heat).to(heat.dtype)
    scores, places = torch.topk(heat.flatten(2), min(k, height * width))
    best, index = torch.topk(scores.flatten(1), k)
    places = places.flatten(1).gather(1, index)
    return best, index // scores.shape[2], places // width, places % width


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "k", "kernel"),
    [
        ((2, 3, 9, 11), 7, 3),
        ((1, 4, 70, 71), 20, 3),
        ((2, 1, 1, 37), 5, 5),
        ((1, 2, 40, 3), 300, 1),
        ((1, 2, 6, 5), 4, 13),
    ],
)
def test_matches_reference(shape, k, kernel, dtype, device):
    heat = torch.randn(shape, device=device).to(dtype)
    out = heatmap_peaks(heat, k, kernel)
    assert [t.dtype for t in out] == [dtype, *[torch.int64] * 3]
    same(out, reference_heatmap_peaks(heat, k, kernel))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_centernet(kernel, device):
    heat = torch.randperm(2 * 3 * 20 * 24, device=device).view(2, 3, 20, 24) / 4096 + 0.1  # no ties
    same(heatmap_peaks(heat, 12, kernel), centernet_decode(heat, 12, kernel))


@pytest.mark.parametrize(("shape", "k"), [((1, 2, 70, 60), 40), ((1, 1, 70, 60), 4500)])
def test_a_constant_map_gives_the_lowest_indices(shape, k, device):
    """Every element of a plateau is a peak, as where hmax == heat."""
    scores, classes, ys, xs = heatmap_peaks(torch.zeros(shape, device=device), k)
    count = min(k, 4200)
    assert (scores[:, :count] == 0).all()
    index = classes * 4200 + ys * 60 + xs
    assert torch.equal(index[0, :count], torch.arange(count, device=device))
    assert (scores[:, count:] == -INF).all()
    assert all((t[:, count:] == -1).all() for t in (classes, ys, xs))


def test_ties_go_to_the_lowest_class_then_row_then_column(device):
    heat = torch.zeros(1, 3, 20, 20, device=device) - 1
    places = [(0, 15, 3), (1, 2, 4), (1, 2, 9), (1, 7, 0), (2, 0, 0)]
    for c, y, x in reversed(places):
        heat[0, c, y, x] = 0.5
    heat[0, 2, 9, 9] = 0.75
    out = heatmap_peaks(heat, 5)
    assert torch.stack(out[1:], -1)[0].tolist() == [[2, 9, 9], *map(list, places[:4])]


def test_zeros_of_both_signs_tie(device):
    heat = torch.full((1, 1, 1, 5), -1.0, device=device)
    heat[..., 1], heat[..., 3] = -0.0, 0.0
    scores, _, _, xs = heatmap_peaks(heat, 2)
    assert xs.tolist() == [[1, 3]]
    assert scores.signbit().tolist() == [[True, False]]


def test_fewer_peaks_than_k_leave_unmistakable_places(device):
    """A score of 0 there would outrank the negative peaks of logits."""
    heat = torch.tensor([[-3.0, -9.0, -5.0]], device=device).view(1, 1, 1, 3)
    scores, *places = heatmap_peaks(heat, 4)
    assert scores.tolist() == [[-3, -5, -INF, -INF]]
    assert [t.tolist() for t in places] == [[[0, 0, -1, -1]], [[0, 0, -1, -1]], [[0, 2, -1, -1]]]


def test_nan_and_minus_infinity_are_no_peaks_and_hide_none(device):
    heat = torch.tensor([[1.0, NAN, -INF, INF, NAN, 0.5, -INF]], device=device).view(1, 1, 1, 7)
    scores, _, _, xs = heatmap_peaks(heat, 5)
    assert scores.tolist() == [[INF, 1, 0.5, -INF, -INF]]
    assert xs.tolist() == [[3, 0, 5, -1, -1]]
    for nothing in (NAN, -INF):
        scores, classes, _, _ = heatmap_peaks(torch.full((2, 3, 5, 5), nothing, device=device), 2, 1)
        assert (scores == -INF).all()
        assert (classes == -1).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (2, 3, 4, 5)])
@pytest.mark.parametrize("k", [0, 3])
def test_empty_inputs(shape, k, device):
    heat = torch.rand(shape, device=device, requires_grad=True)
    out = heatmap_peaks(heat, k)
    same([t.detach() for t in out], reference_heatmap_peaks(heat.detach(), k))
    (grad,) = torch.autograd.grad(out[0].sum(), heat)
    assert grad.sum() == min(k, heat.numel()) * shape[0]


def test_non_contiguous_inputs(device):
    heat = torch.randn(2, 3, 12, 14, device=device)
    expected = heatmap_peaks(heat, 9)
    same(heatmap_peaks(heat.to(memory_format=torch.channels_last), 9), expected)
    same(heatmap_peaks(torch.cat([heat, heat], 3)[..., 14:], 9), expected)
    same(heatmap_peaks(heat.mT.contiguous().mT, 9), expected)
    same(HeatmapPeaks(9)(heat), expected)


def test_ascending_and_descending_maps(device):
    """The order that makes every element the best so far, and the one that makes none."""
    heat = torch.arange(6000.0, device=device).view(1, 1, 60, 100)
    for h in (heat, -heat, heat.flip(3), heat.remainder(7)):
        for kernel in (1, 3):
            same(heatmap_peaks(h, 10, kernel), reference_heatmap_peaks(h, 10, kernel))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_goes_to_the_peaks(dtype, device):
    heat = torch.randn(2, 3, 8, 9, device=device).to(dtype).requires_grad_()
    scores, classes, ys, xs = heatmap_peaks(heat, 200)
    weight = torch.randn(scores.shape, device=device).to(dtype)
    (grad,) = torch.autograd.grad(scores, heat, weight)
    expected = torch.zeros_like(heat)
    for image in range(2):
        for j in range(200):
            if classes[image, j] >= 0:
                expected[image, classes[image, j], ys[image, j], xs[image, j]] += weight[image, j]
    assert torch.equal(grad, expected)
    assert not classes.requires_grad


def test_gradcheck(device):
    heat = torch.randperm(60, device=device).double().view(1, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: heatmap_peaks(h, 4)[0], heat)
    assert torch.autograd.gradgradcheck(lambda h: heatmap_peaks(h, 4)[0].sin(), heat)


def test_opcheck(device):
    heat = torch.randn(2, 3, 5, 6, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.cvops.heatmap_peaks.default, (heat, 4, 3))
    _, *places = heatmap_peaks(heat, 4)
    grad = torch.randn(2, 4, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.cvops.heatmap_peaks_backward.default, (grad, *places, 3, 5, 6))


def test_places_that_are_not_in_the_map_get_no_gradient(device):
    grad, zero = torch.ones(1, 4, device=device), torch.zeros(1, 4, dtype=torch.int64, device=device)
    wrong = torch.tensor([[-1, 2, 1 << 40, 1]], device=device)
    for places in ((wrong, zero, zero), (zero, wrong, zero), (zero, zero, wrong)):
        out = torch.ops.cvops.heatmap_peaks_backward(grad, *places, 2, 2, 2)
        assert out.sum() == 1


def test_compile_and_export(device):
    compiled = torch.compile(lambda h: heatmap_peaks(h, 5)[0].sum(), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (7, 9):
        heat = torch.randn(2, 3, size, size + 1, device=device, requires_grad=True)
        (grad,) = torch.autograd.grad(compiled(heat), heat)
        assert torch.equal(grad, torch.autograd.grad(heatmap_peaks(heat, 5)[0].sum(), heat)[0])
    heat = heat.detach()
    same(torch.export.export(HeatmapPeaks(5), (heat,)).module()(heat), heatmap_peaks(heat, 5))


def test_vmap_and_func_grad(device):
    heat = torch.randn(4, 2, 3, 6, 7, device=device)
    expected = [t.unflatten(0, (4, 2)) for t in heatmap_peaks(heat.flatten(0, 1), 5)]
    same(torch.func.vmap(lambda h: heatmap_peaks(h, 5))(heat), expected)
    same(torch.func.vmap(lambda h: heatmap_peaks(h, 5), in_dims=1)(heat.movedim(0, 1)), expected)
    grad = torch.func.vmap(torch.func.grad(lambda h: heatmap_peaks(h, 5)[0].square().sum()))(heat)
    leaf = heat.clone().requires_grad_()
    total = heatmap_peaks(leaf.flatten(0, 1), 5)[0].square().sum()
    assert torch.equal(grad, torch.autograd.grad(total, leaf)[0])


def test_autocast_keeps_the_dtype(device):
    heat = torch.randn(1, 2, 8, 8, device=device)
    with torch.autocast(device, torch.bfloat16):
        same(heatmap_peaks(heat, 5), heatmap_peaks(heat, 5))
        assert heatmap_peaks(heat.bfloat16(), 5)[0].dtype == torch.bfloat16


def test_threads_do_not_change_anything(on_cuda_host):
    side = 40 if on_cuda_host else 260
    heat = (torch.rand(1, 3, side, side) * 50).round()
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(heatmap_peaks(heat, 300))
    torch.set_num_threads(before)
    for other in results:
        same(other, reference_heatmap_peaks(heat, 300))


def test_memory_is_that_of_the_results(on_cuda_host):
    """The composition writes four maps; on CUDA there is a workspace for the best of each tile."""
    heat = torch.rand(1, 8, 64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        heatmap_peaks(heat, 50)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated <= (heat.nbytes // 4 if on_cuda_host else 50 * 28 + 1024)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: heatmap_peaks(h[0], 3), r"heatmap must be \[B, C, H, W\], got \[2, 5, 6\]"),
        (lambda h: heatmap_peaks(h, -1), "k must be >= 0, got -1"),
        (lambda h: heatmap_peaks(h, 3, 2), "kernel must be odd and positive, got 2"),
        (lambda h: heatmap_peaks(h, 3, -1), "kernel must be odd and positive, got -1"),
        (lambda h: heatmap_peaks(h.int(), 3), "heatmap must be float64, float32, float16 or bfloat16, got Int"),
        (lambda h: torch.ops.cvops.heatmap_peaks(h[0], 3, 3), r"heatmap must be \[B, C, H, W\]"),
        (lambda h: torch.ops.cvops.heatmap_peaks(h, -3, 3), "k must be >= 0"),
        (lambda h: torch.ops.cvops.heatmap_peaks(h, 3, 4), "kernel must be odd"),
        (
            lambda h: torch.ops.cvops.heatmap_peaks_backward(h[0, 0], *[torch.zeros(5, 6).int()] * 3, 1, 2, 3),
            "classes must be int64, got Int",
        ),
        (
            lambda h: torch.ops.cvops.heatmap_peaks_backward(h[0, 0], *[torch.zeros(5, 5).long()] * 3, 1, 2, 3),
            r"classes must have the shape of grad \[5, 6\], got \[5, 5\]",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(torch.rand(1, 2, 5, 6))


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(data=st.data())
def test_any_heat_map(data):
    """Few levels, so that plateaus and ties are everywhere; now and then NaN and infinities."""
    shape = [data.draw(st.integers(1, most)) for most in (2, 3, 12, 20)]
    k, kernel = data.draw(st.integers(0, 40)), data.draw(st.sampled_from([1, 3, 5, 21]))
    levels = data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    heat = torch.randint(-levels, levels + 1, shape, generator=generator).to(data.draw(st.sampled_from(DTYPES)))
    for odd in data.draw(st.lists(st.sampled_from([NAN, INF, -INF, -0.0]), max_size=4)):
        heat[torch.rand(shape, generator=generator) < 0.2] = odd
    same(heatmap_peaks(heat, k, kernel), reference_heatmap_peaks(heat, k, kernel))
