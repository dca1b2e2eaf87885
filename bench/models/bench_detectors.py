"""The zoo's detectors against torchvision's with the same weights: inference, as built and with batch norm fused, and a
training step. Inputs and statistics are those of bench_drop_in.py, which times torchvision's own detectors on our ops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import cvops
from bench.common import Case, Contest, benchmarks
from bench.models.bench_drop_in import DETECTORS, detections_agree, detector, scene, spread
from cvops.models.detection import ImageTransform

# The losses: torchvision's name and ours.
LOSSES = {"classification": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centerness"}
# Each detector's name in bench_drop_in.py and in the zoo, and torchvision's label of our first class.
ZOO = {
    "Faster R-CNN": ("fasterrcnn_resnet50_fpn", 1),
    "RetinaNet": ("retinanet_resnet50_fpn", 0),
    "FCOS": ("fcos_resnet50_fpn", 0),
    "SSD300": ("ssd300_vgg16", 1),
}


def ssd300(training: bool, image: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None).eval()
    for i in range(5):  # the sixth map has one cell, which has no deviation
        spread(model, model.head.classification_head.module_list[i], image, 1.5)
        spread(model, model.head.regression_head.module_list[i], image, 0.3)
    return model.train(training)


def contest(name: str, kind: str, device: str) -> Contest:
    training = kind == "training step"
    generator = torch.Generator().manual_seed(1)
    count, height, width = (2, 480, 608) if training else (1, 640, 800)
    scenes = [scene(generator, height, width) for _ in range(count)]
    images = [image.to(device) for image, _ in scenes]
    residual = name in DETECTORS
    theirs = detector(name, training, scenes[0][0]) if residual else ssd300(training, scenes[0][0])
    zoo_name, first_label = ZOO[name]
    settings: dict[str, Any] = {}
    if residual:
        settings = {"norm_eps": 1e-5, "transform": ImageTransform(size=(480, 640) if training else (640, 800))}
    ours: nn.Module = cvops.create_model(zoo_name, weights=theirs.state_dict(), **settings).train(training)
    if residual:  # as in the peer, see `freeze_backbone`
        ours.backbone.stem.requires_grad_(False)
        ours.backbone.stages[0].requires_grad_(False)
    if kind == "inference, fused":
        ours = cvops.nn.fuse(ours.eval())
    targets = [{key: target[key].to(device) for key in ("boxes", "labels")} for _, target in scenes]
    their_targets = targets
    targets = [{**target, "labels": target["labels"] - first_label} for target in targets]
    ours, theirs = ours.to(device), theirs.to(device)

    def run(model: nn.Module, targets: list[dict[str, Tensor]]) -> Any:
        torch.manual_seed(0)
        if not training:
            with torch.inference_mode():
                return model(images)
        losses = model(images, targets)
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        return {key: value.detach() for key, value in losses.items()}

    def agree(a: Any, b: Any) -> None:
        if not training:
            detections_agree([{**found, "labels": found["labels"] + first_label} for found in a], b)
        elif name != "Faster R-CNN":  # which draws its samples by other random numbers
            for key, value in b.items():
                torch.testing.assert_close(a[LOSSES[key]], value, rtol=1e-3, atol=1e-4)

    call: Callable[[], Any] = partial(run, ours, targets)
    return Contest(call, {"torchvision": partial(run, theirs, their_targets)}, 0, agree)


CASES = [
    Case("detectors", f"{name} {kind}", partial(contest, name, kind), target=1.0)
    for name in ZOO
    for kind in ("inference", "inference, fused", "training step")
]

test_detectors = benchmarks(CASES)
