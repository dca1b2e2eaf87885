"""YOLOv4 (Bochkovskiy et al. 2020): its settings, its box code, assignment and losses, and the names others give to its
layers. Darknet's own files are read by `darknet.py`; backbone, neck and head are in their files."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvops.models.backbone import CSPDarknet
from cvops.models.backbone.cspdarknet import CHANNELS, DEPTHS, STEM
from cvops.models.config import Accuracy, Paper
from cvops.models.darknet import DarknetLayout, read_darknet
from cvops.models.detection import (
    AnchorGrid,
    DenseOutput,
    Detections,
    ImageBatch,
    ImageTransform,
    clip_boxes,
    flatten_map,
    map_sizes,
)
from cvops.models.detection.coders import MAX_LOG_SCALE
from cvops.models.detection.postprocess import best_of_level
from cvops.models.detector import Detector, DetectorConfig, Losses, detector_variant
from cvops.models.head import YOLOHead
from cvops.models.head.yolo import init_darknet
from cvops.models.neck import PathAggregation
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap
from cvops.ops import complete_box_iou_loss, match_boxes

# --- variants ---------------------------------------------------------------------------------------------------------

Shapes = tuple[tuple[float, float], ...]


# Darknet itself stretches images to this size unless it is told to keep their aspect.
INPUT = ImageTransform("letterbox", (608, 608), mean=(0.0,), std=(1.0,))


@dataclass(frozen=True, kw_only=True)
class YOLOv4Config(DetectorConfig):
    """What makes a YOLOv4.

    stem, channels, depths: widths of CSPDarknet's first convolution and its five stages, and their residual blocks.
    act, neck_act: activations of the backbone, and of neck and head.
    attention: `PointwiseAttention` in the neck (the paper's modified SAM).
    anchors: (width, height) in pixels, of each of the levels at strides 8, 16 and 32.
    grid_scales: factor of each level's centres about the middle of their cell, so that borders of cells are reached
        (section 3.3; Darknet's scale_x_y).
    assign_threshold: a target goes to every anchor whose shape overlaps its own by more than this IoU, and to the best
        one in any case; all levels take part.
    ignore_threshold: predictions that overlap some target by this IoU are not taught to be background.
    box_weight, object_weight, class_weight: of the losses (Darknet's normalizers).
    candidates: so many of each level enter NMS.
    """

    stem: int = STEM
    channels: tuple[int, int, int, int, int] = CHANNELS
    depths: tuple[int, int, int, int, int] = DEPTHS
    act: str = "mish"
    neck_act: str = "leaky_relu"
    attention: bool = False
    anchors: tuple[Shapes, Shapes, Shapes] = (
        ((12, 16), (19, 36), (40, 28)),
        ((36, 75), (76, 55), (72, 146)),
        ((142, 110), (192, 243), (459, 401)),
    )
    grid_scales: tuple[float, float, float] = (1.2, 1.1, 1.05)
    assign_threshold: float = 0.213
    ignore_threshold: float = 0.7
    box_weight: float = 0.07
    object_weight: float = 1.0
    class_weight: float = 1.0
    candidates: int = 1000
    transform: ImageTransform = INPUT
    iou_threshold: float = 0.45

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({len(shapes) for shapes in self.anchors}) != 1 or len(self.anchors) != len(STRIDES):
            raise ValueError(f"anchors must be as many for each of the {len(STRIDES)} levels, got {self.anchors}")
        for name in ("assign_threshold", "ignore_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


PAPER = Paper(
    title="YOLOv4: Optimal Speed and Accuracy of Object Detection",
    authors="Bochkovskiy et al.",
    year=2020,
    url="https://arxiv.org/abs/2004.10934",
)

STRIDES = (8, 16, 32)
LEVELS = (2, 3, 4)  # C3 to C5 among the maps of CSPDarknet

_PAPER = YOLOv4Config()
_SAM_MISH = replace(_PAPER, attention=True, neck_act="mish", transform=replace(INPUT, size=(512, 512)))
_AUTHORS = Accuracy(43.5, "authors, test-dev", "https://github.com/AlexeyAB/darknet", metric="AP")
# Nobody's weights: for small data sets and for tests.
_QUARTER = replace(
    _PAPER, stem=8, channels=(16, 32, 64, 128, 256), depths=(1, 1, 2, 2, 1), transform=replace(INPUT, size=(256, 256))
)

VARIANTS = {
    "yolov4": detector_variant(_PAPER, 64_363_101, accuracy=_AUTHORS),
    "yolov4_sam_mish": detector_variant(_SAM_MISH, 65_742_941),
    "yolov4_quarter": detector_variant(_QUARTER, 3_316_501),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridCoder:
    """Boxes as YOLO has them (Redmon and Farhadi 2017, arXiv:1612.08242, section 2): the sigmoid of x and y is the
    centre within its cell of `stride` pixels, width and height are logarithms relative to the anchor, which is centred
    on the cell. `scale` stretches the centre about the middle of the cell (YOLOv4, section 3.3), clipping keeps wild
    sizes finite.

    >>> anchor = torch.tensor([[0.0, 0, 8, 16]])
    >>> GridCoder(8, 1.0).decode(torch.zeros(1, 4), anchor)
    tensor([[ 0.,  0.,  8., 16.]])
    """

    stride: int
    scale: float

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """[..., 4] codes and anchors to boxes (x1, y1, x2, y2)."""
        low, high = anchors[..., :2], anchors[..., 2:]
        centres = (low + high) / 2 + (codes[..., :2].sigmoid() - 0.5) * (self.scale * self.stride)
        half = (high - low) / 2 * codes[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
        return torch.cat([centres - half, centres + half], -1)


def assign_shapes(
    boxes: Tensor, valid: Tensor, anchors: tuple[Shapes, ...], maps: list[tuple[int, int]], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors learn which targets: of the cell with the target's centre, on every level, those whose shape
    overlaps the target's by an IoU of more than `threshold` with their centres on each other, and the best one.

    boxes: [B, M, 4]. valid: [B, M]. maps: height and width of the map of each level. Returns the image, the target and
    the anchor, numbered as `AnchorGrid` lays them out, of P pairs: [P] int64 each.

    >>> box = torch.tensor([[[10.0, 2, 14, 6]]])
    >>> assign_shapes(box, torch.ones(1, 1, dtype=torch.bool), (((4, 4), (90, 9)),) * 3, [(2, 2), (1, 1), (1, 1)], 0.9)
    (tensor([0, 0, 0]), tensor([0, 0, 0]), tensor([ 2,  8, 10]))
    """
    per_cell = len(anchors[0])
    shapes = torch.tensor([shape for level in anchors for shape in level], device=boxes.device, dtype=boxes.dtype)
    sides = boxes[..., 2:] - boxes[..., :2]
    shared = torch.minimum(sides[:, :, None], shapes).prod(-1)  # [B, M, A]
    ious = shared / (sides.prod(-1)[:, :, None] + shapes.prod(-1) - shared)
    fits = (ious > threshold) | (ious == ious.amax(2, keepdim=True))
    image, target, slot = (fits & valid[:, :, None]).nonzero(as_tuple=True)
    height, width = torch.tensor(maps, device=boxes.device).unbind(1)
    first = F.pad((height * width * per_cell).cumsum(0), (1, 0))
    level = slot // per_cell
    centres = (boxes[..., :2] + boxes[..., 2:])[image, target] / 2
    cells = (centres / torch.tensor(STRIDES, device=boxes.device)[level, None]).floor().long().clamp(min=0)
    x, y = cells[:, 0].minimum(width[level] - 1), cells[:, 1].minimum(height[level] - 1)
    return image, target, first[level] + (y * width[level] + x) * per_cell + slot % per_cell


class YOLOv4(Detector[DenseOutput]):
    """Parts: `backbone`, `neck`, `head`."""

    config: YOLOv4Config

    def __init__(self, config: YOLOv4Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = CSPDarknet(
            config.in_chans, stem=config.stem, channels=config.channels, depths=config.depths, act=config.act
        )
        self.neck = PathAggregation(
            [config.channels[i] for i in LEVELS], attention=config.attention, act=config.neck_act
        )
        self.head = YOLOHead(self.neck.out_channels, len(config.anchors[0]), config.num_classes, act=config.neck_act)
        self.grid = AnchorGrid(config.anchors, STRIDES, offset=0.5)
        self.coders = [GridCoder(*level) for level in zip(STRIDES, config.grid_scales, strict=True)]
        init_darknet(self)

    def network(self, pixels: Tensor) -> DenseOutput:
        maps = self.backbone.features(pixels)
        output: DenseOutput = self.head(self.neck([maps[i] for i in LEVELS]))
        return output

    def losses(self, raw: DenseOutput, batch: ImageBatch) -> Losses:
        """Complete-IoU loss of boxes, cross-entropy of objects and classes, summed over an image as Darknet does and
        averaged over the batch."""
        config = self.config
        boxes, labels, valid = batch.truth
        levels = self.grid.over(raw.codes, batch.shape).levels()
        predicted = torch.cat(
            [
                coder.decode(flatten_map(codes, 4).to(anchors.dtype), anchors)
                for coder, codes, anchors in zip(self.coders, raw.codes, levels, strict=True)
            ],
            1,
        )  # [B, N, 4]
        assert raw.quality is not None
        objects = torch.cat([flatten_map(m, 1)[:, :, 0] for m in raw.quality], 1).to(boxes.dtype)  # [B, N]
        classes = torch.cat([flatten_map(m, config.num_classes) for m in raw.classes], 1)  # [B, N, C]

        image, target, anchor = assign_shapes(
            boxes, valid, config.anchors, map_sizes(raw.codes), config.assign_threshold
        )
        wanted = torch.zeros_like(objects)
        wanted[image, anchor] = 1
        near = config.ignore_threshold
        overlaps = match_boxes(predicted.detach(), boxes.to(predicted.dtype), near, near, valid=valid)[0] >= 0
        counted = (~overlaps | (wanted > 0)).to(objects.dtype)

        # An anchor that several targets want learns the classes of all of them.
        cells, row = (image * objects.shape[1] + anchor).unique(return_inverse=True)
        rows = classes.flatten(0, 1)[cells].to(boxes.dtype)  # [U, C]
        kinds = torch.zeros_like(rows)
        kinds[row, labels[image, target]] = 1

        share = 1 / len(batch)
        truth = boxes[image, target].to(predicted.dtype)
        return {
            "boxes": config.box_weight * share * complete_box_iou_loss(predicted[image, anchor], truth, "sum"),
            "objects": config.object_weight
            * share
            * F.binary_cross_entropy_with_logits(objects, wanted, counted, reduction="sum"),
            "classes": config.class_weight * share * F.binary_cross_entropy_with_logits(rows, kinds, reduction="sum"),
        }

    def postprocess(self, raw: DenseOutput, image: tuple[int, int], sizes: Tensor) -> Detections:
        config = self.config
        assert raw.quality is not None
        levels = self.grid.over(raw.codes, image).levels()
        found = [
            best_of_level(*level, config.candidates, config.score_threshold, product=True)
            for level in zip(raw.classes, raw.codes, raw.quality, levels, self.coders, strict=True)
        ]
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return self.suppress(clip_boxes(boxes, sizes), scores, labels)

    def darknet_layout(self) -> DarknetLayout:
        """Where the layers are in Darknet's files."""
        config = self.config
        return DarknetLayout(darknet_units(config), config.anchors, config.grid_scales, config.num_classes)


def build_yolov4(config: YOLOv4Config) -> YOLOv4:
    """A YOLOv4 with fresh weights.

    >>> model = build_yolov4(replace(_QUARTER, transform=replace(INPUT, size=(64, 64)))).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    return YOLOv4(config)


# --- key map ----------------------------------------------------------------------------------------------------------


def backbone_units(depths: tuple[int, ...]) -> list[list[str]]:
    """The convolutions of each of CSPDarknet's stages in the order in which Darknet computes them; the stem is in the
    first."""
    stages = []
    for i, depth in enumerate(depths):
        stage = f"backbone.stages.{i}"
        blocks = [f"{stage}.blocks.{j}.conv{k}" for j in range(depth) for k in (1, 2)]
        parts = [f"{stage}.{part}" for part in ("down", "skip", "main")]
        stages.append([*parts, *blocks, f"{stage}.transition", f"{stage}.merge"])
    return [["backbone.stem", *stages[0]], *stages[1:]]


def neck_units(attention: bool) -> list[str]:
    """Those on the way down the pyramid."""
    units = [f"neck.{part}.{i}" for part in ("before", "after") for i in range(3)]
    for i in range(2):
        units += [f"neck.shrink.{i}", f"neck.lateral.{i}", *five_units(f"neck.top_down.{i}", attention and i == 1)]
    return units


def head_units(attention: bool) -> list[str]:
    """Those on the way up, and the outputs."""
    units = ["head.units.0", "head.outputs.0"]
    for i in range(2):
        units += [f"neck.stride.{i}", *five_units(f"neck.bottom_up.{i}", attention)]
        units += [f"head.units.{i + 1}", f"head.outputs.{i + 1}"]
    return units


def five_units(block: str, attention: bool) -> list[str]:
    """Of a block of five convolutions, or six with the gate of its attention."""
    return [f"{block}.{i}" + (".gate" if attention and i == 4 else "") for i in range(6 if attention else 5)]


def darknet_units(config: YOLOv4Config) -> tuple[str, ...]:
    """All convolutions in the order of Darknet's yolov4.cfg."""
    stages = [unit for stage in backbone_units(config.depths) for unit in stage]
    return (*stages, *neck_units(config.attention), *head_units(config.attention))


def darknet_modules(config: YOLOv4Config) -> dict[str, str]:
    """Darknet has no names: convolutions are numbered by `read_darknet`."""
    paths: dict[str, str] = {}
    for i, unit in enumerate(darknet_units(config)):
        for part in ("",) if "outputs" in unit else (".conv", ".norm"):
            paths[f"convolutional.{i}{part}"] = f"{unit}{part}"
    return paths


def pytorch_yolov4_modules(config: YOLOv4Config) -> dict[str, str]:
    """Tianxiaomo/pytorch-YOLOv4: convolutions of each stage, of the neck and of the head numbered through, but for
    those of residual blocks beyond the first stage."""
    units: dict[str, str] = {}
    for i, stage in enumerate(backbone_units(config.depths)):
        blocks = {unit for unit in stage if ".blocks." in unit and i > 0}
        units |= {f"down{i + 1}.conv{k}": unit for k, unit in enumerate((u for u in stage if u not in blocks), 1)}
        for unit in blocks:
            block, conv = unit.split(".")[-2:]
            units[f"down{i + 1}.resblock.module_list.{block}.{int(conv[-1]) - 1}"] = unit
    units |= {f"neck.conv{k}": unit for k, unit in enumerate(neck_units(config.attention), 1)}
    units |= {f"head.conv{k}": unit for k, unit in enumerate(head_units(config.attention), 1)}
    paths: dict[str, str] = {}
    for theirs, ours in units.items():
        plain = "outputs" in ours
        paths |= {f"{theirs}.conv.0": ours if plain else f"{ours}.conv", f"{theirs}.conv.1": f"{ours}.norm"}
    return paths


def pytorch_yolov4_convention(config: YOLOv4Config) -> dict[str, Any] | str:
    return "pytorch-YOLOv4 has no attention" if config.attention else {}


register(
    Family(
        name="YOLOv4",
        task="detection",
        paper=PAPER,
        build=build_yolov4,
        variants=VARIANTS,
        key_maps=(
            KeyMap("darknet", darknet_modules),
            KeyMap("pytorch-YOLOv4", pytorch_yolov4_modules, pytorch_yolov4_convention),
        ),
        readers={".weights": read_darknet},
    )
)
