"""fold_batch_norm against torch's fuse_conv_bn_weights, frozen_batch_norm against torchvision's layer and torch's
batch_norm, and norm and activation in place against torch's two calls, at layers of ResNet-50 and MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops
from cvops.ops.batch_norm import batch_norm_act_

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def norm_entries(channels: int, device: str) -> list[Tensor]:
    """Mean, variance, scale and shift."""
    generator = torch.Generator().manual_seed(0)
    return list((torch.rand(4, channels, generator=generator) + 0.5).to(device).unbind())


def fold(size: tuple[int, ...], device: str) -> Contest:
    mean, var, gain, offset = norm_entries(size[0], device)
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)

    def torchs() -> tuple[Tensor, ...]:
        pair = fuse_conv_bn_weights(weight, None, mean, var, 1e-5, gain, offset)
        return tuple(t.detach() for t in pair)

    def ours() -> tuple[Tensor, ...]:
        return ops.fold_batch_norm(weight, None, mean, var, gain, offset)

    return Contest(ours, {"torch": torchs}, nbytes(weight, weight, mean, var, gain, offset, mean))


def frozen(size: tuple[int, ...], layout: str, training: bool, device: str) -> Contest:
    entries = norm_entries(size[1], device)
    source = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device, memory_format=LAYOUTS[layout])
    layer = torchvision.ops.FrozenBatchNorm2d(size[1]).to(device)
    for name, entry in zip(("running_mean", "running_var", "weight", "bias"), entries, strict=True):
        getattr(layer, name).copy_(entry)

    def run(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return forward_backward(function, source, grad=source) if training else lambda: function(source)

    peers = {
        "torchvision": run(layer),
        "torch": run(lambda x: F.batch_norm(x, *entries)),
    }
    moved = nbytes(source, source)  # forward: read and write; backward: the same of the gradient
    return Contest(run(lambda x: ops.frozen_batch_norm(x, *entries)), peers, moved * (2 if training else 1))


def in_place(size: tuple[int, ...], layout: str, device: str) -> Contest:
    """Of maps that were just written, as a convolution leaves them: the copy is timed on both sides."""
    entries = norm_entries(size[1], device)
    source = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device, memory_format=LAYOUTS[layout])
    maps, others = source.clone(), source.clone()

    def ours() -> tuple[Tensor]:
        return (batch_norm_act_(maps.copy_(source), *entries, activation="relu6"),)

    def torchs() -> tuple[Tensor]:
        with torch.inference_mode():
            return (F.relu6(F.batch_norm(others.copy_(source), *entries), True),)

    return Contest(ours, {"torch": torchs}, nbytes(source, maps, maps, maps))


CASES = (
    [
        Case("batch_norm", f"fold {'x'.join(map(str, size))}", partial(fold, size))
        for size in ((32, 1, 3, 3), (960, 1, 3, 3), (64, 3, 7, 7), (384, 64, 1, 1), (512, 512, 3, 3))
    ]
    + [
        Case(
            "batch_norm",
            f"frozen {'x'.join(map(str, size))} {layout} {'forward+backward' if training else 'forward'}",
            partial(frozen, size, layout, training),
        )
        for size in ((2, 64, 240, 304), (2, 512, 60, 76), (2, 2048, 15, 19))
        for layout in LAYOUTS
        for training in (False, True)
    ]
    + [
        Case("batch_norm", f"relu6 in place {'x'.join(map(str, size))} {layout}", partial(in_place, size, layout))
        for size in ((1, 96, 112, 112), (1, 384, 14, 14), (1, 960, 7, 7), (8, 256, 56, 56))
        for layout in LAYOUTS
    ]
)

test_batch_norm = benchmarks(CASES)
