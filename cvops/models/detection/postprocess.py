"""From scores and boxes of every anchor to the detections of every image: tensor in, fixed size out, so that it exports
with the network. Nothing here but `suppress_softly` waits for the device or has a shape that depends on values."""

from typing import NamedTuple

import torch
from torch import Tensor

from cvops.models.detection.anchors import Anchors
from cvops.models.detection.coders import BoxCoder, BoxDecoder
from cvops.ops import batched_nms_padded, soft_nms


class Detections(NamedTuple):
    """The best detections of each image, K slots each, by descending score.

    boxes: [B, K, 4] as (x1, y1, x2, y2), in pixels of the batch; 0 in unused slots. scores: [B, K]; 0 in unused slots.
    labels: [B, K] int64; -1 in unused slots. counts: [B] int64, slots in use.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor


class DenseOutput(NamedTuple):
    """What a dense head puts out, a map for each level.

    classes: logits [B, A * C, H, W]. codes: box codes [B, A * 4, H, W]. quality: logits [B, A, H, W], or None.
    """

    classes: list[Tensor]
    codes: list[Tensor]
    quality: list[Tensor] | None = None


def flatten_map(x: Tensor, values: int) -> Tensor:
    """A head's map [B, A * values, H, W] to one row for each anchor: [B, H * W * A, values].

    >>> flatten_map(torch.arange(8).view(1, 4, 1, 2), 2)
    tensor([[[0, 2],
             [4, 6],
             [1, 3],
             [5, 7]]])
    """
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] moved into their images, whose heights and widths are `sizes` [B, 2].

    >>> clip_boxes(torch.tensor([[[-1.0, 2, 9, 9]]]), torch.tensor([[8, 6]]))
    tensor([[[0., 2., 6., 8.]]])
    """
    limits = sizes.to(boxes).flip(1).repeat(1, 2)[:, None]
    return boxes.clamp(min=0).minimum(limits)


