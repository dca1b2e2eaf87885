"""EfficientDet (Tan et al. 2020): the table of compound scaling, both padding conventions, and the names effdet gives
to the layers. Losses and postprocessing are `dense_detector.py`, the neck is `neck/bifpn.py`, the head
`head/separable.py`. effdet's weights from adversarial training (`*_ap`) take mean and deviation 0.5 in `transform`."""

from dataclasses import dataclass
from typing import Any, Literal

from cvops.models.config import Accuracy, Paper
from cvops.models.dense_detector import DenseDetector, DenseDetectorConfig
from cvops.models.detection import AnchorGrid, BoxLoss, DeltaCoder, ImageTransform, IoUAssigner
from cvops.models.detector import detector_variant
from cvops.models.head import SeparableHead
from cvops.models.neck import BiFPN
from cvops.models.neck.bifpn import Fusion
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap
from cvops.nn import NormName, Padding, make_norm

# --- variants ---------------------------------------------------------------------------------------------------------

HUBER_DELTA = 0.1
INPUT = ImageTransform("letterbox", (512, 512), divisor=128)  # of D0; sides are multiples of the coarsest stride


@dataclass(frozen=True, kw_only=True)
class EfficientDetConfig(DenseDetectorConfig):
    """What makes an EfficientDet. Losses are those of Google's code: focal loss, and 50 times the Huber loss of the
    mean code of the positives, both over the positives of the batch and one.

    channels, cells: width and passes of the BiFPN; `levels` maps of stride 8 and on.
    fusion: of its maps, `fast` (learned weights) or `sum`.
    head_convs: of each tower before its output.
    anchor_scale: sides of anchors in strides, times the octaves.
    padding: of the max-pooling in the BiFPN: "same" as in TensorFlow. The backbone has its own.
    conv_bias: convolutions before norms have a bias too, as Google's have.
    norm_momentum: of every batch norm; None, as published: 0.01 in neck and head, and the backbone's own. At 0.01 the
        initial statistics take some hundreds of steps to be forgotten, too many for a short training.
    """

    num_classes: int = 90  # COCO's category ids less one, of which 80 are in use
    backbone: str = "tf_efficientnet_b0"
    norm: NormName | None = None
    channels: int = 64
    cells: int = 3
    levels: int = 5
    fusion: Fusion = "fast"
    head_convs: int = 3
    anchor_scale: float = 4.0
    padding: Padding = "same"
    conv_bias: bool = True
    norm_momentum: float | None = None
    transform: ImageTransform = INPUT
    focal_gamma: float = 1.5
    box_loss: BoxLoss = "smooth_l1"  # the Huber loss over its delta
    box_loss_beta: float = HUBER_DELTA
    box_loss_factor: float = 50 * HUBER_DELTA / 4
    normaliser: Literal["image", "batch", "batch+1"] = "batch+1"
    score_threshold: float = 0.0
    candidates: int = 5000
    candidates_of: Literal["level", "image"] = "image"

    @property
    def backbone_settings(self) -> dict[str, Any]:
        """As for every detector, and the momentum."""
        settings = super().backbone_settings
        return settings if self.norm_momentum is None else {**settings, "norm_momentum": self.norm_momentum}


PAPER = Paper(
    title="EfficientDet: Scalable and Efficient Object Detection",
    authors="Tan et al.",
    year=2020,
    url="https://arxiv.org/abs/1911.09070",
)


@dataclass(frozen=True)
class Size:
    """A row of table 1 of the paper; `pixels` is the side of the input. `parameters` and `ap` are of Google's networks,
    `torch_parameters` of effdet's own."""

    backbone: str
    pixels: int
    channels: int
    cells: int
    head_convs: int
    parameters: int
    ap: float
    torch_parameters: int | None = None
    levels: int = 5
    fusion: Fusion = "fast"
    anchor_scale: float = 4.0


# From D6 on maps are fused by plain sums, for the sake of stable training; that, and the larger anchors of D7 and the
# sixth level of D7x, are Google's configuration (google/automl, efficientdet/hparams_config.py).
README = "https://github.com/google/automl/blob/master/efficientdet/README.md"
SIZES = {
    "d0": Size("efficientnet_b0", 512, 64, 3, 3, 3_880_067, 34.3, 3_877_763),
    "d1": Size("efficientnet_b1", 640, 88, 4, 3, 6_625_898, 40.2, 6_622_026),
    "d2": Size("efficientnet_b2", 768, 112, 5, 3, 8_097_039, 43.5),
    "d3": Size("efficientnet_b3", 896, 160, 6, 4, 12_032_296, 46.8),
    "d4": Size("efficientnet_b4", 1024, 224, 7, 4, 20_723_675, 49.3),
    "d5": Size("efficientnet_b5", 1280, 288, 7, 4, 33_653_315, 51.2),
    "d6": Size("efficientnet_b6", 1280, 384, 8, 5, 51_871_782, 52.1, fusion="sum"),
    "d7": Size("efficientnet_b6", 1536, 384, 8, 5, 51_871_782, 53.4, fusion="sum", anchor_scale=5.0),
    "d7x": Size("efficientnet_b7", 1536, 384, 8, 5, 77_147_166, 54.4, levels=6, fusion="sum"),
}


