"""Focal losses of a dense detector, 8 images x 12,276 anchors x 80 classes, against torchvision, torch's cross_entropy
and formulas composed of torch's own functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torchvision.ops as peer

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops

ROWS, CLASSES = 8 * 12_276, 80
Loss = Callable[..., torch.Tensor]


def sigmoid_of_indices(x: torch.Tensor, index: torch.Tensor, reduction: str) -> torch.Tensor:
    """What users of torchvision write for class indices; C is background."""
    return peer.sigmoid_focal_loss(x, F.one_hot(index, CLASSES + 1)[:, :-1].to(x.dtype), reduction=reduction)


def composed_softmax(x: torch.Tensor, index: torch.Tensor, reduction: str) -> torch.Tensor:
    nll = F.cross_entropy(x, index, reduction="none")
    loss = (1 - (-nll).exp()) ** 2 * nll
    return loss.sum() if reduction == "sum" else loss


def composed_gaussian(x: torch.Tensor, t: torch.Tensor, reduction: str) -> torch.Tensor:
    """mmdetection's formula, on logits."""
    p = x.sigmoid()
    peak = F.logsigmoid(x) * (1 - p) ** 2 * t.eq(1)
    loss = -peak - F.logsigmoid(-x) * p**2 * (1 - t) ** 4
    return loss.sum() if reduction == "sum" else loss


def contest(kind: str, reduction: str, backward: bool, device: str) -> Contest:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, CLASSES, generator=generator).sub(3).to(device)
    index = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    index[torch.rand(ROWS, generator=generator) < 0.95] = CLASSES
    if kind == "labels":
        targets = F.one_hot(index, CLASSES + 1)[:, :-1].float()
    elif kind == "gaussian":
        targets = torch.rand(ROWS, CLASSES, generator=generator).pow(8)
        targets[::50, 0] = 1
    else:
        targets = index if kind == "indices" else index % CLASSES
    targets = targets.to(device)
    functions: dict[str, dict[str, Loss]] = {
        "labels": {"cvops": ops.sigmoid_focal_loss, "torchvision": peer.sigmoid_focal_loss},
        "indices": {"cvops": ops.sigmoid_focal_loss, "torchvision": sigmoid_of_indices},
        "softmax": {"cvops": ops.softmax_focal_loss, "torch": composed_softmax},
        "cross_entropy": {"cvops": partial(ops.softmax_focal_loss, gamma=0.0), "torch": F.cross_entropy},
        "gaussian": {"cvops": ops.gaussian_focal_loss, "torch": composed_gaussian},
    }

    def call(function: Loss) -> Callable[[], object]:
        def loss(y: torch.Tensor) -> torch.Tensor:
            return function(y, targets, reduction=reduction)

        return forward_backward(loss, x, grad=None) if backward else lambda: loss(x)

    own, *others = functions[kind].items()
    outputs = (ROWS if kind in ("softmax", "cross_entropy") else x.numel()) * 4 if reduction == "none" else 4
    return Contest(
        cvops=call(own[1]),
        peers={name: call(function) for name, function in others},
        bytes=nbytes(x, targets) * (2 if backward else 1) + (nbytes(x) if backward else outputs),
        agree=partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4),
    )


def case(kind: str, title: str, reduction: str, backward: bool, target: float | None = None) -> Case:
    return Case(
        "focal_loss",
        f"{title} {reduction} {'forward+backward' if backward else 'forward'}",
        partial(contest, kind, reduction, backward),
        target=target,
        quick=kind == "labels" and backward,
    )


CASES = [
    case("labels", "sigmoid 8x12276x80", "none", False, 8),
    case("labels", "sigmoid 8x12276x80", "sum", False, 8),
    case("labels", "sigmoid 8x12276x80", "sum", True, 6),
    case("indices", "sigmoid, class indices", "sum", False),
    case("indices", "sigmoid, class indices", "sum", True),
    case("softmax", "softmax 98208x80", "sum", False),
    case("softmax", "softmax 98208x80", "sum", True),
    case("cross_entropy", "softmax, gamma 0, against cross_entropy", "sum", False),
    case("cross_entropy", "softmax, gamma 0, against cross_entropy", "sum", True),
    case("gaussian", "gaussian 98208x80", "sum", False),
    case("gaussian", "gaussian 98208x80", "sum", True),
]

test_focal_loss = benchmarks(CASES)
