"""Region proposals: what an RPN's maps say where objects are, and its losses. The network is `head/rpn.py`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cvops.models.detection.anchors import Anchors
from cvops.models.detection.assigners import IoUAssigner, take
from cvops.models.detection.coders import DeltaCoder
from cvops.models.detection.images import ImageBatch
from cvops.models.detection.losses import box_loss
from cvops.models.detection.postprocess import DenseOutput, clip_boxes, codes_at, flatten_map, suppress
from cvops.models.detection.sampling import sample


@dataclass(frozen=True)
class ProposalSettings:
    """Of a region proposal network (Ren et al. 2015, arXiv:1506.01497; one level at a time: Lin et al. 2017,
    arXiv:1612.03144, section 4.1).

    candidates, proposals: so many of each level enter NMS, and so many of an image leave it, for detections;
    train_candidates, train_proposals: for losses.
    iou_threshold: of NMS, within each level. min_size: narrower or lower proposals are dropped, and those without area;
        pixels.
    high, low: IoU from which on an anchor is positive, and below which it is background.
    samples, positives: anchors of an image that the losses are about, and the share of positives among them.
    """

    candidates: int = 1000
    proposals: int = 1000
    train_candidates: int = 2000
    train_proposals: int = 2000
    iou_threshold: float = 0.7
    min_size: float = 1e-3
    high: float = 0.7
    low: float = 0.3
    samples: int = 256
    positives: float = 0.5
    beta: float = 1 / 9


DEFAULT_PROPOSALS = ProposalSettings()


def propose(
    output: DenseOutput, anchors: Anchors, sizes: Tensor, settings: ProposalSettings, *, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The best boxes of each image: boxes [B, K, 4] in pixels of the batch, logits [B, K] and counts [B]; unused slots
    are 0. `output` has one logit an anchor. No gradient goes through."""
    k = settings.train_candidates if training else settings.candidates
    boxes, scores, levels = [], [], []
    for i, (logits, codes, level) in enumerate(zip(output.classes, output.codes, anchors.levels(), strict=True)):
        rows = flatten_map(logits.detach(), 1)[:, :, 0].to(level.dtype)
        best, which = rows.topk(min(k, rows.shape[1]), dim=1)
        boxes.append(DeltaCoder().decode(codes_at(codes.detach(), which).to(level.dtype), level[which]))
        scores.append(best)
        levels.append(torch.full_like(which, i))
    merged, logits = clip_boxes(torch.cat(boxes, 1), sizes), torch.cat(scores, 1)
    sides = merged[..., 2:] - merged[..., :2]
    large = ((sides >= settings.min_size) & (sides > 0)).all(2)
    found = suppress(
        merged,
        torch.where(large, logits, -torch.inf),
        torch.cat(levels, 1),
        score_threshold=torch.finfo(logits.dtype).min,
        iou_threshold=settings.iou_threshold,
        max_detections=settings.train_proposals if training else settings.proposals,
    )
    return found.boxes, found.scores, found.counts


def proposal_losses(
    output: DenseOutput, anchors: Anchors, batch: ImageBatch, settings: ProposalSettings
) -> dict[str, Tensor]:
    """`objectness`, binary cross-entropy, and `proposals`, smooth L1 of the positives' boxes, both over the sampled
    anchors of all images."""
    boxes, _, valid = batch.truth
    index = IoUAssigner(settings.high, settings.low, rescue=True)(anchors, boxes, valid)
    image, anchor = sample(index, settings.samples, settings.positives)
    logits = torch.cat([flatten_map(m, 1) for m in output.classes], 1)[image, anchor, 0]
    positive = index[image, anchor] >= 0
    count = max(len(logits), 1)
    objectness = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="sum") / count
    image, anchor = image[positive], anchor[positive]
    codes = torch.cat([flatten_map(m, 4) for m in output.codes], 1)[image, anchor]
    truth = take(boxes, index)[image, anchor]
    weight = truth.new_full((len(truth),), 1 / count)
    loss = box_loss("smooth_l1", codes, truth, anchors.boxes[anchor], DeltaCoder(), weight, settings.beta)
    return {"objectness": objectness, "proposals": loss}
