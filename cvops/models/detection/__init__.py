"""The parts that detectors share: batches of images, anchors, box codes, assignment, losses, postprocessing. Networks
are made of backbones, necks and heads; the families put all of it together."""

from cvops.models.detection.anchors import AnchorGrid, Anchors, anchor_shapes, map_sizes
from cvops.models.detection.assigners import Assigner, ATSSAssigner, CenterAssigner, IoUAssigner
from cvops.models.detection.coders import BoxCoder, DeltaCoder, DistanceCoder
from cvops.models.detection.images import ImageBatch, ImageTransform, Target, within
from cvops.models.detection.losses import BoxLoss, box_loss, centerness_of
from cvops.models.detection.postprocess import (
    DenseOutput,
    Detections,
    above,
    best_of_levels,
    clip_boxes,
    codes_at,
    flatten_map,
    suppress,
)
from cvops.models.detection.proposals import ProposalSettings, proposal_losses, propose
from cvops.models.detection.sampling import sample

__all__ = [
    "ATSSAssigner",
    "AnchorGrid",
    "Anchors",
    "Assigner",
    "BoxCoder",
    "BoxLoss",
    "CenterAssigner",
    "DeltaCoder",
    "DenseOutput",
    "Detections",
    "DistanceCoder",
    "ImageBatch",
    "ImageTransform",
    "IoUAssigner",
    "ProposalSettings",
    "Target",
    "above",
    "anchor_shapes",
    "best_of_levels",
    "box_loss",
    "centerness_of",
    "clip_boxes",
    "codes_at",
    "flatten_map",
    "map_sizes",
    "proposal_losses",
    "propose",
    "sample",
    "suppress",
    "within",
]