def _variants() -> dict[str, Variant]:
    """`tf_efficientdet_*` as Google has them; `efficientdet_*` as effdet trained the two smallest itself, with torch's
    padding and without spare biases."""
    conventions: tuple[tuple[str, Padding], ...] = (("tf_", "same"), ("", "symmetric"))
    variants = {}
    for name, size in SIZES.items():
        for prefix, padding in conventions:
            parameters = size.parameters if padding == "same" else size.torch_parameters
            if parameters is None:
                continue
            config = EfficientDetConfig(
                backbone=f"{prefix}{size.backbone}",
                channels=size.channels,
                cells=size.cells,
                levels=size.levels,
                fusion=size.fusion,
                head_convs=size.head_convs,
                anchor_scale=size.anchor_scale,
                padding=padding,
                conv_bias=padding == "same",
                transform=ImageTransform("letterbox", (size.pixels, size.pixels), divisor=4 * 2**size.levels),
            )
            published = Accuracy(size.ap, "Google", README, metric="AP") if padding == "same" else None
            variants[f"{prefix}efficientdet_{name}"] = detector_variant(config, parameters, accuracy=published)
    return variants


# --- assembly ---------------------------------------------------------------------------------------------------------

LEVELS = (2, 3, 4)  # C3 to C5 among the maps of an EfficientNet
OCTAVES = 3
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # width and height; Google's rounding of sqrt(2)


def anchor_grid(config: EfficientDetConfig) -> AnchorGrid:
    """Nine anchors a cell: three octaves of `anchor_scale` strides and, within each, three aspects."""
    strides = tuple(8 * 2**level for level in range(config.levels))
    sides = [[config.anchor_scale * stride * 2 ** (o / OCTAVES) for o in range(OCTAVES)] for stride in strides]
    return AnchorGrid(
        shapes=tuple(tuple((side * w, side * h) for side in level for w, h in ASPECTS) for level in sides),
        strides=strides,
        offset=0.5,
    )


def build_efficientdet(config: EfficientDetConfig) -> DenseDetector:
    """An EfficientDet with fresh weights.

    >>> transform = ImageTransform("letterbox", (128, 128), divisor=128)
    >>> model = build_efficientdet(EfficientDetConfig(num_classes=20, cells=1, transform=transform)).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 96, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    grid = anchor_grid(config)
    backbone = config.build_backbone()
    norm = make_norm("batch", eps=1e-3, momentum=0.01 if config.norm_momentum is None else config.norm_momentum)
    neck = BiFPN(
        [backbone.feature_info.channels[i] for i in LEVELS],
        config.channels,
        levels=config.levels,
        cells=config.cells,
        fusion=config.fusion,
        norm=norm,
        padding=config.padding,
        conv_bias=config.conv_bias,
    )
    head = SeparableHead(
        config.channels,
        grid.per_cell[0],
        config.num_classes,
        convs=config.head_convs,
        levels=config.levels,
        norm=norm,
        conv_bias=config.conv_bias,
    )
    return DenseDetector(
        config,
        backbone,
        neck,
        head,
        levels=LEVELS,
        grid=grid,
        assigner=IoUAssigner(0.5, 0.5, force=True),
        coder=DeltaCoder(vertical_first=True),
    )


# --- key map ----------------------------------------------------------------------------------------------------------


def effdet_modules(config: EfficientDetConfig) -> dict[str, str]:
    """effdet: the nodes of a cell are numbered through, from the second coarsest level down to the finest and up again;
    a node's inputs by where they are among the maps so far."""
    paths = config.backbone_modules("timm", "backbone.")
    paths |= _unit("fpn.resample.3.conv", "neck.reduce", conv="conv")
    for i in range(config.cells):
        downward = [(f"down.{j}", level) for j, level in enumerate(range(config.levels - 2, -1, -1))]
        upward = [(f"up.{j}", level) for j, level in enumerate(range(1, config.levels))]
        for j, (node, level) in enumerate(downward + upward):
            theirs, ours = f"fpn.cell.{i}.fnode.{j}", f"neck.cells.{i}.{node}"
            paths[f"{theirs}.combine"] = f"{ours}.fuse"
            paths |= _separable(f"{theirs}.after_combine.conv", f"{ours}.conv")
            if i == 0 and level < len(LEVELS):
                paths |= _unit(f"{theirs}.combine.resample.{level}.conv", f"{ours}.lateral", conv="conv")
    for theirs, ours in (("class_net", "head.classes"), ("box_net", "head.boxes")):
        for i in range(config.head_convs):
            paths |= _separable(f"{theirs}.conv_rep.{i}", f"{ours}.convs.{i}")
            for level in range(config.levels):
                paths[f"{theirs}.bn_rep.{i}.{level}.bn"] = f"{ours}.norms.{i}.{level}"
        paths |= _separable(f"{theirs}.predict", f"{ours}.output")
    return paths


def _unit(theirs: str, ours: str, conv: str) -> dict[str, str]:
    return {f"{theirs}.{conv}": f"{ours}.conv", f"{theirs}.bn": f"{ours}.norm"}


def _separable(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.conv_dw": f"{ours}.depthwise"} | _unit(theirs, f"{ours}.pointwise", conv="conv_pw")


register(
    Family(
        name="EfficientDet",
        task="detection",
        paper=PAPER,
        build=build_efficientdet,
        variants=_variants(),
        key_maps=(KeyMap("effdet", effdet_modules),),
    )
)
