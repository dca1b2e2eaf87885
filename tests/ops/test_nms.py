"""nms, batched_nms, multiclass_nms, padded forms, soft_nms, matrix_nms: exactness, ties, NaN, transforms, errors."""

import pytest
import torch
from conftest import DEVICES, EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

import cvops
from cvops.ops.nms import reference_matrix_nms, reference_nms, reference_soft_nms
from ops.boxes import boxes_strategy, random_boxes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# A decayed score is computed in float32 or float64 and rounded to its dtype once.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
THRESHOLDS = [0.0, 0.05, 0.3, 0.5, 0.7, 1.0]


def case(n, dtype=torch.float32, device="cpu", groups=None, extent=100.0, levels=None):
    """Boxes, scores and group ids; `levels` quantises the scores, which makes ties."""
    scores = torch.rand(n)
    if levels:
        scores = (scores * levels).round() / levels
    ids = torch.randint(-(groups or 1), groups or 1, (n,), device=device)
    return random_boxes(n, dtype=dtype, device=device, extent=extent), scores.to(device, dtype), ids


def per_group(boxes, scores, idxs, threshold):
    """What batched_nms promises: plain NMS of each group alone, merged by descending score, ties by lowest index."""
    kept = []
    for group in idxs.unique().tolist():
        members = (idxs == group).nonzero().squeeze(1)
        kept += members[cvops.ops.nms(boxes[members], scores[members], threshold)].tolist()
    return torch.tensor(sorted(kept, key=lambda i: (-scores[i].item(), i)), dtype=torch.int64, device=boxes.device)


@pytest.mark.parametrize("n", [0, 1, 2, 65, 300])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(n, threshold, dtype, device):
    boxes, scores, ids = case(n, dtype, device, groups=3, levels=40)
    kept = cvops.ops.nms(boxes, scores, threshold)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, reference_nms(boxes, scores, None, threshold))
    assert torch.equal(
        cvops.ops.batched_nms(boxes, scores, ids, threshold), reference_nms(boxes, scores, ids, threshold)
    )


@pytest.mark.parametrize("size", [4.0, 60.0, 400.0])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_equals_torchvision(size, threshold, on_cuda_host, torchvision):
    n = 300 if on_cuda_host else 2000
    boxes, scores = random_boxes(n, extent=500.0, size=size), torch.randperm(n) / n
    assert torch.equal(cvops.ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5, 0.75])
def test_thresholds_that_are_met_exactly(threshold, torchvision):
    """IoU equal to the threshold keeps the box: the comparison is 'greater'. Boxes on a grid make such pairs common."""
    corner = torch.randint(0, 6, (400, 2)).float() * 4
    boxes = torch.cat([corner, corner + torch.randint(1, 5, (400, 2)).float() * 4], 1)
    scores = torch.randperm(400) / 400
    assert torch.equal(cvops.ops.nms(boxes, scores, threshold), reference_nms(boxes, scores, None, threshold))
    assert torch.equal(cvops.ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_1280_groups_equal_plain_nms_per_group(dtype, device):
    """16 images x 80 classes: offsetting coordinates by group, as torchvision does, gets these wrong."""
    boxes, scores, _ = case(1000, dtype, device, extent=30.0)
    idxs = torch.randint(0, 16, (1000,), device=device) * 80 + torch.randint(0, 80, (1000,), device=device)
    expected = per_group(boxes, scores, idxs, 0.5)
    assert torch.equal(cvops.ops.batched_nms(boxes, scores, idxs, 0.5), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_coordinates_and_huge_ids(dtype, device):
    boxes, scores, idxs = case(200, dtype, device, groups=4)
    idxs = idxs * 2**60
    expected = per_group(boxes - 60, scores, idxs, 0.4)
    assert torch.equal(cvops.ops.batched_nms(boxes - 60, scores, idxs, 0.4), expected)


def test_large_groups_equal_plain_nms(on_cuda_host):
    n = 400 if on_cuda_host else 6000
    boxes, scores, idxs = case(n, groups=2, extent=300.0)
    assert torch.equal(cvops.ops.batched_nms(boxes, scores, idxs, 0.6), per_group(boxes, scores, idxs, 0.6))


def test_ties_go_to_the_lowest_index(device):
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 5 + [[50, 50, 60, 60]], device=device)
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], device=device)
    assert cvops.ops.nms(boxes, scores, 0.5).tolist() == [0, 5]
    signed_zero = torch.tensor([0.0, -0.0, 0.0, -0.0, -0.0, -0.0], device=device)
    assert cvops.ops.nms(boxes, signed_zero, 1.0).tolist() == [0, 1, 2, 3, 4, 5]


