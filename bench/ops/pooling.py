"""What the benchmarks of roi_pool, ps_roi_align and ps_roi_pool share: 1000 RoIs on two maps, forward and backward, in
both memory formats, against torchvision's op of the same name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.ops as peer

from bench.common import Case, Contest, forward_backward, nbytes
from bench.ops.bench_roi_align import CLOSE, NCHW, NHWC, random_rois
from cvops import ops


def contest(
    name: str,
    size: tuple[int, ...],
    arguments: tuple[Any, ...],
    agree: Callable[[Any, Any], None],
    layout: torch.memory_format,
    backward: bool,
    device: str,
) -> Contest:
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(device, memory_format=layout)
    rois = random_rois(1000, 2, device)

    def call(package: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: getattr(package, name)(x, rois, 7, *arguments)

    ours, theirs = call(ops), call(peer)
    out = ours(x)
    # `out` twice: the values, and the int32 index of what each came from, which backward reads.
    if not backward:
        return Contest(lambda: ours(x), {"torchvision": lambda: theirs(x)}, nbytes(x, rois, out, out), CLOSE)
    grad = torch.randn_like(out)
    calls = [forward_backward(function, x, grad=grad) for function in (ours, theirs)]
    return Contest(calls[0], {"torchvision": calls[1]}, nbytes(x, rois, out, out, grad, x), agree)


def pooling_cases(name: str, size: tuple[int, ...], *arguments: Any, agree: Any = CLOSE) -> list[Case]:
    """`arguments` follow the output size; `agree` compares gradients."""
    return [
        Case(
            name,
            f"1000 RoIs {'forward+backward' if backward else 'forward'} {'NHWC' if layout == NHWC else 'NCHW'}",
            partial(contest, name, size, arguments, agree, layout, backward),
        )
        for backward in (False, True)
        for layout in (NCHW, NHWC)
    ]
