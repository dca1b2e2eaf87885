"""heatmap_peaks against max-pooling, comparison and two top-k, as CenterNet and CornerNet decode."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops


def decode(heat: Tensor, k: int, kernel: int) -> tuple[Tensor, ...]:
    """`_nms` and `_topk` of CenterNet."""
    height, width = heat.shape[2:]
    heat = heat * (F.max_pool2d(heat, kernel, 1, kernel // 2) == heat).to(heat.dtype)
    scores, places = torch.topk(heat.flatten(2), min(k, height * width))
    best, index = torch.topk(scores.flatten(1), k)
    places = places.flatten(1).gather(1, index)
    return best, index // scores.shape[2], places // width, places % width


def heat_map(shape: tuple[int, ...], smooth: bool, dtype: torch.dtype, device: str) -> Tensor:
    """Noise, or the blobs of a trained network over a faint background."""
    torch.manual_seed(0)
    noise = torch.rand(shape)
    if smooth:
        coarse = torch.randn(*shape[:2], shape[2] // 8, shape[3] // 8)
        noise = torch.sigmoid(3 * F.interpolate(coarse, shape[2:], mode="bicubic") - 6) + 1e-3 * noise
    return noise.to(device, dtype)


def same_scores(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Which of two equal scores comes first is chance in torch.topk."""
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)


def contest(
    shape: tuple[int, ...], k: int, kernel: int, smooth: bool, dtype: torch.dtype, backward: bool, device: str
) -> Contest:
    heat = heat_map(shape, smooth, dtype, device)
    if backward:
        grad = torch.ones(shape[0], k, device=device, dtype=dtype)
        return Contest(
            cvops=forward_backward(lambda h: ops.heatmap_peaks(h, k, kernel)[0], heat, grad=grad),
            peers={"CenterNet": forward_backward(lambda h: decode(h, k, kernel)[0], heat, grad=grad)},
            bytes=2 * nbytes(heat),
        )
    return Contest(
        cvops=lambda: ops.heatmap_peaks(heat, k, kernel),
        peers={"CenterNet": lambda: decode(heat, k, kernel)},
        bytes=nbytes(heat) + shape[0] * k * 28,
        agree=same_scores,
    )


COCO, BATCH = (1, 80, 128, 128), (16, 80, 128, 128)
single, half = torch.float32, torch.bfloat16
CASES = [
    Case("heatmap_peaks", "1 x 80 x 128 x 128, k 100, noise", partial(contest, COCO, 100, 3, False, single, False)),
    Case(
        "heatmap_peaks",
        "1 x 80 x 128 x 128, k 100, blobs",
        partial(contest, COCO, 100, 3, True, single, False),
        quick=True,
    ),
    Case("heatmap_peaks", "16 x 80 x 128 x 128, k 100", partial(contest, BATCH, 100, 3, True, single, False)),
    Case("heatmap_peaks", "bfloat16", partial(contest, COCO, 100, 3, True, half, False)),
    Case("heatmap_peaks", "k 1000", partial(contest, COCO, 1000, 3, True, single, False)),
    Case("heatmap_peaks", "kernel 7", partial(contest, COCO, 100, 7, True, single, False)),
    Case("heatmap_peaks", "plain top-k, kernel 1", partial(contest, COCO, 100, 1, True, single, False)),
    Case("heatmap_peaks", "1 x 1 x 152 x 272, k 500", partial(contest, (1, 1, 152, 272), 500, 3, True, single, False)),
    Case("heatmap_peaks backward", "1 x 80 x 128 x 128", partial(contest, COCO, 100, 3, False, single, True)),
]

test_heatmap_peaks = benchmarks(CASES)
