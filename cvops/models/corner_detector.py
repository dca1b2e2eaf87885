"""The assembly of detectors that find the corners of boxes: a stacked hourglass, branches for each kind of points on
every stack, losses, and the pairing of corners. CornerNet and CenterNet with key point triplets are in their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cvops.models.backbone import HourglassNet
from cvops.models.backbone.hourglass import BLOCKS, CHANNELS, STEM_CHANNELS, authors_hourglass
from cvops.models.detection import Detections, ImageBatch, ImageTransform, clip_boxes
from cvops.models.detection.gaussians import gaussian_radius
from cvops.models.detection.keypoint_losses import KeyPoints, heatmap_loss, locate, offset_loss, tag_losses
from cvops.models.detection.postprocess import suppress_softly
from cvops.models.detector import Detector, DetectorConfig, Losses
from cvops.models.head.corners import PointBranch, PointMaps, PointPooling
from cvops.ops import heatmap_peaks

# Blue first; the numbers are the authors', of both families.
INPUT = ImageTransform(
    "none",
    divisor=128,
    mean=(0.40789654, 0.44719302, 0.47026115),
    std=(0.28863828, 0.27408164, 0.27809835),
    bgr=True,
)
LARGE_AREA = 150.0**2  # pixels, from which on the middle of a box is a fifth of its sides
CENTER_DEVIATIONS = 5.0  # in the window of a center's bump (sample/coco.py of CenterNet's code)


@dataclass(frozen=True, kw_only=True)
class CornerDetectorConfig(DetectorConfig):
    """Settings of detectors that pair corners.

    stacks, channels, blocks, stem_channels, features: of `HourglassNet`; `features` is the width of the stacks' maps.
    pooled: channels of corner pooling.
    points: so many of each kind of points are taken, peaks over `kernel` x `kernel` cells.
    tag_distance: corners belong together up to this difference of their tags.
    candidates: so many pairs enter NMS.
    nms: `hard`, which exports, or `gaussian`: soft-NMS, with which the published figures are made.
    overlap: corners as far off as leaves the box this IoU are punished less.
    pull_weight, push_weight, offset_weight: of the losses; that of the heat maps is 1.
    """

    stacks: int = 2
    channels: tuple[int, ...] = CHANNELS
    blocks: tuple[int, ...] = BLOCKS
    stem_channels: int = STEM_CHANNELS
    features: int = 256
    pooled: int = 128
    points: int = 100
    kernel: int = 3
    tag_distance: float = 0.5
    candidates: int = 1000
    nms: Literal["hard", "gaussian"] = "hard"
    overlap: float = 0.3
    pull_weight: float = 0.1
    push_weight: float = 0.1
    offset_weight: float = 1.0
    transform: ImageTransform = INPUT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nms not in ("hard", "gaussian"):
            raise ValueError(f"nms must be 'hard' or 'gaussian', got {self.nms!r}")
        if self.points < 1 or self.candidates < 1:
            raise ValueError(f"points and candidates must be 1 or more, got {self.points} and {self.candidates}")


class CornerRaw(NamedTuple):
    """maps: of every stack, [B, features, H, W]. last: what the branches make of the last one."""

    maps: list[Tensor]
    last: list[PointMaps]


class Points(NamedTuple):
    """The best points of a kind in each image, K each, by descending score: scores [B, K], 0 for those that are not
    there; labels [B, K] int64; xs, ys [B, K] in pixels of the batch; tags [B, K]."""

    scores: Tensor
    labels: Tensor
    xs: Tensor
    ys: Tensor
    tags: Tensor | None


class CornerDetector(Detector[CornerRaw]):
    """Parts: `backbone`, and `heads`: for every stack a branch for top-left corners, one for bottom-right corners, and
    where there are three `poolings` one for centers."""

    config: CornerDetectorConfig
    backbone: HourglassNet

    def __init__(self, config: CornerDetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = HourglassNet(
            config.in_chans,
            stacks=config.stacks,
            channels=config.channels,
            blocks=config.blocks,
            stem_channels=config.stem_channels,
            out_channels=config.features,
        )
        self.heads = nn.ModuleList(
            nn.ModuleList(
                PointBranch(pooling, config.features, config.num_classes, tags=kind < 2)
                for kind, pooling in enumerate(self.poolings())
            )
            for _ in range(config.stacks)
        )

    @property
    def class_keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(
            f"heads.{stack}.{kind}.heat.1.{leaf}"
            for stack, branches in enumerate(self.heads)
            for kind in range(len(branches))  # type: ignore[arg-type]
            for leaf in ("weight", "bias")
        )

    def poolings(self) -> list[PointPooling]:
        """Those of top-left corners, of bottom-right corners, and of centers if there are."""
        raise NotImplementedError

    def network(self, pixels: Tensor) -> CornerRaw:
        maps = self.backbone.features(pixels)
        return CornerRaw(maps, self.predict(-1, maps[-1]))

    def predict(self, stack: int, x: Tensor) -> list[PointMaps]:
        """What the branches of a stack make of its map."""
        branches: Sequence[PointBranch] = self.heads[stack]  # type: ignore[assignment]
        return [branch(x) for branch in branches]

    def losses(self, raw: CornerRaw, batch: ImageBatch) -> Losses:
        """Heat maps, offsets, and the tags' pull and push, averaged over the stacks."""
        config = self.config
        boxes, labels, valid = batch.truth
        image, slot = valid.nonzero(as_tuple=True)
        labels = labels[image, slot]
        height, width = raw.maps[0].shape[-2:]
        corners = boxes[image, slot] * pixels_to_cells(raw, batch).repeat(2)  # [N, 4]
        kinds = [corners[:, :2], corners[:, 2:], (corners[:, :2] + corners[:, 2:]) / 2]
        points = [locate(p, image, labels, (height, width)) for p in kinds]
        sides = (corners[:, 2:] - corners[:, :2]).ceil()
        radii = gaussian_radius(sides[:, 1], sides[:, 0], config.overlap)
        losses = {name: corners.new_zeros(()) for name in ("heat", "offsets", "pull", "push")}
        share = 1 / config.stacks
        for stack in range(config.stacks):
            last = stack == config.stacks - 1
            maps = raw.last if last else self.predict(stack, raw.maps[stack])
            for kind, got in enumerate(maps):
                where = points[kind]
                deviations = CENTER_DEVIATIONS if kind == 2 else 6.0
                losses["heat"] = losses["heat"] + share * heatmap_loss(got.heat, where, radii, deviations)
                losses["offsets"] = losses["offsets"] + share * config.offset_weight * offset_loss(got.offsets, where)
            first, second = (tags_at(maps[i], points[i]).to(corners.dtype) for i in range(2))
            pull, push = tag_losses(first, second, image, len(batch))
            losses["pull"] = losses["pull"] + share * config.pull_weight * pull
            losses["push"] = losses["push"] + share * config.push_weight * push
        return losses

    def postprocess(self, raw: CornerRaw, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        points = [self.best_points(maps, image) for maps in raw.last]
        boxes, scores, labels = self.pair(points[0], points[1])
        boxes = clip_boxes(boxes, sizes)
        scores = torch.where((boxes[..., 2:] > boxes[..., :2]).all(2), scores, 0)
        if len(points) == 3:
            scores = confirm(boxes, scores, labels, points[2])
        if config.nms == "gaussian":
            return suppress_softly(
                boxes, scores, labels, score_threshold=config.score_threshold, max_detections=config.max_detections
            )
        return self.suppress(boxes, scores, labels)

    def best_points(self, maps: PointMaps, image: tuple[int, int]) -> Points:
        """The peaks of a heat map; `image` is the batch's height and width."""
        height, width = maps.heat.shape[-2:]
        heat = maps.heat.to(torch.promote_types(maps.heat.dtype, torch.float32))
        logits, labels, ys, xs = heatmap_peaks(heat, self.config.points, self.config.kernel)
        cells = (ys * width + xs).clamp(min=0)  # [B, K]
        dx, dy = maps.offsets.to(heat.dtype).flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).unbind(1)
        tags = None if maps.tags is None else maps.tags.to(heat.dtype).flatten(1).gather(1, cells)
        return Points(logits.sigmoid(), labels, (xs + dx) * (image[1] / width), (ys + dy) * (image[0] / height), tags)

    def pair(self, first: Points, second: Points) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of top-left and bottom-right corners of one class whose tags are close and that lie as corners
        do (section 3.1): boxes [B, P, 4], scores [B, P], the mean of both corners' and 0 where there are no more pairs,
        labels [B, P]."""
        assert first.tags is not None
        assert second.tags is not None

        def each(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a[:, :, None], b[:, None]

        label, other = each(first.labels, second.labels)
        tag, other_tag = each(first.tags, second.tags)
        (x1, x2), (y1, y2) = each(first.xs, second.xs), each(first.ys, second.ys)
        fits = (label == other) & (label >= 0) & ((tag - other_tag).abs() <= self.config.tag_distance)
        fits = fits & (x2 >= x1) & (y2 >= y1)
        score, other_score = each(first.scores, second.scores)
        scores = torch.where(fits, (score + other_score) / 2, 0).flatten(1)  # [B, K * K]
        k = self.config.points
        scores, pairs = scores.topk(min(self.config.candidates, k * k), dim=1)
        a, b = pairs // k, pairs % k
        corners = (first.xs.gather(1, a), first.ys.gather(1, a), second.xs.gather(1, b), second.ys.gather(1, b))
        return torch.stack(corners, 2), scores, first.labels.gather(1, a)


def tags_at(maps: PointMaps, points: KeyPoints) -> Tensor:
    """The tags of corners, [N]."""
    assert maps.tags is not None
    return points.of(maps.tags)[:, 0]


def pixels_to_cells(raw: CornerRaw, batch: ImageBatch) -> Tensor:
    """Cells of the maps per pixel of the batch, (horizontal, vertical)."""
    (height, width), (rows, columns) = batch.pixels.shape[-2:], raw.maps[0].shape[-2:]
    return torch.tensor((columns / width, rows / height), device=batch.pixels.device, dtype=batch.truth[0].dtype)


def confirm(boxes: Tensor, scores: Tensor, labels: Tensor, centers: Points) -> Tensor:
    """Scores of boxes [B, P, 4] with a center of their class in their middle (Duan et al. 2019, arXiv:1904.08189,
    section 3.2): the mean of both corners and of the best such center; 0 for the others. The middle is the inner third
    of each side of a box of up to 150 x 150 pixels, the inner fifth of a larger one's.

    >>> one, label = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    >>> box = torch.tensor([[[0.0, 0, 90, 90]]])
    >>> confirm(box, 0.6 * one, label, Points(0.9 * one, label, 40 * one, 40 * one, None))
    tensor([[0.7000]])
    >>> confirm(box, 0.6 * one, label, Points(0.9 * one, label, 20 * one, 40 * one, None))
    tensor([[0.]])
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    parts = torch.where(sides.prod(2, keepdim=True) > LARGE_AREA, 5, 3)
    middle, reach = boxes[..., :2] + sides / 2, sides / (2 * parts)
    places = torch.stack([centers.xs, centers.ys], 2)  # [B, K, 2]
    inside = ((places[:, None] - middle[:, :, None]).abs() < reach[:, :, None]).all(3)  # [B, P, K]
    inside = inside & (labels[:, :, None] == centers.labels[:, None])
    best = torch.where(inside, centers.scores[:, None], 0).amax(2)
    return torch.where(inside.any(2) & (scores > 0), (2 * scores + best) / 3, 0)


