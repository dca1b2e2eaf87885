"""The zoo against torchvision, timm and pretrainedmodels: inference with 1 and 8 images, and a training step with 8, in
both memory formats, at the size of the published weights. One network of each family that has a peer on the package
index, and all that depthwise convolutions dominate. What cvops does to other people's models is in bench_drop_in.py.

Both have the peer's random weights, taken over by the path that users have. `fused` cases run `cvops.nn.fuse(model)`;
the others run the model as `create_model` returns it. Dropout and stochastic depth are off in training, because two
packages draw differently; gradients are compared before anything is timed.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from models.peers import build_ours, build_peer
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import cvops
from bench.common import Case, Contest, Group, benchmarks

# Name and peer; True where depthwise convolutions dominate, and cvops has to be faster in the mean.
NETWORKS = {
    "resnet50": ("torchvision", False),
    "resnext50_32x4d": ("torchvision", False),
    "seresnet50": ("timm", False),
    "inception_resnet_v2": ("timm", False),
    "xception": ("timm", True),
    "nasnetamobile": ("pretrainedmodels", True),
    "mobilenetv2_100": ("torchvision", True),
    "efficientnet_b0": ("torchvision", True),
    "efficientnet_b3": ("torchvision", True),
    "efficientnet_lite0": ("timm", True),
}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@lru_cache(maxsize=1)
def pair(name: str, publisher: str) -> tuple[nn.Module, nn.Module]:
    """Our model and the peer's, with the same weights. Cases change mode and format; none changes the weights."""
    theirs = build_peer(publisher, name)
    assert theirs is not None, f"{publisher} has no {name}"
    ours = build_ours(publisher, name, theirs.state_dict())
    for model in (ours, theirs):
        for layer in model.modules():
            if isinstance(layer, nn.Dropout | StochasticDepth):
                layer.p = 0.0
            elif isinstance(layer, cvops.nn.DropPath):
                layer.rate = 0.0
    return ours, theirs


def apart(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert apart(got, want) < tolerance, f"{apart(got, want):.1e} apart"


def infer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(images)


def step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward; the logits."""
    logits = model(images)
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(logits, labels).backward()
    return logits.detach()


def gradient_norm(model: nn.Module) -> Tensor:
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()


def zoo_contest(name: str, batch: int, form: str, training: bool, fused: bool, device: str) -> Contest:
    publisher, _ = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    size = cvops.model_info(name).preprocess.size
    images = torch.randn(batch, 3, size, size, generator=generator).to(device, memory_format=FORMATS[form])
    labels = torch.randint(1000, (batch,), generator=generator).to(device)
    ours, theirs = (
        m.to(device, torch.float32, memory_format=FORMATS[form]).train(training) for m in pair(name, publisher)
    )
    if not training:
        # Rounding grows from layer to layer of a random network, in some of them thousands of times. What has to agree
        # closely are answers in float64; in float32 ours may be off by what rounding every layer can do, told by what
        # rounding the images does.
        ours, theirs = ours.double(), theirs.double()
        ours = cvops.nn.fuse(ours) if fused else ours
        exact = infer(theirs, images.double())
        close(infer(ours, images.double()), exact, tolerance=1e-9)
        rounded = 1 + 2**-24 * torch.randn(images.shape, generator=generator).sign().to(device)
        moved = apart(infer(theirs, images.double() * rounded), exact)
        ours, theirs = ours.float(), theirs.float()

        def agree(got: Tensor, want: Tensor) -> None:
            close(got, exact, tolerance=50 * moved)

        return Contest(lambda: infer(ours, images), {publisher: lambda: infer(theirs, images)}, 0, agree)
    for layer in (*ours.modules(), *theirs.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0  # or the running statistics would leave what inference is compared with
    for model in (ours, theirs):
        step(model, images, labels)
    close(gradient_norm(ours), gradient_norm(theirs), tolerance=1e-2)
    agree = partial(close, tolerance=1e-2)
    return Contest(lambda: step(ours, images, labels), {publisher: lambda: step(theirs, images, labels)}, 0, agree)


def group(kind: str, depthwise: bool) -> Group:
    """What the networks of a sort have to show together, and none may be slower by more than 5 %."""
    return Group(f"zoo {kind}, {'depthwise' if depthwise else 'other'} networks", 1.0 if depthwise else 0.95, 0.95)


CASES = [
    Case(
        "zoo",
        f"{name} {kind} batch {batch} {form}",
        partial(zoo_contest, name, batch, form, kind == "training step", kind == "inference fused"),
        group=group(kind, depthwise),
    )
    for name, (_, depthwise) in NETWORKS.items()
    for kind, batch in (
        ("inference", 1),
        ("inference fused", 1),
        ("inference", 8),
        ("inference fused", 8),
        ("training step", 8),
    )
    for form in FORMATS
]

test_zoo = benchmarks(CASES)
