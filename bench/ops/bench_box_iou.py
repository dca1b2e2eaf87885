"""box_iou and generalized_box_iou against torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.common import Case, Contest, benchmarks, nbytes
from cvops import ops


def boxes(n: int, device: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=generator) * 1000
    wh = torch.rand(n, 2, generator=generator) * 120 + 1
    return torch.cat([xy, xy + wh], 1).to(device)


def contest(name: str, n: int, m: int, device: str) -> Contest:
    from torchvision.ops import boxes as peer

    a, b = boxes(n, device, 0), boxes(m, device, 1)
    call: Callable[..., torch.Tensor] = getattr(ops, name)
    return Contest(
        cvops=lambda: call(a, b),
        peers={"torchvision": lambda: getattr(peer, name)(a, b)},
        bytes=nbytes(a, b) + 4 * n * m,
        agree=partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5),
    )


CASES = [
    Case("box_iou", f"{name} {n} x {m}", partial(contest, name, n, m), target=target, quick=n == 4000)
    for name, target in (("box_iou", 30), ("generalized_box_iou", 50), ("distance_box_iou", None))
    for n, m, target in ((4000, 2000, target), (500, 100, None))
]

test_box_iou = benchmarks(CASES)
