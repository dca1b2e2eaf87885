"""match_boxes against torchvision's box_iou and Matcher: 100,000 anchors, 100 targets."""

from __future__ import annotations

from functools import partial

import torch
import torchvision.ops as peer
from torchvision.models.detection._utils import Matcher

from bench.common import Case, Contest, benchmarks, nbytes
from bench.ops.bench_box_iou import boxes
from cvops import ops


def grid(device: str) -> torch.Tensor:
    """100,800 anchors as a detector lays them: three shapes at each cell of a 168 x 200 map, stride 8."""
    y, x = torch.meshgrid(torch.arange(168.0), torch.arange(200.0), indexing="ij")
    centre = torch.stack([x, y], -1).view(-1, 1, 2) * 8 + 4
    half = torch.tensor([[16.0, 16], [11.3, 22.6], [22.6, 11.3]])
    return torch.cat([centre - half, centre + half], -1).view(-1, 4).to(device)


def contest(low_quality: bool, on_grid: bool, device: str) -> Contest:
    anchors = grid(device) if on_grid else boxes(100_000, device, 0)
    targets = boxes(100, device, 1)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)
    return Contest(
        cvops=lambda: ops.match_boxes(anchors, targets, 0.4, 0.5, allow_low_quality=low_quality)[0],
        peers={"torchvision": lambda: matcher(peer.box_iou(targets, anchors))},
        bytes=nbytes(anchors, targets) + len(anchors) * 12 + len(targets) * 8,
    )


CASES = [
    Case(
        "match_boxes",
        f"100k x 100 {'grid' if on_grid else 'random'}{', low quality' if low_quality else ''}",
        partial(contest, low_quality, on_grid),
        target=10,
        quick=on_grid and low_quality,
    )
    for on_grid in (False, True)
    for low_quality in (False, True)
]

test_match_boxes = benchmarks(CASES)
