"""drop_path against timm's and torchvision's stochastic depth, drop_channel against torch's dropout of channels. Masks
are random, so agreement means: kept samples are the scaled input, and the rate is near p."""

from __future__ import annotations

from functools import partial

import timm.layers.drop as timm
import torch
import torch.nn.functional as F
import torchvision.ops as peer

from bench.common import Call, Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops

P = 0.2


def contest(op: str, size: tuple[int, ...], dtype: torch.dtype, mode: str, device: str) -> Contest:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(size, generator=generator) + 0.5).to(device, dtype)
    calls = (
        {
            "cvops": lambda t: ops.drop_path(t, P),
            "timm": lambda t: timm.drop_path(t, P, True),
            "torchvision": lambda t: peer.stochastic_depth(t, P, "row"),
        }
        if op == "drop_path"
        else {"cvops": lambda t: ops.drop_channel(t, P), "torch": lambda t: F.dropout2d(t, P)}
    )

    def call(name: str) -> Call:
        if mode == "forward+backward":
            return forward_backward(calls[name], x, grad=x)
        return lambda: (calls[name](x),)

    def agree(ours: tuple[torch.Tensor], theirs: tuple[torch.Tensor]) -> None:
        groups = size[0] * (1 if op == "drop_path" else size[1])
        for out in (ours[0], theirs[0]):
            kept = out != 0
            torch.testing.assert_close(out[kept].double(), x[kept].double() / (1 - P), rtol=4e-3, atol=0)
            assert abs(1 - kept.double().mean().item() - P) < 6 * (P * (1 - P) / groups) ** 0.5

    return Contest(
        cvops=call("cvops"),
        peers={name: call(name) for name in calls if name != "cvops"},
        bytes=nbytes(x, x) * (2 if mode == "forward+backward" else 1),
        agree=agree,
    )


CASES = [
    Case(
        op,
        f"{'x'.join(map(str, size))} {str(dtype)[6:]} {mode}",
        partial(contest, op, size, dtype, mode),
        quick=size[0] == 64 and mode == "forward" and dtype == torch.float32,
    )
    for op, size, dtype, mode in (
        ("drop_path", (64, 197, 768), torch.float32, "forward"),
        ("drop_path", (64, 197, 768), torch.float32, "forward+backward"),
        ("drop_path", (64, 197, 768), torch.bfloat16, "forward"),
        ("drop_path", (8, 96, 28, 28), torch.float32, "forward"),
        ("drop_channel", (32, 256, 28, 28), torch.float32, "forward"),
        ("drop_channel", (32, 256, 28, 28), torch.float32, "forward+backward"),
    )
]

test_drop_path = benchmarks(CASES)
