"""More than 2^31 elements, where a 32-bit index would wrap around: a case for each way of walking memory. Maps are
zeros that the system has not handed out yet, so that reading them costs little. Under the CUDA backend on the host,
where every thread is a fiber, only what touches few of the elements runs."""

import numpy as np
import pytest
import torch

from cvops import ops

SIDE = 32_776  # 2 * SIDE * SIDE is 2^31 + 1,048,704; a single plane has to have fewer than 2^31 pixels for RoIs
FAR = SIDE - 8


@pytest.fixture(scope="module")
def far_map():
    """Zeros but for the last 8 x 8 pixels of the last plane. numpy leaves zeros untouched, torch writes them."""
    heat = torch.from_numpy(np.zeros((1, 2, SIDE, SIDE), np.int16)).view(torch.bfloat16)
    heat[0, 1, FAR:, FAR:] = torch.arange(64.0).reshape(8, 8)
    assert heat.numel() > 2**31
    return heat


@pytest.mark.parametrize("op", [ops.roi_align, ops.roi_pool])
def test_rois_at_the_far_end(op, far_map, device):
    heat = far_map.to(device)
    near = torch.tensor([[0, 1.0, 1.0, 6.0, 6.0]], device=device)
    far = op(heat, near + torch.tensor([0, FAR, FAR, FAR, FAR], device=device), 3)
    assert torch.equal(far, op(heat[..., FAR:, FAR:], near, 3))
    assert far[:, 1].amin() > 0


def test_peaks_at_the_far_end(far_map, device, on_cuda_host):
    heat = (far_map[..., FAR:, FAR:] if on_cuda_host else far_map).to(device)
    score, channel, y, x = ops.heatmap_peaks(heat, 1)
    at = heat.shape[-1] - 1
    assert (score.item(), channel.item(), y.item(), x.item()) == (63.0, 1, at, at)


def test_masks_at_the_far_end(device, on_cuda_host):
    side = 64 if on_cuda_host else SIDE
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [side - 8, side - 8, side, side]], device=device)
    pasted = ops.mask_paste(torch.ones(2, 1, 4, 4, device=device), boxes, (side, side))
    assert pasted[0, :8, :8].all()
    assert not pasted[0, 8].any()
    assert not pasted[0, -8:].any()
    assert pasted[1, -8:, -8:].all()
    assert not pasted[1, -9].any()
    assert not pasted[1, :, -9].any()


def test_drop_block_of_the_far_end(device, on_cuda_host):
    side = 64 if on_cuda_host else SIDE
    ones = torch.ones(1, 2, side, side, dtype=torch.bfloat16, device=device)
    dropped = ops.drop_block2d(ones, 0.25, 8, inplace=True, seed=3)
    scales = set()
    for strip in (dropped[:, 0, :64], dropped[:, 1, -64:]):
        kept = strip != 0
        assert 0.6 < kept.float().mean() < 0.9
        scales.update(strip[kept].tolist())
    assert len(scales) == 1, "one scale from the first element to the last"
    assert abs(scales.pop() - 4 / 3) < (0.1 if on_cuda_host else 0.01)
    assert dropped.data_ptr() == ones.data_ptr()
