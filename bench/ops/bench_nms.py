"""nms and batched_nms against torchvision. Boxes are uniform over a 1000 x 1000 image with sides up to 120, scores
uniform: a one-stage detector before its score threshold. Dense boxes (a third of the image) are a case of their own."""

from __future__ import annotations

from functools import partial

import torch
import torchvision.ops as peer

from bench.common import Case, Contest, benchmarks, nbytes
from bench.ops.bench_box_iou import boxes
from cvops import ops


def contest(n: int, classes: int, scale: float, device: str) -> Contest:
    generator = torch.Generator().manual_seed(1)
    candidates = boxes(n, device, 0)
    candidates[:, 2:] = candidates[:, :2] + (candidates[:, 2:] - candidates[:, :2]) * scale
    scores = (torch.randperm(n, generator=generator).float() / n).to(device)  # no ties: torchvision leaves them open
    if classes == 0:
        return Contest(
            cvops=lambda: ops.nms(candidates, scores, 0.5),
            peers={"torchvision": lambda: peer.nms(candidates, scores, 0.5)},
            bytes=nbytes(candidates, scores),
        )
    idxs = torch.randint(0, classes, (n,), generator=generator).to(device)
    return Contest(
        cvops=lambda: ops.batched_nms(candidates, scores, idxs, 0.5),
        peers={"torchvision": lambda: peer.batched_nms(candidates, scores, idxs, 0.5)},
        bytes=nbytes(candidates, scores, idxs),
    )


CASES = [
    *(
        Case("nms", f"nms {n:,}", partial(contest, n, 0, 1.0), target=target, quick=n == 10_000)
        for n, target in ((1_000, 5), (10_000, 30), (40_000, 50))
    ),
    Case("nms", "nms 10,000 dense", partial(contest, 10_000, 0, 6.0)),
    *(
        Case("nms", f"batched_nms {n:,} 80 classes", partial(contest, n, 80, 1.0), target=target, quick=n == 10_000)
        for n, target in ((10_000, 5), (40_000, 8))
    ),
]

test_nms = benchmarks(CASES)
