"""match_boxes: torchvision's Matcher without its matrix; ties, padding, NaN, empty inputs, transforms, memory."""

import pytest
import torch
from conftest import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import box_iou, match_boxes
from cvops.ops.match_boxes import reference_match_boxes
from ops.boxes import boxes_strategy, random_boxes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def same(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(0, 3), (5, 0), (1, 1), (64, 20), (700, 150)])
def test_matches_reference(n, m, dtype, allow_low_quality, device):
    anchors, targets = random_boxes(n, dtype=dtype, device=device), random_boxes(m, dtype=dtype, device=device)
    out = match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=allow_low_quality)
    assert [x.dtype for x in out] == [torch.int64, box_iou(anchors, targets).dtype, torch.int64]
    same(out, reference_match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality))


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.4, 0.5), (0.3, 0.7), (0.5, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_equals_torchvision_matcher(allow_low_quality, grid, low, high, device, torchvision):
    """On a grid IoUs tie and meet the thresholds exactly, and some targets overlap nothing."""
    from torchvision.models.detection._utils import Matcher

    anchors, targets = (random_boxes(k, device=device, extent=300.0) for k in (400, 30))
    if grid:
        anchors, targets = (torch.round(boxes / 20) * 20 for boxes in (anchors, targets))
    matcher = Matcher(high, low, allow_low_quality_matches=allow_low_quality)
    out = match_boxes(anchors, targets, low, high, allow_low_quality=allow_low_quality)
    assert torch.equal(out[0], matcher(box_iou(targets, anchors)))
    close_enough = torchvision.ops.box_iou(targets, anchors).max(0).values.nan_to_num(0)
    torch.testing.assert_close(out[1], close_enough)


@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_a_target_that_meets_nothing(allow_low_quality, device, torchvision):
    """Its best IoU is 0, with which every anchor outside of it ties: torchvision then keeps all their matches."""
    from torchvision.models.detection._utils import Matcher

    anchors = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [50, 50, 51, 51]], device=device)
    targets = torch.tensor([[90.0, 90, 99, 99], [0, 0, 2, 2]], device=device)
    matches, ious, best = match_boxes(anchors, targets, 0.4, 0.6, allow_low_quality=allow_low_quality)
    assert best.tolist() == [-1, 0]
    assert ious.tolist() == [1, pytest.approx(1 / 3), 0]
    assert matches.tolist() == ([1, 1, 0] if allow_low_quality else [1, -1, -1])
    matcher = Matcher(0.6, 0.4, allow_low_quality_matches=allow_low_quality)
    assert torch.equal(matches, matcher(box_iou(targets, anchors)))


def test_ties_go_to_the_lowest_index(device):
    box = torch.tensor([0.0, 0, 4, 4], device=device)
    matches, ious, best = match_boxes(box.expand(300, 4), box.expand(200, 4), 0.5, 0.5)
    assert (matches == 0).all()
    assert (ious == 1).all()
    assert (best == 0).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_batch_with_padding_equals_each_image(shared, allow_low_quality, device):
    counts = torch.tensor([0, 3, 9], device=device)
    anchors = random_boxes(150, device=device) if shared else random_boxes(3, 150, device=device)
    targets = random_boxes(3, 9, device=device)
    out = match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=allow_low_quality, counts=counts)
    valid = torch.arange(9, device=device) < counts[:, None]
    same(out, match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=allow_low_quality, valid=valid))
    for image, count in enumerate(counts.tolist()):
        own = anchors if shared else anchors[image]
        alone = match_boxes(own, targets[image, :count], 0.3, 0.6, allow_low_quality=allow_low_quality)
        same([x[image] for x in out[:2]], alone[:2])
        assert torch.equal(out[2][image, :count], alone[2])
        assert (out[2][image, count:] == -1).all()


