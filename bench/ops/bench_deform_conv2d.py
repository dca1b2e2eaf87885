"""deform_conv2d v2 against torchvision: the layers of CenterNet's ResNet-18-DCN head, and a wide 3x3 layer."""

from __future__ import annotations

from functools import partial

import torch
import torchvision.ops as peer

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops

# batch, channels in, channels out, height and width; 3x3, padding 1
SHAPES = [(1, 512, 256, 16), (1, 256, 128, 32), (1, 128, 64, 64), (4, 64, 64, 64), (2, 256, 256, 32)]


def contest(backward: bool, n: int, c: int, out_c: int, size: int, device: str) -> Contest:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, offset, weight, mask = (
        draw(n, c, size, size),
        draw(n, 18, size, size),
        draw(out_c, c, 3, 3),
        draw(n, 9, size, size),
    )
    grad = draw(n, out_c, size, size)

    def call(function):
        def run(x, offset, weight, mask):
            return function(x, offset, weight, None, 1, 1, 1, mask)

        inputs = (x, offset, weight, mask)
        return forward_backward(run, *inputs, grad=grad) if backward else lambda: run(*inputs)

    bytes_moved = nbytes(x, offset, weight, mask, grad) * (3 if backward else 1)
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-2)
    flops = 2 * 9 * c * grad.numel() * (3 if backward else 1)  # of the product alone
    return Contest(call(ops.deform_conv2d), {"torchvision": call(peer.deform_conv2d)}, bytes_moved, close, flops)


CASES = [
    Case(
        "deform_conv2d",
        f"{n}x{c}x{size}x{size} to {out_c}, 3x3, forward{'+backward' if backward else ''}",
        partial(contest, backward, n, c, out_c, size),
    )
    for backward in (False, True)
    for n, c, out_c, size in SHAPES
]

test_deform_conv2d = benchmarks(CASES)
