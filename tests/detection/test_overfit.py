"""Every family of detectors learns a handful of small images by heart: coloured shapes on photographs. Small variants,
from fresh weights; AP at IoU 0.5 has to reach 0.9 on the very images, and the loss to fall."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import skimage.data
import torch
from torch import Tensor

import cvops
from cvops.metrics import CocoEvaluator

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.3, 0.95]])
SIDE = 128


@dataclass(frozen=True)
class Recipe:
    """Settings that make the variant small, and how it is trained."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    rate: float = 2e-3


SMALL_PYRAMID = {"backbone": "mobilenetv2_035", "norm": None, "channels": 32}
SMALL_HOURGLASS = {"channels": (32, 32, 48), "blocks": (1, 1, 1), "stem_channels": 16, "features": 32, "pooled": 16}
RECIPES = {
    "RPN": Recipe("rpn_resnet50_fpn", {**SMALL_PYRAMID, "iou_threshold": 0.5}, steps=80),
    "YOLOv4": Recipe("yolov4_quarter", {"depths": (1, 1, 1, 1, 1)}, rate=4e-3, steps=50),
    "CornerNet": Recipe("cornernet_small", SMALL_HOURGLASS, rate=3e-3),
    "CenterNet, triplets": Recipe("centernet_triplets_small", SMALL_HOURGLASS, rate=3e-3),
    "CenterNet, points": Recipe(
        "centernet_resnet18_dcn", {"backbone": "mobilenetv2_035", "channels": (64, 32, 32)}, steps=90
    ),
    "CenterNet, distances": Recipe("centernet_mobilenetv3", {"widths": (32, 32, 32)}, steps=60),
    "FCOS": Recipe("fcos_resnet50_fpn_exp", {**SMALL_PYRAMID, "head_convs": 1}),
    "RetinaNet": Recipe("retinanet_resnet50_fpn_c5", {**SMALL_PYRAMID, "head_convs": 1, "head_norm": "group"}),
    "SSDLite": Recipe("ssdlite320_mobilenetv2", {"transform": {"size": (160, 160)}, "norm_momentum": 0.2}),
    "RetinaNet ATSS": Recipe("retinanet_resnet50_fpn_atss", {**SMALL_PYRAMID, "head_convs": 1}),
    "EfficientDet": Recipe(
        "tf_efficientdet_d0",
        {"backbone": "mobilenetv2_035", "channels": 32, "cells": 1, "head_convs": 1, "norm_momentum": 0.1},
        steps=40,
        rate=5e-3,
    ),
    "Faster R-CNN": Recipe("fasterrcnn_mobilenetv2_fpn", {**SMALL_PYRAMID, "samples": 64}, steps=60),
}


def scene(number: int, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A crop of a photograph with two shapes: disc, square or diamond, each in its colour, which are the labels."""
    draw = torch.Generator().manual_seed(number)
    photograph = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1) / 255
    y, x = (int(torch.randint(0, n - side, (1,), generator=draw)) for n in photograph.shape[1:])
    image = photograph[:, y : y + side, x : x + side].clone()
    ys, xs = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    labels = torch.randperm(3, generator=draw)[:2]
    boxes = []
    for slot, label in enumerate(labels.tolist()):
        radius = side * float(0.12 + 0.08 * torch.rand((), generator=draw))
        place = radius + (side - 2 * radius) * torch.rand(2, generator=draw)
        middle = torch.stack([place[0] / 2 + slot * side / 2, place[1]])  # left half, right half
        middle[0] = middle[0].clamp(radius, side - radius)
        dx, dy = (xs - middle[0]).abs(), (ys - middle[1]).abs()
        distance = ((dx**2 + dy**2).sqrt(), torch.maximum(dx, dy), dx + dy)[label]
        image[:, distance <= radius] = COLOURS[label][:, None]
        boxes.append(torch.cat([middle - radius, middle + radius]))
    return image, {"boxes": torch.stack(boxes), "labels": labels}


@pytest.mark.parametrize("name", RECIPES)
def test_learns_a_few_images_by_heart(name: str) -> None:
    recipe = RECIPES[name]
    torch.manual_seed(0)
    classes = 1 if name == "RPN" else 3  # a region proposal network tells objects from background
    settings = {"transform": {"size": (SIDE, SIDE)}, **recipe.settings}
    model = cvops.create_model(recipe.model, num_classes=classes, **settings)
    scenes = [scene(number, SIDE) for number in range(4)]
    images = [image for image, _ in scenes]
    targets = [{**target, "labels": target["labels"].clamp(max=classes - 1)} for _, target in scenes]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps, pct_start=0.2)
    history = []
    model.train()
    for _ in range(recipe.steps):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        history.append(float(loss.detach()))
    assert sum(history[-5:]) < 0.4 * sum(history[:5])
    model.eval()
    evaluator = CocoEvaluator()
    with torch.inference_mode():
        results = model(images)
    evaluator.update(results, [{**target, "image_id": i} for i, target in enumerate(targets)])
    assert evaluator.compute().summary["AP50"] >= 0.9
