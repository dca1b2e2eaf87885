"""roi_pool and RoIPool: values, layouts, gradients, transforms, errors."""

import torch

import cvops
from cvops.ops.roi_pool import reference_roi_pool
from ops.rois import INF, NAN, RoiSuite, any_geometry


class TestRoIPool(RoiSuite):
    name = "roi_pool"
    sums = False


test_any_geometry = any_geometry(TestRoIPool())


def test_argmax_is_the_first_of_equals_and_minus_one_for_an_empty_bin(device):
    x = torch.ones(1, 1, 4, 5, device=device)
    rois = torch.tensor([[0.0, 1, 1, 3, 3], [0, 50, 50, 60, 60]], device=device)
    out, argmax = torch.ops.cvops.roi_pool(x, rois, 1.0, 1, 1)
    assert out.flatten().tolist() == [1, 0]
    assert argmax.flatten().tolist() == [6, -1]
    assert argmax.dtype == torch.int32


def test_the_first_of_equals_has_the_gradient(device):
    """Half types tie often, and so does anything after a ReLU."""
    x = torch.randint(0, 3, (1, 33, 5, 6), device=device).to(torch.bfloat16).requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 5, 4], [0, 1, 1, 4, 4]], device=device)
    weights = torch.randint(1, 5, (2, 33, 2, 2), device=device)
    (ours,) = torch.autograd.grad((cvops.ops.roi_pool(x, rois, 2) * weights).sum(), x)
    wide = x.detach().float().requires_grad_()
    (theirs,) = torch.autograd.grad((reference_roi_pool(wide, rois, 2) * weights).sum(), wide)
    assert torch.equal(ours.float(), theirs)


def test_not_a_number_is_never_the_largest(device):
    x = torch.tensor([[[[NAN, -3.0], [-INF, NAN]]]], device=device)
    for c in (1, 9):
        maps = x.expand(1, c, 2, 2).contiguous()
        for box, largest in (([0, 0, 1, 1], -3.0), ([0, 1, 0, 1], -INF), ([0, 0, 0, 0], 0.0)):
            rois = torch.tensor([[0.0, *box]], device=device)
            assert cvops.ops.roi_pool(maps, rois, 1).unique().tolist() == [largest]


def test_module(device, torchvision):
    x, rois = torch.randn(2, 3, 20, 20, device=device), torch.tensor([[1.0, 2, 3, 150, 160]], device=device)
    ours, theirs = cvops.ops.RoIPool(3, 0.1), torchvision.ops.RoIPool(3, 0.1)
    assert torch.equal(ours(x, rois), theirs(x, rois))
    assert repr(ours) == repr(theirs)
