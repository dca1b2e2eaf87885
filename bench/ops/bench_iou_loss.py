"""IoU losses of 100,000 matched pairs, forward + backward, against torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.ops as peer

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from bench.ops.bench_box_iou import boxes
from cvops import ops

N = 100_000


def contest(name: str, backward: bool, device: str) -> Contest:
    a = boxes(N, device, 0)
    b = a + torch.rand(N, 4, generator=torch.Generator().manual_seed(2)).to(device)
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "cvops": getattr(ops, name),
        "torchvision": getattr(peer, name),
    }

    def call(function: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        loss = partial(function, reduction="sum")
        return forward_backward(loss, a, b, grad=None) if backward else lambda: loss(a, b)

    return Contest(
        cvops=call(functions["cvops"]),
        peers={"torchvision": call(functions["torchvision"])},
        bytes=nbytes(a, b) * (2 if backward else 1),
        agree=partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4),
    )


CASES = [
    Case(
        "iou_loss",
        f"{name} 100k {'forward+backward' if backward else 'forward'}",
        partial(contest, name, backward),
        target=6 if name == "generalized_box_iou_loss" and backward else None,
        quick=name == "generalized_box_iou_loss" and backward,
    )
    for name in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
    for backward in (False, True)
]

test_iou_loss = benchmarks(CASES)
