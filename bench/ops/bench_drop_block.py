"""drop_block2d and drop_block3d against torchvision, and against timm where it does the same (a mask per channel, odd
blocks). Masks are random, so agreement means: the same rule for what is kept, and rates that fit the method."""

from __future__ import annotations

from functools import partial

import timm.layers.drop as timm
import torch
import torchvision.ops as peer

from bench.common import Call, Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops


def contest(
    size: tuple[int, ...], block: int, p: float, dtype: torch.dtype, layout: str, mode: str, device: str
) -> Contest:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(size, generator=generator) + 0.5).to(device, dtype)
    if layout == "NHWC":
        x = x.to(memory_format=torch.channels_last)
    flat = len(size) == 4
    calls = {
        "cvops": ops.drop_block2d if flat else ops.drop_block3d,
        "torchvision": peer.drop_block2d if flat else peer.drop_block3d,
    }
    if block % 2 == 0:
        del calls["torchvision"]  # rejects even blocks
    if flat:
        calls["timm"] = partial(timm.drop_block_2d, couple_channels=False)

    def call(name: str) -> Call:
        arguments = (p, block)
        if mode == "forward+backward":
            return forward_backward(lambda t: calls[name](t, *arguments), x, grad=x)
        return lambda: (calls[name](x, *arguments),)

    def agree(ours: tuple[torch.Tensor], theirs: tuple[torch.Tensor]) -> None:
        kept = ours[0] != 0
        share = kept.double().mean().item()
        torch.testing.assert_close(1 - share, p, rtol=0.05, atol=0.01)
        scaled = x[kept].double() / share
        torch.testing.assert_close(ours[0][kept].double(), scaled, rtol=2e-3, atol=1e-3)
        if dtype == torch.float32:  # in float16 torchvision returns zeros
            kept = theirs[0] != 0
            share = kept.double().mean().item()
            torch.testing.assert_close(1 - share, p, rtol=2, atol=0.05)
            torch.testing.assert_close(theirs[0][kept].double(), x[kept].double() / share, rtol=1e-3, atol=1e-3)

    return Contest(
        cvops=call("cvops"),
        peers={name: call(name) for name in calls if name != "cvops"},
        bytes=nbytes(x, x) * (2 if mode == "forward+backward" else 1),
        agree=agree,
    )


STAGE = (32, 256, 56, 56)
HALF = (64, 64, 32, 32)
DEEP = (8, 512, 14, 14)
VOLUME = (4, 64, 16, 28, 28)
CASES = [
    Case(
        "drop_block",
        f"{'x'.join(map(str, size))} block {block} {str(dtype)[6:]} {layout} {mode}",
        partial(contest, size, block, 0.1, dtype, layout, mode),
        target=target,
        quick=quick,
    )
    for size, block, dtype, layout, mode, target, quick in (
        (STAGE, 7, torch.float32, "NCHW", "forward", 40, False),
        (STAGE, 7, torch.float32, "NCHW", "forward+backward", 20, False),
        (STAGE, 7, torch.float32, "NHWC", "forward", None, False),
        (STAGE, 3, torch.float32, "NCHW", "forward", None, False),
        (HALF, 7, torch.float16, "NCHW", "forward", None, False),
        (DEEP, 7, torch.float32, "NCHW", "forward", None, True),
        (DEEP, 7, torch.float32, "NCHW", "forward+backward", None, True),
        (DEEP, 4, torch.float32, "NCHW", "forward", None, False),
        ((2, 64, 160, 240), 7, torch.float32, "NCHW", "forward", None, False),
        (VOLUME, 5, torch.float32, "NCHW", "forward", None, False),
    )
]

test_drop_block = benchmarks(CASES)