def test_nan_is_never_kept(device):
    boxes, scores, _ = case(100, device=device)
    boxes[3, 2], scores[7], boxes[11] = float("nan"), float("nan"), float("nan")
    rest = [i for i in range(100) if i not in (3, 7, 11)]
    alone = torch.tensor(rest, device=device)[cvops.ops.nms(boxes[rest], scores[rest], 0.5)]
    assert torch.equal(cvops.ops.nms(boxes, scores, 0.5), alone)
    indices, count = cvops.ops.nms_padded(boxes, scores, 0.5, 100)
    assert torch.equal(indices[:count], alone)
    assert not {3, 7, 11} & set(cvops.ops.soft_nms(boxes, scores)[0].tolist())
    assert cvops.ops.matrix_nms(boxes, scores)[[3, 7, 11]].eq(0).all()


def test_infinite_scores_and_degenerate_boxes(device):
    inf = float("inf")
    boxes = torch.tensor(
        [[0.0, 0, 4, 4], [0, 0, 4, 4], [2, 2, 2, 2], [2, 2, 2, 2], [4, 4, 0, 0], [-inf, 0, inf, 4]], device=device
    )
    scores = torch.tensor([-inf, inf, 0.5, 0.4, 0.3, 0.2], device=device)
    assert cvops.ops.nms(boxes, scores, 0.5).tolist() == [1, 2, 3, 4, 5]


def test_scales_from_tiny_to_huge(on_cuda_host, torchvision):
    """The grid must not lose pairs when sizes span ten orders of magnitude or boxes sit far from the origin."""
    n = 250 if on_cuda_host else 1500
    centre = torch.randn(n, 2)
    half = torch.exp(torch.randn(n, 1) * 5 - 3) * (0.5 + torch.rand(n, 2))
    scores = torch.randperm(n) / n
    for offset in (0.0, 1e4, -3e6):
        boxes = torch.cat([centre - half, centre + half], 1) + offset
        for threshold in (0.1, 0.45, 0.8):
            assert torch.equal(
                cvops.ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold)
            ), (offset, threshold)


def test_identical_boxes_collapse_to_one(device):
    boxes = torch.tensor([[1.0, 1, 7, 9]], device=device).expand(300, 4)
    scores = torch.rand(300, device=device)
    assert cvops.ops.nms(boxes, scores, 0.99).tolist() == [scores.argmax().item()]


def test_integer_boxes_and_mixed_dtypes(device):
    boxes, scores, ids = case(50, device=device)
    whole = boxes.round()
    expected = cvops.ops.nms(whole, scores, 0.5)
    assert torch.equal(cvops.ops.nms(whole.int(), scores, 0.5), expected)
    assert torch.equal(cvops.ops.nms(whole, scores.double(), 0.5), expected)
    grouped = cvops.ops.batched_nms(whole, scores, ids, 0.5)
    assert torch.equal(cvops.ops.batched_nms(whole, scores, ids.to(torch.int32), 0.5), grouped)


def test_non_contiguous(device):
    boxes, scores, ids = case(80, device=device, groups=2)
    expected = cvops.ops.batched_nms(boxes[::2].clone(), scores[::2].clone(), ids[::2].clone(), 0.5)
    assert torch.equal(cvops.ops.batched_nms(boxes[::2], scores[::2], ids[::2], 0.5), expected)
    assert torch.equal(cvops.ops.nms(boxes.t().contiguous().t(), scores, 0.5), cvops.ops.nms(boxes, scores, 0.5))


@pytest.mark.parametrize("max_output", [0, 1, 7, 60, 100])
@pytest.mark.parametrize("score_threshold", [None, 0.5, 2.0, float("inf")])
@pytest.mark.parametrize("grouped", [False, True])
def test_padded_equals_dynamic(max_output, score_threshold, grouped, device):
    images = [case(60, device=device, groups=2) for _ in range(3)]
    boxes, scores, ids = (torch.stack(t) for t in zip(*images, strict=True))
    indices, counts = cvops.ops.batched_nms_padded(
        boxes, scores, ids if grouped else None, 0.4, max_output, score_threshold
    )
    assert indices.shape == (3, max_output)
    for b, s, i, got, count in zip(boxes, scores, ids, indices, counts, strict=True):
        candidates = (s > (score_threshold or -1)).nonzero().squeeze(1)
        i = i if grouped else torch.zeros_like(i)
        kept = candidates[cvops.ops.batched_nms(b[candidates], s[candidates], i[candidates], 0.4)][:max_output]
        assert count == len(kept)
        assert torch.equal(got[:count], kept)
        assert (got[count:] == -1).all()


