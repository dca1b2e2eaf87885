"""The ops. One file per stem: wrapper, module, fake, autograd, autocast, vmap, and a slow pure-torch reference."""

from cvops.ops.box_iou import (
    box_area,
    box_convert,
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)

__all__ = [
    "box_area",
    "box_convert",
    "box_iou",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
]
