"""roi_align of 1000 boxes on 2x256x200x272 (stride 4), 7x7, and multiscale_roi_align on a four-level pyramid of an
800x1088 image, against torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision.ops as peer

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops

HEIGHT, WIDTH = 800, 1088
CLOSE = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)


def random_rois(k: int, images: int, device: str, seed: int = 0) -> torch.Tensor:
    """RoIs of 20 to 400 pixels in an image of 800 x 1088."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    centre = torch.rand(k, 2, generator=generator) * size[:2]
    side = 20 + 380 * torch.rand(k, 2, generator=generator)
    boxes = torch.minimum(torch.cat([centre - side / 2, centre + side / 2], 1).clamp(min=0), size)
    return torch.cat([torch.randint(0, images, (k, 1), generator=generator).float(), boxes], 1).to(device)


BLEND = 8  # flops of a bilinear sample


def contest(layout: torch.memory_format, backward: bool, k: int, ratio: int, device: str) -> Contest:
    x = torch.randn(2, 256, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(1))
    x = x.to(device, memory_format=layout)
    rois = random_rois(k, 2, device)

    def call(function: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: function(x, rois, 7, 1 / 4, ratio)

    ours, theirs = call(ops.roi_align), call(peer.roi_align)
    out = ours(x)
    flops = BLEND * ratio**2 * out.numel()
    if not backward:
        return Contest(lambda: ours(x), {"torchvision": lambda: theirs(x)}, nbytes(x, rois, out), CLOSE, flops)
    grad = torch.randn_like(out)
    calls = [forward_backward(function, x, grad=grad) for function in (ours, theirs)]
    return Contest(calls[0], {"torchvision": calls[1]}, nbytes(x, rois, out, grad, x), CLOSE, 2 * flops)


def pyramid(backward: bool, device: str) -> Contest:
    maps = [torch.randn(1, 256, HEIGHT >> i, WIDTH >> i, device=device) for i in (2, 3, 4, 5)]
    boxes = [random_rois(1000, 1, device)[:, 1:]]
    pools = [p.MultiScaleRoIAlign(list("0123"), 7, 2) for p in (ops, peer)]

    def call(pool: torch.nn.Module) -> Callable[..., torch.Tensor]:
        return lambda *maps: pool(dict(zip("0123", maps, strict=True)), boxes, [(HEIGHT, WIDTH)])

    ours, theirs = map(call, pools)
    out = ours(*maps)
    flops = BLEND * 2**2 * out.numel()
    if not backward:
        return Contest(lambda: ours(*maps), {"torchvision": lambda: theirs(*maps)}, nbytes(*maps, out), CLOSE, flops)
    grad = torch.randn_like(out)
    calls = [forward_backward(function, *maps, grad=grad) for function in (ours, theirs)]
    return Contest(calls[0], {"torchvision": calls[1]}, nbytes(*maps, out, grad, *maps), CLOSE, 2 * flops)


NCHW, NHWC = torch.contiguous_format, torch.channels_last
CASES = [
    Case("roi_align", "1000 RoIs forward NCHW", partial(contest, NCHW, False, 1000, 2), target=10, quick=True),
    Case("roi_align", "1000 RoIs forward NHWC", partial(contest, NHWC, False, 1000, 2), target=20),
    Case("roi_align", "1000 RoIs forward+backward NCHW", partial(contest, NCHW, True, 1000, 2), target=10),
    Case("roi_align", "1000 RoIs forward+backward NHWC", partial(contest, NHWC, True, 1000, 2)),
    Case("roi_align", "1000 RoIs adaptive forward NCHW", partial(contest, NCHW, False, 1000, 0)),
    Case("roi_align", "1000 RoIs adaptive forward NHWC", partial(contest, NHWC, False, 1000, 0)),
    Case("roi_align", "20 RoIs forward NCHW", partial(contest, NCHW, False, 20, 2)),
    Case("roi_align", "20 RoIs forward NHWC", partial(contest, NHWC, False, 20, 2)),
    Case("multiscale_roi_align", "1000 boxes, 4 levels, forward", partial(pyramid, False)),
    Case("multiscale_roi_align", "1000 boxes, 4 levels, forward+backward", partial(pyramid, True)),
]

test_roi_align = benchmarks(CASES)