def test_padded_empty(device):
    indices, counts = cvops.ops.batched_nms_padded(
        torch.zeros(0, 5, 4, device=device), torch.zeros(0, 5, device=device), None, 0.5, 3
    )
    assert indices.shape == (0, 3)
    assert counts.shape == (0,)
    indices, count = cvops.ops.nms_padded(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5, 3)
    assert indices.tolist() == [-1, -1, -1]
    assert count == 0


def test_vmap_of_padded():
    boxes, scores = random_boxes(4, 30), torch.rand(4, 30)
    indices, counts = torch.func.vmap(lambda b, s: cvops.ops.nms_padded(b, s, 0.5, 10))(boxes, scores)
    for i in range(4):
        one, count = cvops.ops.nms_padded(boxes[i], scores[i], 0.5, 10)
        assert torch.equal(indices[i], one)
        assert counts[i] == count


def test_vmap_of_padded_with_shared_groups():
    boxes, scores, ids = random_boxes(3, 2, 30), torch.rand(3, 2, 30), torch.randint(0, 2, (2, 30))

    def run(b, s, i):
        return cvops.ops.batched_nms_padded(b, s, i, 0.3, 10)

    got = torch.func.vmap(run, in_dims=(0, 0, None))(boxes, scores, ids)
    for k in range(3):
        assert all(torch.equal(x[k], y) for x, y in zip(got, run(boxes[k], scores[k], ids), strict=True))


def test_multiclass(device):
    boxes, _, _ = case(40, device=device)
    scores = torch.rand(40, 5, device=device)
    indices, labels = cvops.ops.multiclass_nms(boxes, scores, 0.4, 0.5)
    pairs = []
    for label in range(5):
        members = (scores[:, label] > 0.4).nonzero().squeeze(1)
        kept = members[cvops.ops.nms(boxes[members], scores[members, label], 0.5)]
        pairs += [(scores[i, label].item(), i, label) for i in kept.tolist()]
    pairs.sort(key=lambda p: -p[0])
    assert list(zip(indices.tolist(), labels.tolist(), strict=True)) == [(i, label) for _, i, label in pairs]
    few = cvops.ops.multiclass_nms(boxes[:, None].expand(40, 5, 4), scores, 0.4, 0.5, max_output=3)
    assert torch.equal(few[0], indices[:3])
    assert torch.equal(few[1], labels[:3])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 50])
def test_soft_nms_matches_reference(method, dtype, n, device):
    boxes, scores, ids = case(n, dtype, device, groups=2)
    for idxs in (None, ids):
        indices, decayed = cvops.ops.soft_nms(boxes, scores, method=method, idxs=idxs)
        expected, expected_scores = reference_soft_nms(boxes, scores, method=method, idxs=idxs)
        assert torch.equal(indices, expected)
        assert decayed.dtype == dtype
        torch.testing.assert_close(decayed, expected_scores, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 50])
def test_matrix_nms_matches_reference(method, dtype, n, device):
    boxes, scores, ids = case(n, dtype, device, groups=2)
    for idxs in (None, ids):
        decayed = cvops.ops.matrix_nms(boxes, scores, method=method, idxs=idxs)
        assert decayed.dtype == dtype
        expected = reference_matrix_nms(boxes, scores, method=method, idxs=idxs)
        torch.testing.assert_close(decayed, expected, rtol=ROUNDING[dtype], atol=1e-6)


def test_matrix_nms_duplicates_die():
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 3)
    decayed = cvops.ops.matrix_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="linear")
    torch.testing.assert_close(decayed, torch.tensor([0.9, 0.0, 0.0]))


def test_opcheck(device):
    boxes, scores, ids = case(40, device=device, groups=2)
    for idxs in (None, ids):
        torch.library.opcheck(torch.ops.cvops.nms.default, (boxes, scores, idxs, 0.5))
        torch.library.opcheck(torch.ops.cvops.soft_nms.default, (boxes, scores, idxs, 1, 0.5, 0.3, 0.01))
        torch.library.opcheck(torch.ops.cvops.matrix_nms.default, (boxes, scores, idxs, 0, 2.0))
        batch = [None if t is None else t[None] for t in (boxes, scores, idxs)]
        torch.library.opcheck(torch.ops.cvops.nms_padded.default, (*batch, 0.5, 10, 0.1))