def test_valid_may_have_holes(device):
    anchors, targets = random_boxes(90, device=device), random_boxes(8, device=device)
    valid = torch.tensor([False, True, True, False, True, False, False, True], device=device)
    matches, ious, best = match_boxes(anchors, targets, 0.1, 0.4, valid=valid, allow_low_quality=True)
    kept = match_boxes(anchors, targets[valid], 0.1, 0.4, allow_low_quality=True)
    names = valid.nonzero().squeeze(1)
    assert torch.equal(matches, torch.where(kept[0] >= 0, names[kept[0].clamp(min=0)], kept[0]))
    assert torch.equal(ious, kept[1])
    assert torch.equal(best[valid], kept[2])


@pytest.mark.parametrize("low", [0.0, 0.3])
def test_nan_boxes_match_nothing(low, device):
    anchors, targets = random_boxes(40, device=device), random_boxes(6, device=device)
    clean = match_boxes(anchors[1:], targets[1:], low, 0.5, allow_low_quality=True)
    anchors[0, 2] = float("nan")
    targets[0, 1] = float("nan")
    matches, ious, best = match_boxes(anchors, targets, low, 0.5, allow_low_quality=True)
    assert matches[0] == -1
    assert ious[0] == 0
    assert best[0] == -1
    assert torch.equal(matches[1:], torch.where(clean[0] >= 0, clean[0] + 1, clean[0]))
    assert torch.equal(ious[1:], clean[1])
    assert torch.equal(best[1:], torch.where(clean[2] >= 0, clean[2] + 1, -1))


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_degenerate_boxes(seed, dtype, allow_low_quality, device):
    """Inverted, infinite, NaN, denormal and huge boxes among valid ones: still the best IoU and the first of a tie."""
    generator = torch.Generator().manual_seed(seed)
    odd = [float("inf"), -float("inf"), float("nan"), 1e-42, -1e-42, 1e-20, 1e19, 3e38, 0.0]
    n, m = 333, 21  # whole vectors and a rest

    def boxes(count):
        corner = torch.randint(0, 8, (count, 2), generator=generator).double()
        out = torch.cat([corner, corner + torch.randint(-1, 6, (count, 2), generator=generator)], 1)
        values = torch.tensor(odd, dtype=torch.float64)[torch.randint(len(odd), (count, 4), generator=generator)]
        changed = torch.rand(count, 4, generator=generator) < 0.1
        return torch.where(changed, values, out).to(device, dtype)

    anchors, targets = boxes(n), boxes(m)
    out = match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=allow_low_quality)
    assert (out[1] > 0).sum() > 50
    same(out, reference_match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality))


def test_integer_and_non_contiguous_boxes(device):
    anchors, targets = random_boxes(60, device=device).round(), random_boxes(9, device=device).round()
    expected = match_boxes(anchors, targets, 0.3, 0.6)
    same(match_boxes(anchors.int(), targets.int(), 0.3, 0.6), expected)
    wide = torch.cat([anchors, anchors], 1)
    same(match_boxes(wide[:, 4:], targets.t().contiguous().t(), 0.3, 0.6), expected)


def test_no_gradient_and_none_asked(device):
    anchors, targets = random_boxes(9, device=device).requires_grad_(), random_boxes(3, device=device)
    assert not match_boxes(anchors, targets, 0.3, 0.6)[1].requires_grad


def test_opcheck(device):
    anchors, targets = random_boxes(1, 9, device=device), random_boxes(2, 3, device=device)
    valid = torch.tensor([[True, False, True], [True, True, True]], device=device)
    for flags in (None, valid):
        torch.library.opcheck(torch.ops.cvops.match_boxes.default, (anchors, targets, flags, 0.3, 0.5, True))


