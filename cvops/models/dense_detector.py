"""The assembly of one-stage detectors with a dense head: backbone, neck, head, anchors, assigner, box code. RetinaNet
and FCOS differ in settings only, which are in their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.detection import (
    AnchorGrid,
    Assigner,
    BoxCoder,
    BoxLoss,
    DenseOutput,
    Detections,
    ImageBatch,
    best_of_levels,
    box_loss,
    centerness_of,
    clip_boxes,
    flatten_map,
)
from cvops.models.detection.assigners import BACKGROUND, IGNORED, inside, take
from cvops.models.detector import BackboneConfig, Detector, Losses
from cvops.models.model import Backbone
from cvops.ops import sigmoid_focal_loss


@dataclass(frozen=True, kw_only=True)
class DenseDetectorConfig(BackboneConfig):
    """Settings of one-stage detectors.

    candidates: so many of each level enter NMS, or of all levels together (`candidates_of`).
    box_loss, box_loss_beta: of the positive anchors' boxes; beta is that of `smooth_l1`.
    box_loss_factor: the box loss counts this much.
    focal_alpha, focal_gamma: of the focal loss of classes.
    normaliser: losses are divided by the number of positives of each image and averaged, or by that of the batch, or
        by that and one.
    in_box: an anchor whose centre is outside its target is background.
    weigh_by_centerness: positives count by their centerness in the box loss, as in FCOS' code.
    """

    candidates: int = 1000
    candidates_of: Literal["level", "image"] = "level"
    box_loss: BoxLoss = "l1"
    box_loss_beta: float = 1 / 9
    box_loss_factor: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    normaliser: Literal["image", "batch", "batch+1"] = "batch"
    in_box: bool = False
    weigh_by_centerness: bool = False


class DenseDetector(Detector[DenseOutput]):
    """A one-stage detector. Parts: `backbone`, `neck`, `head`; `grid`, `assigner` and `coder` hold no weights.

    levels: which of the backbone's maps the neck takes.
    """

    config: DenseDetectorConfig

    def __init__(
        self,
        config: DenseDetectorConfig,
        backbone: Backbone,
        neck: nn.Module,
        head: nn.Module,
        *,
        levels: Sequence[int],
        grid: AnchorGrid,
        assigner: Assigner,
        coder: BoxCoder,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.neck, self.head = backbone, neck, head
        self.levels, self.grid, self.assigner, self.coder = tuple(levels), grid, assigner, coder

    def network(self, pixels: Tensor) -> DenseOutput:
        maps = self.backbone.features(pixels)
        output: DenseOutput = self.head(self.neck([maps[i] for i in self.levels]))
        return output

    def losses(self, raw: DenseOutput, batch: ImageBatch) -> Losses:
        config = self.config
        anchors = self.grid.over(raw.codes, batch.shape)
        boxes, labels, valid = batch.truth
        index = self.assigner(anchors, boxes, valid)  # [B, N]
        positive = index >= 0
        if config.in_box:
            positive = positive & inside(anchors, take(boxes, index))
            index = torch.where((index >= 0) & ~positive, BACKGROUND, index)
        weight = self._weights(positive, boxes.dtype)  # [B, N]

        classes = torch.cat([flatten_map(m, config.num_classes) for m in raw.classes], 1)  # [B, N, C]
        wanted = torch.where(positive, take(labels, index), index)
        losses = {
            "classes": sigmoid_focal_loss(
                classes,
                wanted,
                config.focal_alpha,
                config.focal_gamma,
                reduction="sum",
                ignore_index=IGNORED,
                weight=weight,
            )
        }

        image, anchor = positive.nonzero(as_tuple=True)
        theirs, truth = anchors.boxes[anchor], take(boxes, index)[image, anchor]
        codes = torch.cat([flatten_map(m, 4) for m in raw.codes], 1)[image, anchor]
        each = weight[image, anchor]
        central = centerness_of(truth, theirs)
        box_weight = each
        if config.weigh_by_centerness:
            box_weight = central * each.sum() / central.sum().clamp(min=1e-6)
        boxes_loss = box_loss(config.box_loss, codes, truth, theirs, self.coder, box_weight, config.box_loss_beta)
        losses["boxes"] = config.box_loss_factor * boxes_loss
        if raw.quality is not None:
            quality = torch.cat([flatten_map(m, 1) for m in raw.quality], 1)[image, anchor, 0]
            losses["centerness"] = F.binary_cross_entropy_with_logits(
                quality.to(central.dtype), central, each, reduction="sum"
            )
        return losses

    def _weights(self, positive: Tensor, dtype: torch.dtype) -> Tensor:
        """The share of each anchor's loss, [B, N]."""
        counts = positive.sum(1, dtype=dtype)
        if self.config.normaliser == "batch+1":
            share = 1 / (counts.sum() + 1).expand(len(counts))
        elif self.config.normaliser == "batch":
            share = 1 / counts.sum().clamp(min=1).expand(len(counts))
        else:
            share = 1 / (counts.clamp(min=1) * len(counts))
        return share[:, None].expand(positive.shape)

    def postprocess(self, raw: DenseOutput, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        boxes, scores, labels = best_of_levels(
            raw,
            self.grid.over(raw.codes, image),
            self.coder,
            config.candidates,
            config.score_threshold,
            together=config.candidates_of == "image",
        )
        return self.suppress(clip_boxes(boxes, sizes), scores, labels)
