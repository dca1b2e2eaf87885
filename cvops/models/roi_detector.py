"""The assembly of two-stage detectors: backbone, neck, a network that proposes regions, and a head that looks at each.
What Faster R-CNN makes of it is in its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.detection import (
    AnchorGrid,
    Anchors,
    DeltaCoder,
    DenseOutput,
    Detections,
    ImageBatch,
    IoUAssigner,
    ProposalSettings,
    clip_boxes,
    proposal_losses,
    propose,
    sample,
    within,
)
from cvops.models.detection.assigners import IGNORED, take
from cvops.models.detection.losses import box_loss
from cvops.models.detection.proposals import DEFAULT_PROPOSALS
from cvops.models.detector import Detector, DetectorConfig, Losses
from cvops.models.head import BoxHead, PositionSensitiveHead, RegionOutput
from cvops.models.model import Backbone


@dataclass(frozen=True, kw_only=True)
class RoIDetectorConfig(DetectorConfig):
    """Settings of two-stage detectors.

    rpn: of the proposals.
    high: IoU from which on a proposal is of its target; the others are background.
    samples, positives: proposals of an image that the head's losses are about, and the share of positives among them.
    box_weights, box_beta: of the box code, and where its smooth L1 loss turns linear.
    min_size: narrower or lower detections are dropped, pixels.
    """

    rpn: ProposalSettings = DEFAULT_PROPOSALS
    high: float = 0.5
    samples: int = 512
    positives: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_beta: float = 1 / 9
    min_size: float = 1e-2


class RoIRaw(NamedTuple):
    """The pyramid's maps, and what the RPN puts out for them."""

    maps: list[Tensor]
    rpn: DenseOutput


class RoIDetector(Detector[RoIRaw]):
    """A two-stage detector. Parts: `backbone`, `neck`, `rpn`, `head` (maps and regions to `RegionOutput`); `grid` holds
    no weights.

    levels: which of the backbone's maps the neck takes; RPN and head see all that the neck puts out.
    """

    config: RoIDetectorConfig

    def __init__(
        self,
        config: RoIDetectorConfig,
        backbone: Backbone,
        neck: nn.Module,
        rpn: nn.Module,
        head: BoxHead | PositionSensitiveHead,
        *,
        levels: Sequence[int],
        grid: AnchorGrid,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.neck, self.rpn, self.head = backbone, neck, rpn, head
        self.levels, self.grid = tuple(levels), grid

    def network(self, pixels: Tensor) -> RoIRaw:
        maps = self.backbone.features(pixels)
        pyramid = self.neck([maps[i] for i in self.levels])
        return RoIRaw(pyramid, self.rpn(pyramid))

    def regions(self, raw: RoIRaw, rois: Tensor) -> RegionOutput:
        """What the head makes of regions [R, 5], rows of (image, x1, y1, x2, y2) in pixels of the batch."""
        output: RegionOutput = self.head(raw.maps, rois)
        return output

    def losses(self, raw: RoIRaw, batch: ImageBatch) -> Losses:
        config = self.config
        boxes, labels, valid = batch.truth
        anchors = self.grid.over(raw.rpn.codes, batch.shape)
        losses = proposal_losses(raw.rpn, anchors, batch, config.rpn)

        proposals, _, counts = propose(raw.rpn, anchors, batch.sizes, config.rpn, training=True)
        # The targets are proposals too, so that there are good ones from the start.
        candidates = torch.cat([proposals.to(boxes), boxes], 1)
        present = torch.cat([within(counts, proposals.shape[1]), valid], 1)
        index = IoUAssigner(config.high, config.high)(Anchors(candidates, ()), boxes, valid)
        index = torch.where(present, index, IGNORED)
        image, which = sample(index, config.samples, config.positives)

        regions = candidates[image, which]
        output = self.regions(raw, torch.cat([image[:, None].to(regions), regions], 1))
        positive = index[image, which] >= 0
        label = torch.where(positive, take(labels, index)[image, which], config.num_classes)
        count = max(len(regions), 1)
        losses["classes"] = F.cross_entropy(self._background_last(output.classes), label, reduction="sum") / count
        codes = output.codes[positive]
        codes = codes[torch.arange(len(codes)), label[positive] if codes.shape[1] > 1 else 0]
        truth = take(boxes, index)[image, which][positive]
        weight = truth.new_full((len(truth),), 1 / count)
        coder = DeltaCoder(config.box_weights)
        losses["boxes"] = box_loss("smooth_l1", codes, truth, regions[positive], coder, weight, config.box_beta)
        return losses

    def postprocess(self, raw: RoIRaw, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        proposals, _, counts = propose(raw.rpn, self.grid.over(raw.rpn.codes, image), sizes, config.rpn, training=False)
        if not torch.compiler.is_compiling():
            # Regions that no image has cost time only; one stays, as there is no suppressing of none.
            proposals = proposals[:, : max(int(counts.max()), 1)]
        batch, count = proposals.shape[:2]
        which = torch.arange(batch, device=proposals.device).to(proposals)[:, None, None].expand(-1, count, -1)
        output = self.regions(raw, torch.cat([which, proposals], 2).flatten(0, 1))

        probabilities = self._background_last(output.classes).softmax(1)[:, :-1].to(proposals.dtype)
        classes = probabilities.shape[1]
        codes = output.codes.to(proposals.dtype).expand(-1, classes, -1).unflatten(0, (batch, count))
        boxes = DeltaCoder(config.box_weights).decode(codes, proposals[:, :, None].expand_as(codes)).flatten(1, 2)
        boxes = clip_boxes(boxes, sizes)
        used = within(counts, count)[:, :, None]
        scores = (probabilities.unflatten(0, (batch, count)) * used).flatten(1)
        large = (boxes[..., 2:] - boxes[..., :2] >= config.min_size).all(2)
        labels = torch.arange(classes, device=boxes.device).repeat(count).expand(batch, -1)
        return self.suppress(boxes, scores * large, labels)

    def _background_last(self, classes: Tensor) -> Tensor:
        return classes.roll(-1, 1) if self.head.background == "first" else classes