def test_compile_and_export_with_padded_targets(device):
    def match(anchors, targets, counts):
        return match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=True, counts=counts)

    compiled = torch.compile(match, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, m in ((20, 3), (30, 5)):
        args = random_boxes(n, device=device), random_boxes(2, m, device=device), torch.tensor([1, m], device=device)
        same(compiled(*args), match(*args))

    class Module(torch.nn.Module):
        def forward(self, anchors, targets, counts):
            return match(anchors, targets, counts)

    same(torch.export.export(Module(), args).module()(*args), match(*args))


def test_vmap(device):
    anchors, targets = random_boxes(4, 30, device=device), random_boxes(4, 7, device=device)
    counts = torch.tensor([0, 2, 7, 5], device=device)

    def match(a, t, c):
        return match_boxes(a, t, 0.3, 0.6, counts=c)

    same(torch.func.vmap(match)(anchors, targets, counts), match(anchors, targets, counts))
    same(torch.func.vmap(match, (None, 0, 0))(anchors[0], targets, counts), match(anchors[0], targets, counts))
    nested = torch.func.vmap(match, (0, 0, 0))(anchors.view(2, 2, 30, 4), targets.view(2, 2, 7, 4), counts.view(2, 2))
    same([x.flatten(0, 1) for x in nested], match(anchors, targets, counts))


def test_autocast_accepts_mixed_precision(device):
    anchors, targets = random_boxes(30, device=device), random_boxes(5, device=device)
    with torch.autocast(device, torch.bfloat16):
        mixed = match_boxes(anchors, targets.bfloat16(), 0.3, 0.6)
    same(mixed, match_boxes(anchors, targets.bfloat16().float(), 0.3, 0.6))


def test_threads_do_not_change_anything():
    anchors, targets = (torch.round(random_boxes(k) / 10) * 10 for k in (9000, 40))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=True))
    torch.set_num_threads(before)
    for other in results[1:]:
        same(results[0], other)


def test_memory_is_that_of_the_outputs(on_cuda_host):
    """D2#598, rf-detr#1245: the matrix alone would be 8 MB here, and torchvision needs several of its size."""
    n, m = (2000, 100) if on_cuda_host else (20_000, 100)
    anchors, targets = random_boxes(n), random_boxes(m)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        match_boxes(anchors, targets, 0.3, 0.6, allow_low_quality=True)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated <= n * 12 + m * 16 + 4096


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, t: match_boxes(a, t, 0.6, 0.3), "low and high must be 0 <= low <= high, got low=0.6 and high=0.3"),
        (lambda a, t: match_boxes(a, t, -0.1, 0.3), "0 <= low <= high"),
        (lambda a, t: match_boxes(a, t, float("nan"), 0.3), "0 <= low <= high"),
        (lambda a, t: match_boxes(a[:, :3], t, 0.3, 0.6), r"anchors must be \[N, 4\], got \[5, 3\]"),
        (lambda a, t: match_boxes(a.expand(2, 5, 4), t.expand(3, 2, 4), 0.3, 0.6), r"or \[3, N, 4\], got \[2, 5, 4\]"),
        (lambda a, t: match_boxes(a, t[0], 0.3, 0.6), r"targets must be \[M, 4\] or \[B, M, 4\], got \[4\]"),
        (lambda a, t: match_boxes(a, t, 0.3, 0.6, valid=torch.ones(3, dtype=torch.bool)), r"valid must be \[2\]"),
        (lambda a, t: match_boxes(a, t, 0.3, 0.6, valid=torch.ones(2)), "valid must be bool, got Float"),
        (lambda a, t: match_boxes(a, t, 0.3, 0.6, counts=torch.ones(2)), r"counts must be \[\], got \[2\]"),
        (
            lambda a, t: match_boxes(a, t, 0.3, 0.6, valid=torch.ones(2) > 0, counts=torch.tensor(1)),
            "two ways to say one thing",
        ),
        (lambda a, t: match_boxes(a, t.double(), 0.3, 0.6), "one dtype, got Float and Double"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(random_boxes(5), random_boxes(2))


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(data=st.data(), n=st.integers(0, 150), m=st.integers(0, 20), low_quality=st.booleans())
def test_any_boxes(data, n, m, low_quality):
    dtype = data.draw(st.sampled_from(DTYPES))
    low = data.draw(st.sampled_from([0.0, 0.25, 0.5]))
    high = low + data.draw(st.sampled_from([0.0, 0.25]))
    anchors, targets = data.draw(boxes_strategy(n, dtype)), data.draw(boxes_strategy(m, dtype))
    same(
        match_boxes(anchors, targets, low, high, allow_low_quality=low_quality),
        reference_match_boxes(anchors, targets, low, high, low_quality),
    )
