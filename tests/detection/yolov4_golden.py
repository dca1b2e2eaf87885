"""What YOLOv4's stored file has, in its layout: the heads' maps, and boxes and scores as pytorch-YOLOv4 decodes them,
of each level all cells of one anchor together."""

import torch
from torch import Tensor

from cvops.models.detection import flatten_map
from cvops.models.yolov4 import LEVELS, YOLOv4


def yolov4_outputs(model: YOLOv4, pixels: Tensor) -> dict[str, Tensor]:
    maps = model.backbone.features(pixels)
    heads = model.head.maps(model.neck([maps[i] for i in LEVELS]))
    raw = model.network(pixels)
    height, width = pixels.shape[2:]
    levels = model.grid.over(raw.codes, (height, width)).levels()
    boxes, scores = [], []
    for codes, classes, quality, anchors, coder in zip(
        raw.codes, raw.classes, raw.quality, levels, model.coders, strict=True
    ):
        per_cell = quality.shape[1]

        def by_anchor(rows: Tensor, per_cell: int = per_cell) -> Tensor:
            return rows.unflatten(1, (-1, per_cell)).transpose(1, 2).flatten(1, 2)

        boxes.append(by_anchor(coder.decode(flatten_map(codes, 4), anchors)))
        scores.append(
            by_anchor(flatten_map(classes, model.config.num_classes).sigmoid() * flatten_map(quality, 1).sigmoid())
        )
    return {
        **{f"head.{i}": m for i, m in enumerate(heads)},
        "boxes": torch.cat(boxes, 1)[:, :, None] / boxes[0].new_tensor([width, height, width, height]),
        "scores": torch.cat(scores, 1),
    }
