"""ps_roi_pool and PSRoIPool: values, layouts, gradients, transforms, errors."""

import torch

import cvops
from ops.rois import RoiSuite, any_geometry


class TestPSRoIPool(RoiSuite):
    name = "ps_roi_pool"
    position_sensitive = True
    peer_gradient = False  # reaches the last row and column of the map, which its forward does not read


test_any_geometry = any_geometry(TestPSRoIPool())


def test_channel_mapping_names_the_input_channel(device):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 12, 5, 5, device=device).contiguous(memory_format=layout)
        rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
        arguments = (1.0, 2, 3)
        _, mapping = torch.ops.cvops.ps_roi_pool(x, rois, *arguments)
        assert mapping.dtype == torch.int32
        assert torch.equal(mapping.cpu().flatten(), torch.arange(12, dtype=torch.int32))


def test_module(device, torchvision):
    x, rois = torch.randn(2, 18, 20, 20, device=device), torch.tensor([[1.0, 2, 3, 150, 160]], device=device)
    ours, theirs = (p.ops.PSRoIPool(3, 0.1) for p in (cvops, torchvision))
    torch.testing.assert_close(ours(x, rois), theirs(x, rois))
    assert repr(ours) == repr(theirs)