def best_of_level(
    classes: Tensor,
    codes: Tensor,
    quality: Tensor | None,
    anchors: Tensor,
    coder: BoxDecoder,
    k: int,
    threshold: float,
    *,
    product: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best (anchor, class) pairs of one level of a dense head: boxes [B, k, 4], scores [B, k], labels [B, k].

    classes: logits [B, A * C, H, W]. codes: the box codes [B, A * 4, H, W]. quality: logits [B, A, H, W] of how good
    the box is, e.g. centerness; scores are then the geometric mean of both, or their `product`. anchors:
    [H * W * A, 4]. Pairs whose score is not greater than `threshold` come with a score of 0; fewer than k anchors give
    all their pairs at most.

    The k best pairs are of the k anchors with the best class, so that only these are looked at class by class.
    """
    batch, per_cell = codes.shape[0], codes.shape[1] // 4
    logits = classes.unflatten(1, (per_cell, -1))  # [B, A, C, H, W]
    best = score_of(logits.amax(2), quality, product).permute(0, 2, 3, 1).flatten(1)  # [B, H * W * A]
    which = best.topk(min(k, best.shape[1]), dim=1).indices
    cell, slot = which // per_cell, which % per_cell
    image = torch.arange(batch, device=which.device)[:, None]
    rows = logits.flatten(3)[image, slot, :, cell]  # [B, k, C]
    row_quality = None if quality is None else quality.flatten(2)[image, slot, cell][:, :, None]
    scores = score_of(rows, row_quality, product)
    scores, pair = torch.where(scores > threshold, scores, 0).flatten(1).topk(min(k, scores[0].numel()), dim=1)
    row, labels = pair // rows.shape[2], pair % rows.shape[2]
    which = which.gather(1, row)
    return coder.decode(codes_at(codes, which).to(anchors.dtype), anchors[which]), scores, labels


def codes_at(codes: Tensor, which: Tensor) -> Tensor:
    """The box codes [B, k, 4] of some anchors, [B, k] their numbers, on a head's map [B, A * 4, H, W]."""
    per_cell = codes.shape[1] // 4
    image = torch.arange(codes.shape[0], device=codes.device)[:, None]
    return codes.unflatten(1, (per_cell, 4)).flatten(3)[image, which % per_cell, :, which // per_cell]


def score_of(logits: Tensor, quality: Tensor | None, product: bool = False) -> Tensor:
    """Probability in float32 or wider, or its geometric mean, or product, with that of `quality`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if quality is None:
        return logits.sigmoid()
    both = logits.sigmoid() * quality.to(logits.dtype).sigmoid()
    return both if product else both.sqrt()


def best_of_levels(
    output: DenseOutput, anchors: Anchors, coder: BoxCoder, k: int, threshold: float, *, together: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`best_of_level` for every level, one after the other: boxes [B, K, 4], scores [B, K], labels [B, K]. `together`:
    the k best of all levels, which then have as many anchors a cell."""
    levels = anchors.levels()
    if together:
        output, levels = as_one_level(output), [anchors.boxes]
    quality = output.quality if output.quality is not None else [None] * len(output.codes)
    found = [
        best_of_level(classes, codes, good, level, coder, k, threshold)
        for classes, codes, good, level in zip(output.classes, output.codes, quality, levels, strict=True)
    ]
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return boxes, scores, labels


def as_one_level(output: DenseOutput) -> DenseOutput:
    """The maps [B, C, H, W] of all levels as one [B, C, cells, 1] of each kind, cells in the order of the anchors."""

    def join(maps: list[Tensor]) -> list[Tensor]:
        return [torch.cat([m.flatten(2) for m in maps], 2).unsqueeze(3)]

    quality = None if output.quality is None else join(output.quality)
    return DenseOutput(join(output.classes), join(output.codes), quality)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """NMS within each class: boxes [B, N, 4], scores [B, N], labels [B, N]."""
    index, counts = batched_nms_padded(boxes, scores, labels, iou_threshold, max_detections, score_threshold)
    used = index >= 0
    index = index.clamp(min=0)
    return Detections(
        boxes=torch.where(used[:, :, None], boxes.gather(1, index[:, :, None].expand(-1, -1, 4)), 0),
        scores=torch.where(used, scores.gather(1, index), 0),
        labels=torch.where(used, labels.gather(1, index), -1),
        counts=counts,
    )


def above(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Detections:
    """Detections [B, K] by descending score that need no suppression: those that score more than `threshold`."""
    used = scores > threshold
    return Detections(
        boxes=torch.where(used[:, :, None], boxes, 0),
        scores=torch.where(used, scores, 0),
        labels=torch.where(used, labels, -1),
        counts=used.sum(1),
    )


def suppress_softly(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, score_threshold: float, max_detections: int, sigma: float = 0.5
) -> Detections:
    """Soft-NMS within each class (Bodla et al. 2017, arXiv:1704.04503): overlapped boxes lose score, by the factor
    exp(-IoU^2 / `sigma`), instead of being dropped. Arguments and result as `suppress`; image by image, so it does not
    export."""
    found = Detections(
        boxes=boxes.new_zeros(boxes.shape[0], max_detections, 4),
        scores=scores.new_zeros(boxes.shape[0], max_detections),
        labels=labels.new_full((boxes.shape[0], max_detections), -1),
        counts=labels.new_zeros(boxes.shape[0]),
    )
    for i in range(boxes.shape[0]):
        index, decayed = soft_nms(
            boxes[i], scores[i], sigma=sigma, score_threshold=score_threshold, method="gaussian", idxs=labels[i]
        )
        index = index[:max_detections]
        k = len(index)
        found.boxes[i, :k], found.scores[i, :k] = boxes[i, index], decayed[:k]
        found.labels[i, :k], found.counts[i] = labels[i, index], k
    return found
