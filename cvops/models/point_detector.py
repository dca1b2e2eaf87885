"""The assembly of detectors that take an object for the point in its middle: backbone, neck, head, the losses of
CenterNet, and boxes from the peaks of a heat map. Boxes are told by size, or by distances to the four sides. Which
parts make which network is in the family files."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.detection import Detections, ImageBatch, above, clip_boxes
from cvops.models.detection.gaussians import gaussian_radius
from cvops.models.detection.keypoint_losses import KeyPoints, heatmap_loss, locate
from cvops.models.detection.spread import Samples, spread
from cvops.models.detector import Detector, DetectorConfig, Losses
from cvops.models.head.point import PointOutput
from cvops.models.model import Backbone
from cvops.nn.norm import is_traced
from cvops.ops import generalized_box_iou_loss, heatmap_peaks

STRIDE = 4  # of the head's maps, in pixels
OVERLAP = 0.7  # a point within the Gaussian's radius gives a box that overlaps by so much


@dataclass(frozen=True, kw_only=True)
class PointConfig(DetectorConfig):
    """Settings of detectors of points.

    box_weight: of the loss of boxes; those of the heat map and of offsets have a weight of 1.
    spread: share of an object's sides over which its Gaussian reaches, and cells learn its box, as in TTFNet; None for
        CenterNet's, which reaches as far along both axes, and the centre alone. It is for distances.
    iou_threshold: 1 for no non-maximum suppression beside that of neighbours in the heat map, as published.
    """

    box_weight: float = 0.1
    spread: float | None = None
    score_threshold: float = 0.0
    iou_threshold: float = 1.0


class PointDetector(Detector[PointOutput]):
    """A detector of points. Parts: `backbone`, `neck`, `head`."""

    config: PointConfig

    def __init__(self, config: PointConfig, backbone: Backbone, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.neck, self.head = backbone, neck, head

    def network(self, pixels: Tensor) -> PointOutput:
        output: PointOutput = self.head(self.neck(self.backbone.features(pixels)))
        return output

    def losses(self, raw: PointOutput, batch: ImageBatch) -> Losses:
        """Averaged over stacks; each over the objects of the batch. Of sizes and offsets the L1 loss (Zhou et al. 2019,
        arXiv:1904.07850, equations 2 and 3), averaged over their two coordinates too, as the authors' code does; of
        distances the GIoU loss of the boxes they make (Liu et al. 2019, arXiv:1909.00700, equation 5)."""
        config = self.config
        boxes, labels, valid = batch.truth
        image, slot = valid.nonzero(as_tuple=True)
        objects = boxes[image, slot]  # [N, 4]
        centres, sides = (objects[:, :2] + objects[:, 2:]) / 2, objects[:, 2:] - objects[:, :2]
        height, width = raw.heat[-1].shape[-2:]
        points = locate(centres / STRIDE, image, labels[image, slot], (height, width))
        cells = sides.flip(1) / STRIDE  # vertical, horizontal
        if config.spread is None:
            radii = gaussian_radius(cells[:, 0].ceil(), cells[:, 1].ceil(), OVERLAP)
        else:
            radii = (cells * config.spread / 2).floor()
        stacks, count = len(raw.heat), max(len(objects), 1)

        losses = {"heat": torch.stack([heatmap_loss(heat, points, radii) for heat in raw.heat]).mean()}
        if raw.boxes[-1].shape[1] == 2:
            terms = [_l1(values, points, sides / STRIDE) / count for values in raw.boxes]
        else:
            reach = radii if config.spread is not None else torch.zeros_like(cells)
            samples = spread(points, reach, sides.prod(1), (len(batch), height, width))
            terms = [_spread_loss(values, samples, objects) for values in raw.boxes]
        losses["boxes"] = config.box_weight * torch.stack(terms).sum() / stacks
        if raw.offsets is not None:
            terms = [_l1(values, points, points.offsets) for values in raw.offsets]
            losses["offsets"] = torch.stack(terms).sum() / (stacks * count)
        return losses

    def postprocess(self, raw: PointOutput, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        heat, values = raw.heat[-1], raw.boxes[-1]
        # The sigmoid keeps the order, so that only the peaks need it; in eager mode in double, since torch's float32
        # may differ by a bit between the elements that fill its vectors and the few that are left over. Not every
        # runtime of an exported graph has doubles.
        logits, labels, ys, xs = heatmap_peaks(heat, config.max_detections)
        row = torch.arange(heat.shape[0], device=heat.device)[:, None]
        ys, xs = ys.clamp(min=0), xs.clamp(min=0)  # -1 where an image has fewer peaks, whose score is 0
        dtype = torch.promote_types(heat.dtype, torch.float32)
        scores = logits.to(dtype if is_traced(logits) else torch.float64).sigmoid().to(dtype)
        at = values[row, :, ys, xs].to(dtype)  # [B, K, 2 or 4]
        corner = torch.stack([xs, ys], 2).to(dtype)
        if values.shape[1] == 2:
            if raw.offsets is not None:
                corner = corner + raw.offsets[-1][row, :, ys, xs].to(dtype)
            low, high = (corner - at / 2) * STRIDE, (corner + at / 2) * STRIDE
        else:
            low, high = corner * STRIDE - at[:, :, :2], corner * STRIDE + at[:, :, 2:]
        # Nothing keeps a network from negative sizes: such boxes are empty.
        boxes = torch.cat([low, torch.maximum(low, high)], 2)
        boxes = clip_boxes(boxes, sizes)
        if config.iou_threshold < 1:
            return self.suppress(boxes, scores, labels)
        return above(boxes, scores, labels, config.score_threshold)


def _l1(maps: Tensor, points: KeyPoints, truth: Tensor) -> Tensor:
    """Absolute differences at the points, averaged over the two coordinates, summed over points."""
    return F.l1_loss(points.of(maps).to(truth.dtype), truth, reduction="sum") / 2


def _spread_loss(maps: Tensor, samples: Samples, objects: Tensor) -> Tensor:
    """The mean GIoU loss of the boxes that distances [B, 4, H, W] make, weighed as the samples say."""
    corner = STRIDE * torch.stack([samples.xs, samples.ys], 1)
    distances = maps[samples.image, :, samples.ys, samples.xs].to(objects.dtype)
    boxes = torch.cat([corner - distances[:, :2], corner + distances[:, 2:]], 1)
    total = generalized_box_iou_loss(boxes, objects[samples.target], reduction="sum", weight=samples.weight)
    return total / samples.weight.sum().clamp(min=1e-4)
