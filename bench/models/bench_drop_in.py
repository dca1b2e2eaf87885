"""What dropping cvops in gains, end to end: torchvision's detectors under `cvops.patch.torchvision()` and
`cvops.accelerate`, timm's MobileNetV2 and EfficientNet-B0 under `cvops.accelerate`; inference and a training step.

The peer is a copy of the same model with the same weights, untouched. Detectors are as torchvision builds them around a
pretrained backbone: its batch norms frozen, its stem and first stage not trained. They run on one 3 x 640 x 800 image
for inference (batch norm folded) and on two 3 x 480 x 608 images for training; of the one-stage detectors, matching and
losses are timed alone too. Weights are random, since none of theirs are on the package index, so the score layers are
spread until about a thousand candidates pass the score threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import cvops
from bench.common import Case, Contest, benchmarks

DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "Faster R-CNN": torchvision.models.detection.fasterrcnn_resnet50_fpn,
    "Mask R-CNN": torchvision.models.detection.maskrcnn_resnet50_fpn,
    "RetinaNet": torchvision.models.detection.retinanet_resnet50_fpn,
    "FCOS": torchvision.models.detection.fcos_resnet50_fpn,
}
CLASSIFIERS = {"MobileNetV2": "mobilenetv2_100", "EfficientNet-B0": "efficientnet_b0"}


def detector(name: str, training: bool, image: Tensor) -> nn.Module:
    torch.manual_seed(0)
    size = {"min_size": 480, "max_size": 640} if training else {"min_size": 640, "max_size": 800}
    model = DETECTORS[name](weights=None, weights_backbone=None, num_classes=91, **size)
    # Random features grow from layer to layer; statistics of one batch bring them back to the scale of trained ones.
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()
        model.backbone(torch.rand(1, 3, 256, 256))
    freeze_backbone(model.backbone.body)
    model.eval()
    for layer_name, layer in model.named_modules():
        if layer_name == "rpn.head.cls_logits":
            spread(model, layer, image, 1.5)
        elif layer_name.endswith("cls_score"):
            spread(model, layer, image, 2.0)
        elif layer_name.endswith("cls_logits"):
            spread(model, layer, image, 1.5, candidates=1000)
        elif layer_name.endswith(("bbox_pred", "bbox_reg")):
            spread(model, layer, image, 0.3, mean=2.0 if name == "FCOS" else 0.0)  # FCOS: distances, in strides
    return model.train(training)


def freeze_backbone(body: nn.Module) -> None:
    """What torchvision does where it loads weights: no norm learns, and of the ResNet only stages 2 to 4 do."""
    for parent in list(body.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                frozen = torchvision.ops.FrozenBatchNorm2d(norm.num_features)
                frozen.load_state_dict(norm.state_dict())
                setattr(parent, name, frozen)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))


def spread(
    model: nn.Module,
    layer: nn.Module,
    image: Tensor,
    deviation: float,
    mean: float = 0.0,
    candidates: int | None = None,
) -> None:
    """Give every channel of an output layer this mean and deviation on the image; or shift scores until so many pass
    the threshold 0.05. Saturated scores would tie, and which of them pass a top-k is then anybody's guess."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, out: seen.append(out.movedim(1, -1).flatten(0, -2)))
    with torch.inference_mode():
        model([image])
        hook.remove()
        found = torch.cat(seen)
        scale = deviation / found.std(0)
        shift = mean - found.mean(0) * scale
        if candidates is not None:
            shift += torch.tensor(0.05).logit() - (found * scale + shift).flatten().topk(candidates).values[-1]
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(scale).add_(shift)


def scene(generator: torch.Generator, height: int, width: int, count: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    """A noisy image with rectangles, and their boxes, labels and masks."""
    image = torch.rand(3, height, width, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
    size = 24 + torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.35, height * 0.35])
    boxes = torch.cat([corner, corner + size], 1).round()
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    image += masks.float().amax(0) * 0.5
    labels = torch.randint(1, 91, (count,), generator=generator)
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


