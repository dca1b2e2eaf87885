"""mask_paste: grid_sample over whole images, odd boxes, thresholds, gradients, transforms, memory."""

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

from cvops.ops import mask_paste
from cvops.ops.mask_paste import reference_mask_paste
from ops.boxes import random_boxes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


def some(k, dtype=torch.float32, device="cpu", size=(5, 6)):
    """Boxes of which some reach out of a 40 x 37 image."""
    boxes = random_boxes(k, dtype=torch.float64, extent=40.0, size=30.0) - 8
    return torch.rand(k, 1, *size, device=device).to(dtype), boxes.to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "size"), [(1, (28, 28)), (7, (5, 6)), (3, (1, 1)), (2, (1, 9))])
def test_matches_reference(k, size, dtype, device):
    masks, boxes = some(k, dtype, device, size)
    out = mask_paste(masks, boxes, (40, 37), None)
    assert out.dtype == dtype
    torch.testing.assert_close(out, reference_mask_paste(masks[:, 0], boxes, (40, 37)), **TOLERANCE[dtype])
    assert torch.equal(mask_paste(masks[:, 0], boxes, (40, 37), None), out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_binary_is_the_thresholded_value(dtype, threshold, device):
    """Half types are compared before they are rounded."""
    masks, boxes = some(6, dtype, device)
    out = mask_paste(masks, boxes, (40, 37), threshold)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == torch.bool
    assert torch.equal(out, mask_paste(masks.to(wide), boxes.to(wide), (40, 37), None) >= threshold)


def test_a_box_of_the_size_of_its_mask_copies_it(device):
    masks = torch.rand(2, 1, 4, 5, device=device)
    boxes = torch.tensor([[2.0, 3, 7, 7], [-1, -2, 4, 2]], device=device)
    out = mask_paste(masks, boxes, (8, 9), None)
    expected = torch.zeros(2, 8, 9, device=device)
    expected[0, 3:7, 2:7] = masks[0, 0]
    expected[1, :2, :4] = masks[1, 0, 2:, 1:]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_agrees_with_torchvision_within_its_rounding(device, torchvision):
    """torchvision rounds the box to whole pixels: a full mask differs only near the border of its box."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks, boxes = torch.ones(1, 1, 14, 14, device=device), torch.tensor([[5.3, 6.6, 30.2, 28.9]], device=device)
    ours = mask_paste(masks, boxes, (40, 40))
    theirs = paste_masks_in_image(masks, boxes, (40, 40))[:, 0] >= 0.5
    differ = (ours != theirs).nonzero()[:, 1:].flip(1) + 0.5
    distance = torch.cat([(differ - boxes[:, :2]).abs(), (differ - boxes[:, 2:]).abs()], 1).amin(1)
    assert len(differ) == 0 or distance.max() <= 2


@pytest.mark.parametrize(
    "box",
    [
        [5, 5, 5, 9],
        [5, 9, 9, 5],
        [NAN, 0, 9, 9],
        [0, 0, 9, NAN],
        [0, 0, INF, 9],
        [-INF, 0, 9, 9],
        [-INF, -INF, INF, INF],
        [90, 90, 99, 99],
        [-99, 0, -90, 9],
        [1e30, 0, 3e30, 9],
        [-3e38, 0, 3e38, 9],
    ],
)
def test_boxes_that_hold_nothing(box, device):
    masks = torch.ones(2, 1, 3, 3, device=device)
    boxes = torch.tensor([box, [1.0, 1, 4, 4]], device=device)
    for threshold in (0.5, None):
        out = mask_paste(masks, boxes, (10, 12), threshold)
        assert not out[0].any()
        assert out[1].any()


def test_a_box_much_larger_than_the_image(device):
    masks = torch.rand(1, 1, 3, 3, device=device, requires_grad=True)
    boxes = torch.tensor([[-3e5, -2e5, 3e5, 2e5]], device=device)
    out = mask_paste(masks, boxes, (10, 12), None)
    torch.testing.assert_close(out, masks.detach()[0, 0, 1, 1].expand(1, 10, 12), rtol=1e-3, atol=1e-3)
    (grad,) = torch.autograd.grad(out.sum(), masks)
    torch.testing.assert_close(grad.sum(), torch.tensor(120.0, device=device))


def test_values_outside_of_every_box_are_zero(device):
    """Also where the mask is not a number, or infinite."""
    masks = torch.full((1, 1, 3, 3), NAN, device=device)
    out = mask_paste(masks, torch.tensor([[3.0, 3, 6, 6]], device=device), (10, 12), None)
    assert out[0, 3:6, 3:6].isnan().all()
    assert (out[0, :2] == 0).all()
    assert (out[0, :, 8:] == 0).all()
    assert not mask_paste(masks, torch.tensor([[3.0, 3, 6, 6]], device=device), (10, 12)).any()


@pytest.mark.parametrize(("k", "size", "image"), [(0, (3, 3), (5, 6)), (2, (3, 3), (0, 6)), (2, (0, 3), (5, 6))])
def test_empty_inputs(k, size, image, device):
    masks, boxes = some(k, device=device, size=size)
    masks.requires_grad_()
    for threshold in (0.5, None):
        out = mask_paste(masks, boxes, image, threshold)
        assert out.shape == (k, *image)
        assert not out.any()
    assert torch.autograd.grad(out.sum(), masks)[0].shape == masks.shape


def test_non_contiguous_inputs_and_other_box_dtypes(device):
    masks, boxes = some(5, device=device)
    expected = mask_paste(masks, boxes, (40, 37), None)
    assert torch.equal(mask_paste(masks.mT.contiguous().mT, boxes.t().contiguous().t(), (40, 37), None), expected)
    assert torch.equal(mask_paste(masks, boxes.double(), (40, 37), None), expected)
    half = mask_paste(masks.half(), boxes, (40, 37))
    assert torch.equal(half, mask_paste(masks.half().float(), boxes, (40, 37)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_matches_reference(dtype, device):
    masks, boxes = some(4, dtype, device)
    grad = torch.randn(4, 40, 37, device=device).to(dtype)
    ours = torch.autograd.grad(mask_paste(masks.requires_grad_(), boxes, (40, 37), None), masks, grad)[0]
    wide = masks.detach().double().requires_grad_()
    pasted = reference_mask_paste(wide[:, 0], boxes.double(), (40, 37))
    theirs = torch.autograd.grad(pasted, wide, grad.double())[0]
    tolerance = {name: 10 * value for name, value in TOLERANCE[dtype].items()}  # sums of hundreds of products
    torch.testing.assert_close(ours, theirs.to(dtype), **tolerance)


def test_float16_gradient_saturates(device):
    masks = torch.ones(1, 1, 1, 1, device=device, dtype=torch.float16, requires_grad=True)
    out = mask_paste(masks, torch.tensor([[0.0, 0, 16, 16]], device=device), (16, 16), None)
    assert torch.autograd.grad(out, masks, torch.full_like(out, 1e4))[0].item() == 65504


def test_gradcheck(device):
    masks, boxes = some(2, torch.float64, device, (3, 2))
    boxes = boxes / 4
    masks.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mask_paste(m, boxes, (9, 8), None), masks)
    assert torch.autograd.gradgradcheck(lambda m: mask_paste(m, boxes, (9, 8), None).square(), masks)
    assert not mask_paste(masks, boxes, (9, 8)).requires_grad


def test_opcheck(device):
    masks, boxes = some(2, device=device)
    call = torch.ops.cvops
    torch.library.opcheck(call.mask_paste.default, (masks[:, 0].requires_grad_(), boxes, 9, 8))
    torch.library.opcheck(call.mask_paste_binary.default, (masks[:, 0].detach(), boxes, 9, 8, 0.5))
    grad = torch.randn(2, 9, 8, device=device, requires_grad=True)
    torch.library.opcheck(call.mask_paste_backward.default, (grad, boxes, 3, 4))


def test_compile_and_export(device):
    """V#9321, V#9462: torchvision's loop over the masks cannot be exported."""
    compiled = torch.compile(lambda m, b: mask_paste(m, b, (20, 19)), fullgraph=True, dynamic=True, backend="aot_eager")
    for k in (2, 3):
        args = some(k, device=device)
        assert torch.equal(compiled(*args), mask_paste(*args, (20, 19)))

    class Module(torch.nn.Module):
        def forward(self, masks, boxes):
            return mask_paste(masks, boxes, (20, 19))

    count = torch.export.Dim("count")
    program = torch.export.export(Module(), args, dynamic_shapes=({0: count}, {0: count}))
    args = some(5, device=device)
    assert torch.equal(program.module()(*args), mask_paste(*args, (20, 19)))


def test_vmap_and_func_grad(device):
    masks, boxes = (t.unflatten(0, (2, 3)) for t in some(6, device=device))
    for threshold in (0.5, None):

        def paste(m, b, threshold=threshold):
            return mask_paste(m, b, (20, 19), threshold)

        expected = paste(masks.flatten(0, 1), boxes.flatten(0, 1)).unflatten(0, (2, 3))
        assert torch.equal(torch.func.vmap(paste)(masks, boxes), expected)
        shared = torch.func.vmap(paste, (0, None))(masks, boxes[0])
        assert torch.equal(shared[1], paste(masks[1], boxes[0]))
    grad = torch.func.vmap(torch.func.grad(lambda m, b: paste(m, b).square().sum()))(masks, boxes)
    leaf = masks.clone().requires_grad_()
    total = paste(leaf.flatten(0, 1), boxes.flatten(0, 1)).square().sum()
    torch.testing.assert_close(grad, torch.autograd.grad(total, leaf)[0])


def test_threads_do_not_change_anything():
    masks, boxes = some(3)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append((mask_paste(masks, boxes, (40, 37), None), mask_paste(masks, boxes, (40, 37))))
    torch.set_num_threads(before)
    for floats, flags in results[1:]:
        assert torch.equal(floats, results[0][0])
        assert torch.equal(flags, results[0][1])


def test_memory_is_that_of_the_flags():
    """V#1054, D2#1539: whole images of float values, per mask, are what runs out of memory."""
    masks, boxes = some(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        mask_paste(masks, boxes, (40, 37))
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated <= 4 * 40 * 37 + 1024


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: mask_paste(m[0, 0], b, (4, 4)), r"masks must be \[K, 1, h, w\] or \[K, h, w\], got \[5, 6\]"),
        (lambda m, b: mask_paste(m.expand(2, 3, 5, 6), b, (4, 4)), r"got \[2, 3, 5, 6\]"),
        (lambda m, b: mask_paste(m, b[:1], (4, 4)), r"boxes must be \[2, 4\], got \[1, 4\]"),
        (lambda m, b: mask_paste(m, b[:, :3], (4, 4)), r"boxes must be \[2, 4\], got \[2, 3\]"),
        (lambda m, b: mask_paste(m, b, (-1, 4)), r"image_size must be \(height, width\) >= 0, got \(-1, 4\)"),
        (lambda m, b: mask_paste(m, b, (4, 4), 0.0), "threshold must be > 0, or None for the values, got 0.0"),
        (lambda m, b: mask_paste(m, b, (4, 4), NAN), "threshold must be > 0"),
        (lambda m, b: mask_paste(m, b.long(), (4, 4)), "boxes must be float64, .* got Long"),
        (lambda m, b: mask_paste(m.int(), b, (4, 4)), "masks must be float64, .* got Int"),
        (lambda m, b: torch.ops.cvops.mask_paste(m, b, 4, 4), r"masks must be \[K, h, w\]"),
        (lambda m, b: torch.ops.cvops.mask_paste(m[:, 0], b, -4, 4), "image size must be >= 0, got -4 x 4"),
        (lambda m, b: torch.ops.cvops.mask_paste_backward(m, b, 4, 4), r"grad must be \[K, H, W\]"),
        (lambda m, b: torch.ops.cvops.mask_paste_backward(m[:, 0], b, 4, -4), "mask size must be >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(*some(2))


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(data=st.data())
def test_any_boxes(data):
    numbers = st.one_of(
        st.floats(-60, 60, width=32), st.integers(-20, 20).map(float), st.sampled_from([NAN, INF, -INF, 1e20, -1e20])
    )
    boxes = torch.tensor(data.draw(st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=3)))
    boxes = boxes.reshape(-1, 4).double()
    extent = boxes[:, 2:] - boxes[:, :2]
    boxes[((extent > 0) & (extent < 1e-3)).any(1)] = 0  # where a rounding moves a sample by cells
    masks = torch.rand(len(boxes), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)), dtype=torch.float64)
    image = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))
    out = mask_paste(masks, boxes, image, None)
    torch.testing.assert_close(out, reference_mask_paste(masks, boxes, image), rtol=1e-8, atol=1e-8)
    assert torch.equal(mask_paste(masks, boxes, image, 0.3), out >= 0.3)