def test_export_and_compile_of_padded(device):
    class Detect(torch.nn.Module):
        def forward(self, boxes, scores):
            return cvops.ops.batched_nms_padded(boxes, scores, None, 0.5, 10, 0.2)

    boxes, scores = random_boxes(2, 30, device=device), torch.rand(2, 30, device=device)
    dynamic = {"boxes": {1: torch.export.Dim("n", min=2)}, "scores": {1: torch.export.Dim("n", min=2)}}
    exported = torch.export.export(Detect(), (boxes, scores), dynamic_shapes=dynamic).module()
    compiled = torch.compile(Detect(), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (30, 17):
        expected = Detect()(boxes[:, :n], scores[:, :n])
        for run in (exported, compiled):
            assert all(torch.equal(x, y) for x, y in zip(run(boxes[:, :n], scores[:, :n]), expected, strict=True))


def test_compile_of_dynamic_result(device):
    boxes, scores, ids = case(60, device=device, groups=2)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(cvops.ops.batched_nms, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(boxes, scores, ids, 0.5), cvops.ops.batched_nms(boxes, scores, ids, 0.5))


def test_autocast_and_requires_grad(device):
    boxes, scores, _ = case(60, device=device)
    expected = cvops.ops.nms(boxes, scores, 0.5)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(cvops.ops.nms(boxes, scores, 0.5), expected)
    assert torch.equal(cvops.ops.nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5), expected)


def test_threads_do_not_change_the_result():
    boxes, scores, ids = case(3000, groups=20)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(
            (cvops.ops.batched_nms(boxes, scores, ids, 0.5), cvops.ops.matrix_nms(boxes[:300], scores[:300]))
        )
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


B, S, IDS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cvops.ops.nms(B[:, :3], S, 0.5), r"boxes must be \[\.\.\., 4\], got \[3, 3\]"),
        (lambda: cvops.ops.nms(B, S[:2], 0.5), r"scores must have one value per box of \[3, 4\], got \[2\]"),
        (lambda: cvops.ops.nms(B, S, -0.1), r"iou_threshold must be in \[0, 1\], got -0.1"),
        (lambda: cvops.ops.nms(B, S, float("nan")), "iou_threshold must be in"),
        (lambda: cvops.ops.nms(B, S.long(), 0.5), "scores must be float64, float32, float16 or bfloat16, got Long"),
        (
            lambda: cvops.ops.nms(B.to(torch.complex64), S, 0.5),
            "boxes must be floating or integer, got torch.complex64",
        ),
        (lambda: cvops.ops.batched_nms(B, S, IDS[:2], 0.5), r"idxs must have the shape of scores \[3\], got \[2\]"),
        (lambda: cvops.ops.batched_nms(B, S, S, 0.5), "idxs must have an integer dtype, got torch.float32"),
        (lambda: cvops.ops.batched_nms_padded(B, S, None, 0.5, 3), r"boxes must be \[B, N, 4\], got \[3, 4\]"),
        (lambda: cvops.ops.nms_padded(B, S, 0.5, -1), "max_output must be >= 0, got -1"),
        (lambda: cvops.ops.soft_nms(B, S, sigma=0.0), "sigma must be > 0, got 0"),
        (lambda: cvops.ops.soft_nms(B, S, method="hard"), "method must be 'linear' or 'gaussian', got 'hard'"),
        (lambda: cvops.ops.matrix_nms(B, S, method="hard"), "method must be"),
        (lambda: cvops.ops.multiclass_nms(B, S, 0.1, 0.5), r"scores must be \[N, C\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), n=st.integers(0, 260), threshold=st.sampled_from([*THRESHOLDS, 1 / 3]))
def test_any_boxes(data, n, threshold):
    dtype = data.draw(st.sampled_from(DTYPES))
    boxes = data.draw(boxes_strategy(n, dtype)).to(DEVICES[0])
    scores = torch.rand(n).to(DEVICES[0], dtype)
    idxs = None
    if data.draw(st.booleans()):
        idxs = torch.randint(-3, 3, (n,), device=DEVICES[0]) * data.draw(st.sampled_from([1, 10**15]))
    kept = torch.ops.cvops.nms(boxes, scores, idxs, threshold)
    assert torch.equal(kept, reference_nms(boxes, scores, idxs, threshold))
