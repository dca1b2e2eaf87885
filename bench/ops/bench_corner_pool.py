"""corner_pool against flip and cummax, which is what mmcv runs, at the map sizes of
CornerNet (128 x 128, 128 or 256 channels) and at others."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.common import Call, Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def flip_cummax(x: Tensor, direction: str) -> Tensor:
    axis = 2 if direction in ("top", "bottom") else 3
    if direction in ("bottom", "right"):
        return x.cummax(axis).values
    return x.flip(axis).cummax(axis).values.flip(axis)


def nearly(ours: tuple[Tensor], theirs: tuple[Tensor]) -> None:
    """Sums of half types: in float32 here, rounded after every addition there."""
    torch.testing.assert_close(ours[0].float(), theirs[0].float(), rtol=2e-2, atol=0.25)


def contest(size: tuple[int, ...], direction: str, layout: str, dtype: torch.dtype, mode: str, device: str) -> Contest:
    generator = torch.Generator().manual_seed(0)
    x, grad = (
        torch.randn(size, generator=generator).to(device, dtype).to(memory_format=LAYOUTS[layout]) for _ in range(2)
    )
    calls = {"cvops": ops.corner_pool, "flip + cummax": flip_cummax}

    def call(name: str) -> Call:
        if mode == "forward+backward":
            return forward_backward(lambda t: calls[name](t, direction), x, grad=grad)
        return lambda: (calls[name](x, direction),)

    return Contest(
        cvops=call("cvops"),
        peers={"flip + cummax": call("flip + cummax")},
        bytes=nbytes(x, x, x, x, x) if mode == "forward+backward" else nbytes(x, x),
        agree=None if dtype == torch.float32 or mode == "forward" else nearly,
    )


CASES = [
    Case(
        "corner_pool",
        f"{'x'.join(map(str, size))} {direction} {layout} {str(dtype)[6:]} {mode}",
        partial(contest, size, direction, layout, dtype, mode),
        quick=size[0] == 2 and direction == "top" and layout == "NCHW" and dtype == torch.float32,
    )
    for size, direction, layout, dtype, mode in (
        ((2, 256, 128, 128), "top", "NCHW", torch.float32, "forward"),
        ((2, 256, 128, 128), "left", "NCHW", torch.float32, "forward"),
        ((2, 256, 128, 128), "bottom", "NCHW", torch.float32, "forward"),
        ((2, 256, 128, 128), "right", "NCHW", torch.float32, "forward"),
        ((2, 256, 128, 128), "top", "NCHW", torch.float32, "forward+backward"),
        ((2, 256, 128, 128), "left", "NCHW", torch.float32, "forward+backward"),
        ((2, 256, 128, 128), "top", "NHWC", torch.float32, "forward"),
        ((2, 256, 128, 128), "left", "NHWC", torch.float32, "forward"),
        ((2, 256, 128, 128), "left", "NHWC", torch.float32, "forward+backward"),
        ((8, 128, 128, 128), "top", "NCHW", torch.float32, "forward"),
        ((8, 128, 128, 128), "left", "NCHW", torch.float32, "forward"),
        ((2, 256, 128, 128), "top", "NCHW", torch.bfloat16, "forward"),
        ((2, 256, 128, 128), "left", "NCHW", torch.float16, "forward"),
        ((2, 256, 128, 128), "left", "NCHW", torch.float16, "forward+backward"),
        ((1, 64, 32, 32), "top", "NCHW", torch.float32, "forward"),
        ((1, 64, 32, 32), "left", "NCHW", torch.float32, "forward"),
        ((1, 1, 1000, 1000), "top", "NCHW", torch.float32, "forward"),
        ((1, 1, 1000, 1000), "left", "NCHW", torch.float32, "forward"),
    )
]

test_corner_pool = benchmarks(CASES)