def detections_agree(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]], least: float = 0.5) -> None:
    """At least this share of the peer's detections is found. A random network amplifies rounding, and one swap at a
    threshold changes what is suppressed, so float32 answers drift; `detector_contest` first demands all in float64."""
    for a, b in zip(ours, theirs, strict=True):
        assert len(b["boxes"]) > 10, "nothing to compare"
        assert abs(len(a["boxes"]) - len(b["boxes"])) <= (1 - least) * len(b["boxes"])
        apart = (b["boxes"][:, None] - a["boxes"]).abs().amax(2) + 1e9 * (b["labels"][:, None] != a["labels"])
        found = (apart.amin(1) < 0.1).float().mean()  # pixels
        assert found >= least, f"only {found:.0%} of the peer's detections were found"


def losses_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=2e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def detector_and_batch(
    name: str, training: bool, device: str
) -> tuple[nn.Module, list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    count, height, width = (2, 480, 608) if training else (1, 640, 800)
    scenes = [scene(generator, height, width) for _ in range(count)]
    images = [image.to(device) for image, _ in scenes]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target in scenes]
    return detector(name, training, scenes[0][0]).to(device), images, targets


def detector_contest(name: str, training: bool, device: str) -> Contest:
    theirs, images, targets = detector_and_batch(name, training, device)
    ours = copy.deepcopy(theirs)
    cvops.accelerate(ours, fold_batch_norm=not training)

    def run(model: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)  # proposals are sampled
        if not training:
            with torch.inference_mode():
                return model([image.to(dtype) for image in images])
        losses = model(images, targets)
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        return {key: value.detach() for key, value in losses.items()}

    if not training:
        for model in (ours, theirs):
            model.double()
        with cvops.patch.torchvision():
            found = run(ours, torch.float64)
        detections_agree(found, run(theirs, torch.float64), least=1)
        for model in (ours, theirs):
            model.float()

    agree = losses_agree if training else detections_agree
    peers = {"torchvision": lambda: run(theirs)}
    return Contest(lambda: run(ours), peers, 0, agree, around=cvops.patch.torchvision)


def losses_contest(name: str, device: str) -> Contest:
    """What the patch changes after the network in a one-stage detector's training step: matching and losses of given
    head outputs, and the gradients of the latter. The network is torch's on both sides."""
    model, images, targets = detector_and_batch(name, True, device)
    calls: list[tuple[Any, ...]] = []
    compute = model.compute_loss
    model.compute_loss = lambda *given: calls.append(given) or compute(*given)
    with torch.no_grad():
        model(images, targets)
    [(targets, heads, *rest)] = calls
    heads = {key: value.requires_grad_() for key, value in heads.items()}

    def run() -> dict[str, Tensor]:
        losses = compute(targets, heads, *rest)
        gradients = torch.autograd.grad(sum(losses.values()), list(heads.values()))
        return {key: value.detach() for key, value in losses.items()} | dict(zip(heads, gradients, strict=True))

    return Contest(run, {"torchvision": run}, 0, around=cvops.patch.torchvision)


def classifier_contest(name: str, batch: int, training: bool, device: str) -> Contest:
    torch.manual_seed(0)
    theirs = timm.create_model(CLASSIFIERS[name], pretrained=False).to(device).train(training)
    ours = copy.deepcopy(theirs)
    cvops.accelerate(ours, fold_batch_norm=not training)
    images = torch.rand(batch, 3, 224, 224, device=device)

    def run(model: nn.Module) -> Any:
        torch.manual_seed(0)
        if not training:
            with torch.inference_mode():
                return model(images)
        out = model(images)
        model.zero_grad(set_to_none=True)
        out.square().mean().backward()
        return out.detach()

    # Dropout of the head draws the same numbers in both; batch statistics amplify rounding.
    close = partial(torch.testing.assert_close, rtol=1e-2, atol=1e-2 if training else 1e-4)
    return Contest(lambda: run(ours), {"timm": lambda: run(theirs)}, 0, close)


CASES = [
    *(
        Case(
            "drop-in",
            f"{name} {'training step' if training else 'inference'}",
            partial(detector_contest, name, training),
            target=1.0,
            least_rounds=15,
        )
        for name in DETECTORS
        for training in (False, True)
    ),
    *(Case("drop-in", f"{name} losses and gradients", partial(losses_contest, name)) for name in ("RetinaNet", "FCOS")),
    *(
        Case(
            "drop-in",
            f"timm {name} {'training step' if training else 'inference'} batch {batch}",
            partial(classifier_contest, name, batch, training),
        )
        for name in CLASSIFIERS
        for training, batch in ((False, 1), (False, 8), (True, 8))
    ),
]

test_drop_in = benchmarks(CASES)
