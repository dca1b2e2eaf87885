"""What a depthwise convolution on small planes takes when they have left the nearer caches.

    python -m bench.cold_planes

Repeats a call, then makes a pass over 24 MB before each, with a heap that gives nothing back. Prints medians.
"""

from __future__ import annotations

import statistics

import torch

from bench.common import keep_heap, seconds
from bench.ops.bench_depthwise_conv2d import contest

SHAPES = [(8, 384, 14, 3, 1), (8, 576, 14, 3, 1), (8, 576, 14, 3, 2), (8, 672, 14, 5, 1), (8, 960, 7, 3, 1)]


def main() -> None:
    keep_heap()
    other = torch.ones(6 << 20)
    for shape in SHAPES:
        n, c, size, kernel, stride = shape
        for mode in ("forward NCHW", "forward+backward"):
            call = contest(mode, *shape, "cpu").cvops
            times: dict[str, list[float]] = {"repeated": [], "cold": []}
            for _ in range(200):
                times["repeated"].append(seconds(call, 1, "cpu"))
            for _ in range(200):
                other.mul_(1.0)
                times["cold"].append(seconds(call, 1, "cpu"))
            medians = ", ".join(f"{name} {statistics.median(t) * 1e3:.3f} ms" for name, t in times.items())
            print(f"{mode} {n}x{c}x{size}x{size} {kernel}x{kernel} stride {stride}: {medians}")


if __name__ == "__main__":
    main()
