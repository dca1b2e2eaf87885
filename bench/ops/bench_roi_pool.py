"""roi_pool of 1000 boxes on 2x256x200x272 (stride 4), 7x7, against torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision.ops as peer

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from bench.ops.bench_roi_align import CLOSE, NCHW, NHWC, random_rois
from cvops import ops


def contest(layout: torch.memory_format, backward: bool, device: str) -> Contest:
    x = torch.randn(2, 256, 200, 272, generator=torch.Generator().manual_seed(1)).to(device, memory_format=layout)
    rois = random_rois(1000, 2, device)

    def call(function: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: function(x, rois, 7, 1 / 4)

    ours, theirs = call(ops.roi_pool), call(peer.roi_pool)
    out = ours(x)
    if not backward:
        return Contest(lambda: ours(x), {"torchvision": lambda: theirs(x)}, nbytes(x, rois, out, out), CLOSE)
    grad = torch.randn_like(out)
    calls = [forward_backward(function, x, grad=grad) for function in (ours, theirs)]
    return Contest(calls[0], {"torchvision": calls[1]}, nbytes(x, rois, out, out, grad, x), CLOSE)


CASES = [
    Case(
        "roi_pool",
        f"1000 RoIs {'forward+backward' if backward else 'forward'} {'NHWC' if layout == NHWC else 'NCHW'}",
        partial(contest, layout, backward),
    )
    for backward in (False, True)
    for layout in (NCHW, NHWC)
]

test_roi_pool = benchmarks(CASES)
