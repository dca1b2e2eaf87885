"""CenterNet with objects as points (Zhou et al. 2019): its three published networks, and the names that the authors
give to their layers. Losses and postprocessing are `point_detector.py`; CenterNet with keypoint triplets is another
family."""

from dataclasses import dataclass, replace

from torch import nn

from cvops.models.backbone.dla import DLA34_CHANNELS, DLANet, authors_dla
from cvops.models.backbone.hourglass import BLOCKS, HourglassNet, authors_hourglass
from cvops.models.config import Accuracy, Paper
from cvops.models.detection import ImageTransform
from cvops.models.detector import BackboneConfig, detector_variant
from cvops.models.head.point import PointHead
from cvops.models.model import Backbone
from cvops.models.neck.upsampling import DeepAggregation, DeformUpsampling
from cvops.models.point_detector import PointConfig, PointDetector
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap
from cvops.nn import NormName

# --- variants ---------------------------------------------------------------------------------------------------------

# 512 x 512 as in training. The authors test at each image's own size: transform={"resize": "none"}. Blue comes first.
INPUT = ImageTransform(
    "letterbox", (512, 512), mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278), bgr=True, divisor=32
)


@dataclass(frozen=True, kw_only=True)
class CenterNetConfig(PointConfig, BackboneConfig):
    """What makes a CenterNet.

    backbone: `dla34`, `hourglass104`, or a classification model, whose last map goes up by transposed and deformable
        convolutions; `norm`, `norm_eps` and `stride_first` are of the last.
    channels: of the three steps up from a classification model's last map.
    head_channels: of the head's 3x3 convolutions.
    stacks: hourglasses.
    """

    transform: ImageTransform = INPUT
    backbone: str = "resnet18"
    norm: NormName | None = None
    channels: tuple[int, ...] = (256, 128, 64)
    head_channels: int = 64
    stacks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.channels) != 3:
            raise ValueError(f"channels must be of the three steps from stride 32 to 4, got {self.channels}")
        if self.stacks != 1 and self.backbone != "hourglass104":
            raise ValueError(f"stacks must be 1 for the backbone {self.backbone}, got {self.stacks}")


PAPER = Paper(
    title="Objects as Points",
    authors="Zhou et al.",
    year=2019,
    url="https://arxiv.org/abs/1904.07850",
)

_RESNET18 = CenterNetConfig()
_DLA34 = CenterNetConfig(backbone="dla34", head_channels=256)
_HOURGLASS104 = CenterNetConfig(
    backbone="hourglass104",
    head_channels=256,
    stacks=2,
    transform=replace(INPUT, divisor=128),
)


def _by_authors(ap: float) -> Accuracy:
    """Of one scale, without flipping; for DLA-34 that of the longer schedule."""
    url = "https://github.com/xingyizhou/CenterNet/blob/master/readme/MODEL_ZOO.md"
    return Accuracy(ap, "authors", url, metric="AP")


VARIANTS = {
    "centernet_resnet18_dcn": detector_variant(_RESNET18, 14_437_349, accuracy=_by_authors(28.1)),
    "centernet_dla34": detector_variant(_DLA34, 19_675_892, accuracy=_by_authors(37.4)),
    "centernet_hourglass104": detector_variant(_HOURGLASS104, 191_284_008, accuracy=_by_authors(40.3)),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_centernet(config: CenterNetConfig) -> PointDetector:
    """A CenterNet with fresh weights.

    >>> config = CenterNetConfig(num_classes=3, backbone="mobilenetv2_035", channels=(32, 32, 32), max_detections=7)
    >>> model = build_centernet(config).eval()
    >>> [len(result["boxes"]) for result in model([torch.rand(3, 64, 80)])]
    [7]
    """
    backbone: Backbone
    neck: nn.Module
    if config.backbone == "dla34":
        backbone, neck, width = DLANet(config.in_chans), DeepAggregation(DLA34_CHANNELS[2:]), DLA34_CHANNELS[2]
    elif config.backbone == "hourglass104":
        backbone, neck = HourglassNet(config.in_chans, stacks=config.stacks), nn.Identity()
        width = backbone.feature_info.channels[-1]
    else:
        backbone = config.build_backbone()
        neck = DeformUpsampling(backbone.feature_info.channels[-1], config.channels)
        width = config.channels[-1]
    head = PointHead(width, config.num_classes, config.head_channels, config.stacks)
    return PointDetector(config, backbone, neck, head)


# --- key map ----------------------------------------------------------------------------------------------------------

HEADS = {"hm": "heat", "wh": "boxes", "reg": "offsets"}


def authors_modules(config: CenterNetConfig) -> dict[str, str]:
    """The authors' repository (xingyizhou/CenterNet)."""
    if config.backbone == "hourglass104":
        paths = authors_hourglass(config.stacks, BLOCKS)
        for theirs, ours in HEADS.items():
            for i in range(config.stacks):
                paths[f"{theirs}.{i}.0.conv"] = f"head.{ours}.{i}.0.conv"
                paths[f"{theirs}.{i}.1"] = f"head.{ours}.{i}.1"
        return paths
    if config.backbone != "dla34":
        paths = config.backbone_modules("torchvision", "")
        for i in range(len(config.channels)):
            first = 6 * i
            paths |= _deform(f"deconv_layers.{first}", f"deconv_layers.{first + 1}", f"neck.deform.{i}")
            paths[f"deconv_layers.{first + 3}"] = f"neck.up.{i}"
            paths[f"deconv_layers.{first + 4}"] = f"neck.norms.{i}"
    else:
        paths = authors_dla("base.", "backbone.")
        for i in range(3):
            paths |= _aggregation(f"dla_up.ida_{i}", f"neck.levels.{i}", i + 1)
        paths |= _aggregation("ida_up", "neck.last", 2)
    for theirs, ours in HEADS.items():
        paths |= {f"{theirs}.0": f"head.{ours}.0.0.conv", f"{theirs}.2": f"head.{ours}.0.1"}
    return paths


def _aggregation(theirs: str, ours: str, count: int) -> dict[str, str]:
    paths: dict[str, str] = {}
    for i in range(count):
        for part, name in (("proj", "project"), ("node", "node")):
            unit = f"{theirs}.{part}_{i + 1}"
            paths |= _deform(f"{unit}.conv", f"{unit}.actf.0", f"{ours}.{name}.{i}")
        paths[f"{theirs}.up_{i + 1}"] = f"{ours}.up.{i}"
    return paths


def _deform(conv: str, norm: str, ours: str) -> dict[str, str]:
    return {conv: f"{ours}.conv", f"{conv}.conv_offset_mask": f"{ours}.offset", norm: f"{ours}.norm"}


register(
    Family(
        name="CenterNet (points)",
        task="detection",
        paper=PAPER,
        build=build_centernet,
        variants=VARIANTS,
        key_maps=(KeyMap("xingyizhou", authors_modules),),
    )
)
