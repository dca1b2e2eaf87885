"""One small call of every public op, for the tests of what all ops promise (test_qualities.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cvops import ops
from ops.boxes import random_boxes


@dataclass(frozen=True)
class OpCall:
    """`run(*inputs)` with the inputs that `make(dtype)` draws; the first `leaves` of them are differentiated."""

    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    run: Callable[..., Any]
    leaves: int = 0

    def __str__(self) -> str:
        return self.name

    def inputs(self, dtype: torch.dtype = torch.float32, requires_grad: bool = False, device: str = "cpu") -> list[Any]:
        """Drawn on the CPU, so that one seed gives every device the same."""
        made = [tensor.to(device) for tensor in self.make(dtype)]
        for i in range(self.leaves):
            made[i] = made[i].requires_grad_(requires_grad)
        return made


def near_pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    a = random_boxes(40, dtype=torch.float64)
    return a.to(dtype), (a + torch.rand(40, 4, dtype=torch.float64)).to(dtype)


def scored(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return random_boxes(300, dtype=dtype), torch.rand(300).to(dtype), torch.randint(0, 5, (300,))


def matrices(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return random_boxes(33, dtype=dtype), random_boxes(21, dtype=dtype)


def depthwise(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 9, 11, 13).to(dtype), torch.randn(9, 1, 3, 3).to(dtype), torch.randn(9).to(dtype)


def deform(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    made = torch.randn(2, 6, 7, 8), torch.randn(2, 36, 7, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    return *(t.to(dtype) for t in made), torch.rand(2, 18, 7, 8).to(dtype)


def normed(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    made = torch.randn(9, 4, 3, 3), *torch.randn(2, 9), torch.rand(9) + 0.5, *torch.randn(2, 9)
    return tuple(t.to(dtype) for t in made)


def normed_maps(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    made = torch.randn(3, 9, 7, 11), torch.randn(9), torch.rand(9) + 0.5, *torch.randn(2, 9)
    return tuple(t.to(dtype) for t in made)


def logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(60, 7).to(dtype), torch.rand(60, 7).to(dtype)


def classified(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(60, 7).to(dtype), torch.randint(0, 7, (60,))


def pooled(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = random_boxes(9, dtype=torch.float64, extent=14.0, size=9.0)
    images = torch.randint(0, 2, (9, 1)).double()
    return torch.randn(2, 18, 13, 17).to(dtype), torch.cat([images, boxes], 1).to(dtype)


def pyramid(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    fine, rois = pooled(dtype)
    rois[:, 1:] *= 12
    return fine, torch.randn(2, 18, 7, 9).to(dtype), rois


def pasted(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(9, 1, 5, 6).to(dtype), random_boxes(9, dtype=dtype, extent=20.0, size=15.0)


def one_map(dtype: torch.dtype) -> tuple[torch.Tensor]:
    return (torch.randn(3, 5, 8, 9).to(dtype),)


CALLS = [
    OpCall("box_iou", matrices, ops.box_iou, 2),
    OpCall("generalized_box_iou", matrices, ops.generalized_box_iou, 2),
    OpCall("distance_box_iou", matrices, ops.distance_box_iou, 2),
    OpCall("complete_box_iou", matrices, ops.complete_box_iou, 2),
    OpCall("iou_loss", near_pairs, ops.iou_loss, 2),
    OpCall("generalized_box_iou_loss", near_pairs, ops.generalized_box_iou_loss, 2),
    OpCall("distance_box_iou_loss", near_pairs, ops.distance_box_iou_loss, 2),
    OpCall("complete_box_iou_loss", near_pairs, ops.complete_box_iou_loss, 2),
    OpCall("nms", scored, lambda b, s, i: ops.nms(b, s, 0.4)),
    OpCall("batched_nms", scored, lambda b, s, i: ops.batched_nms(b, s, i, 0.4)),
    OpCall("nms_padded", scored, lambda b, s, i: ops.nms_padded(b, s, 0.4, 50)),
    OpCall(
        "batched_nms_padded",
        scored,
        lambda b, s, i: ops.batched_nms_padded(b[None], s[None], i[None], 0.4, 50),
    ),
    OpCall("multiclass_nms", scored, lambda b, s, i: ops.multiclass_nms(b, s[:, None].repeat(1, 3), 0.3, 0.4)),
    OpCall("soft_nms", scored, lambda b, s, i: ops.soft_nms(b, s)),
    OpCall("matrix_nms", scored, lambda b, s, i: ops.matrix_nms(b, s, idxs=i)),
    OpCall("depthwise_conv2d", depthwise, lambda x, w, b: ops.depthwise_conv2d(x, w, b, padding=1), 3),
    OpCall("fold_batch_norm", normed, ops.fold_batch_norm, 6),
    OpCall("frozen_batch_norm", normed_maps, ops.frozen_batch_norm, 5),
    OpCall("deform_conv2d", deform, lambda x, o, w, b, m: ops.deform_conv2d(x, o, w, b, padding=1, mask=m), 5),
    OpCall("sigmoid_focal_loss", logits, ops.sigmoid_focal_loss, 1),
    OpCall("softmax_focal_loss", classified, ops.softmax_focal_loss, 1),
    OpCall("gaussian_focal_loss", logits, ops.gaussian_focal_loss, 1),
    OpCall("match_boxes", matrices, lambda a, t: ops.match_boxes(a, t, 0.3, 0.5, allow_low_quality=True)),
    OpCall("heatmap_peaks", one_map, lambda x: ops.heatmap_peaks(x, 10), 1),
    OpCall("mask_paste", pasted, lambda m, b: ops.mask_paste(m, b, (21, 23), None), 1),
    OpCall("roi_align", pooled, lambda x, r: ops.roi_align(x, r, 3, 0.7), 1),
    OpCall("roi_pool", pooled, lambda x, r: ops.roi_pool(x, r, 3, 0.7), 1),
    OpCall("ps_roi_align", pooled, lambda x, r: ops.ps_roi_align(x, r, 3, 0.7), 1),
    OpCall("ps_roi_pool", pooled, lambda x, r: ops.ps_roi_pool(x, r, 3, 0.7), 1),
    OpCall(
        "multiscale_roi_align",
        pyramid,
        lambda a, b, r: ops.multiscale_roi_align([a, b], r, 3, [0.125, 0.0625], 2),
        2,
    ),
    OpCall("drop_block2d", one_map, lambda x: ops.drop_block2d(x, 0.3, 3, seed=5), 1),
    OpCall("drop_block3d", one_map, lambda x: ops.drop_block3d(x[None], 0.3, 2, seed=5), 1),
    OpCall("drop_path", one_map, lambda x: ops.drop_path(x, 0.4, seed=5), 1),
    OpCall("drop_channel", one_map, lambda x: ops.drop_channel(x, 0.4, seed=5), 1),
    OpCall("scheduled_drop_path", one_map, lambda x: ops.scheduled_drop_path(x, 0.4, 2, 3, 5, 9, seed=5), 1),
    OpCall("corner_pool", one_map, lambda x: ops.corner_pool(x, "top") + ops.corner_pool(x, "left"), 1),
]
