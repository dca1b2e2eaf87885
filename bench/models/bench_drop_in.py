"""What dropping cvops in gains, end to end: torchvision's detectors under `cvops.patch.torchvision()` and
`cvops.accelerate`, timm's MobileNetV2 and EfficientNet-B0 under `cvops.accelerate`; inference and a training step.

The peer is a copy of the same model with the same weights, untouched. Detectors run on one 3 x 640 x 800 image for
inference (batch norm folded) and on two 3 x 480 x 608 images for training. Weights are random, since none of theirs are
on the package index, so the score layers are spread until about a thousand candidates pass the score threshold, as they
do with trained weights.
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


def detector(name: str, training: bool) -> nn.Module:
    torch.manual_seed(0)
    size = {"min_size": 480, "max_size": 640} if training else {"min_size": 640, "max_size": 800}
    model = DETECTORS[name](weights=None, weights_backbone=None, num_classes=91, **size)
    # Random features grow from layer to layer; statistics of one batch bring them back to the scale of trained ones.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()
        model.backbone(torch.rand(1, 3, 256, 256))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    scores = [layer for layer_name, layer in model.named_modules() if layer_name.endswith(("cls_score", "cls_logits"))]
    for layer in scores:
        nn.init.normal_(layer.weight, std=0.3 if isinstance(layer, nn.Linear) else 0.05)
    return model.train(training)


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


def detections_agree(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    """Nearly all of the confident detections are the same: rounding may swap two that tie or straddle a threshold."""
    for a, b in zip(ours, theirs, strict=True):
        assert abs(len(a["boxes"]) - len(b["boxes"])) <= 2, (len(a["boxes"]), len(b["boxes"]))
        assert len(b["boxes"]) > 10, "nothing to compare"
        iou = torchvision.ops.box_iou(b["boxes"], a["boxes"]) * (b["labels"][:, None] == a["labels"])
        found = (iou.amax(1) > 0.99).float().mean()
        assert found >= 0.95, f"only {found:.0%} of the peer's detections were found"


def losses_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=2e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def detector_contest(name: str, training: bool, device: str) -> Contest:
    generator = torch.Generator().manual_seed(1)
    count, height, width = (2, 480, 608) if training else (1, 640, 800)
    scenes = [scene(generator, height, width) for _ in range(count)]
    images = [image.to(device) for image, _ in scenes]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target in scenes]
    theirs = detector(name, training).to(device)
    ours = copy.deepcopy(theirs)
    cvops.accelerate(ours, fold_batch_norm=not training)

    def run(model: nn.Module) -> Any:
        torch.manual_seed(0)  # proposals are sampled
        if not training:
            with torch.inference_mode():
                return model(images)
        losses = model(images, targets)
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        return {key: value.detach() for key, value in losses.items()}

    def patched() -> Any:
        with cvops.patch.torchvision():
            return run(ours)

    return Contest(patched, {"torchvision": lambda: run(theirs)}, 0, losses_agree if training else detections_agree)


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
        )
        for name in DETECTORS
        for training in (False, True)
    ),
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
