"""depthwise_conv2d against torch's grouped convolution, on every depthwise shape of MobileNetV2 and EfficientNet-B0 at
224 x 224 and on 7x7 layers (ConvNeXt-T), batch 8; three of them at batch 1 as well, where fixed costs show."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from bench.common import Case, Contest, Group, benchmarks, forward_backward, nbytes
from cvops import ops

# (channels, size, kernel, stride)
MOBILENET_V2 = [
    (32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 3, 2), (192, 28, 3, 1),
    (192, 28, 3, 2), (384, 14, 3, 1), (576, 14, 3, 1), (576, 14, 3, 2), (960, 7, 3, 1),
]  # fmt: skip
EFFICIENTNET_B0 = [
    (144, 56, 5, 2), (240, 28, 5, 1), (240, 28, 3, 2), (480, 14, 3, 1), (480, 14, 5, 1),
    (672, 14, 5, 1), (672, 14, 5, 2), (1152, 7, 5, 1), (1152, 7, 3, 1),
]  # fmt: skip
SEVEN = [(96, 56, 7, 1), (192, 28, 7, 1), (384, 14, 7, 1), (768, 7, 7, 1)]
SHAPES = [(8, *shape) for shape in MOBILENET_V2 + EFFICIENTNET_B0 + SEVEN]
SHAPES += [(1, 32, 112, 3, 1), (1, 576, 14, 3, 1), (1, 672, 14, 5, 2)]
QUICK = ((8, 144, 56, 3, 1), (8, 672, 14, 5, 1))

GROUPS = {
    "forward NCHW": Group("depthwise forward NCHW", 1.5, 0.95),
    "forward NHWC": Group("depthwise forward NHWC", 1.0),
    "forward+backward": Group("depthwise forward+backward", 3.0, 0.95),
}


def contest(mode: str, n: int, c: int, size: int, kernel: int, stride: int, device: str) -> Contest:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if mode == "forward NHWC" else torch.contiguous_format
    x = torch.randn(n, c, size, size, generator=generator).to(device, memory_format=layout)
    weight = torch.randn(c, 1, kernel, kernel, generator=generator).to(device)
    bias = torch.randn(c, generator=generator).to(device)
    padding = kernel // 2
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)

    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.depthwise_conv2d(x, weight, bias, stride, padding)

    def peer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, bias, stride, padding, 1, c)

    out = peer(x, weight, bias)
    flops = 2 * out.numel() * kernel**2
    if mode != "forward+backward":
        bytes_moved = nbytes(x, weight, bias, out)
        return Contest(
            lambda: ours(x, weight, bias), {"torch": lambda: peer(x, weight, bias)}, bytes_moved, close, flops
        )
    grad = torch.randn(out.shape, generator=generator).to(device)
    # forward: x, out; gradients: grad, x, grad of x
    bytes_moved = nbytes(x, out, grad, x, x, weight, bias, weight, bias)
    calls = (forward_backward(call, x, weight, bias, grad=grad) for call in (ours, peer))
    return Contest(next(calls), {"torch": next(calls)}, bytes_moved, partial(close, atol=1e-2), 3 * flops)


CASES = [
    Case(
        "depthwise_conv2d",
        f"{mode} {n}x{c}x{size}x{size} {kernel}x{kernel} stride {stride}",
        partial(contest, mode, n, c, size, kernel, stride),
        group=group,
        quick=(n, c, size, kernel, stride) in QUICK,
    )
    for mode, group in GROUPS.items()
    for n, c, size, kernel, stride in SHAPES
]

test_depthwise_conv2d = benchmarks(CASES)