def authors_modules(config: CornerDetectorConfig, kinds: Sequence[str]) -> dict[str, str]:
    """The names that the authors of both families give to the layers; `kinds` are their names of the branches."""
    paths = authors_hourglass(config.stacks, config.blocks)
    units = {"p1_conv1": "first", "p2_conv1": "second", "conv2": "output"}
    units |= {"look_conv1": "look_first", "look_conv2": "look_second"}
    plain = {"p_conv1": "join.conv", "p_bn1": "join.norm", "conv1": "shortcut.conv", "bn1": "shortcut.norm"}
    plain |= {"P1_look_conv": "merge_first", "P2_look_conv": "merge_second"}
    for theirs, ours in units.items():
        plain |= {f"{theirs}.conv": f"{ours}.conv", f"{theirs}.bn": f"{ours}.norm"}
    for stack in range(config.stacks):
        for i, kind in enumerate(kinds):
            branch = f"heads.{stack}.{i}"
            paths |= {f"{kind}_cnvs.{stack}.{theirs}": f"{branch}.pool.{ours}" for theirs, ours in plain.items()}
            for theirs, ours in (("heats", "heat"), ("tags", "tags"), ("regrs", "offsets")):
                paths |= {
                    f"{kind}_{theirs}.{stack}.0.conv": f"{branch}.{ours}.0.conv",
                    f"{kind}_{theirs}.{stack}.1": f"{branch}.{ours}.1",
                }
    return paths
