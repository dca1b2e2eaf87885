"""R-FCN (Dai et al. 2016): its settings, and the names of a public PyTorch implementation. Sampling, losses and
postprocessing are `roi_detector.py`, the head is `head/position_sensitive.py`."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from cvops.models.config import Accuracy, Paper
from cvops.models.detection import AnchorGrid, ImageTransform, ProposalSettings, anchor_shapes
from cvops.models.detector import BackboneConfig, detector_variant
from cvops.models.head import PositionSensitiveHead, RPNHead
from cvops.models.registry import Family, register
from cvops.models.roi_detector import RoIDetector, RoIDetectorConfig, RoIRaw
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RFCNConfig(BackboneConfig, RoIDetectorConfig):
    """What makes an R-FCN: a ResNet whose last stage is dilated, so that all maps used are at stride 16. It is Caffe's:
    bottlenecks stride first, and the pool has no padding but a last partial window."""

    num_classes: int = 20
    backbone: str = "resnet101"
    stride_first: bool = True
    transform: ImageTransform = ImageTransform(  # noqa: RUF009, frozen
        size=(600, 1000),
        divisor=16,
        mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255),
        std=(1 / 255,) * 3,
        bgr=True,
    )
    iou_threshold: float = 0.3
    samples: int = 128
    rpn: ProposalSettings = ProposalSettings(  # noqa: RUF009, frozen
        candidates=6000, proposals=300, train_candidates=12000, train_proposals=2000, min_size=16
    )

    @property
    def backbone_settings(self) -> dict[str, Any]:
        return super().backbone_settings | {"output_stride": STRIDE, "pool": "ceil"}


PAPER = Paper(
    title="R-FCN: Object Detection via Region-based Fully Convolutional Networks",
    authors="Dai et al.",
    year=2016,
    url="https://arxiv.org/abs/1605.06409",
)

STRIDE = 16
SIZES = (128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)
RPN_CHANNELS = 512

_CONFIG = RFCNConfig()


def _by_authors(mean_ap: float) -> Accuracy:
    """Trained on VOC 2007 and 2012."""
    return Accuracy(mean_ap, "authors, 07+12", "https://github.com/daijifeng001/R-FCN", metric="VOC07")


VARIANTS = {
    "rfcn_resnet101": detector_variant(_CONFIG, 50_493_174, accuracy=_by_authors(79.5)),
    "rfcn_resnet50": detector_variant(replace(_CONFIG, backbone="resnet50"), 31_553_270, accuracy=_by_authors(77.4)),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


class RFCN(RoIDetector):
    """A region-based fully convolutional network. Parts: `backbone`, `rpn` (on stage 3), `head` (on stage 4)."""

    head: PositionSensitiveHead  # type: ignore[assignment]

    def network(self, pixels: Tensor) -> RoIRaw:
        third, fourth = (self.backbone.features(pixels)[i] for i in self.levels)
        return RoIRaw(self.head.score_maps(fourth), self.rpn([third]))


def build_rfcn(config: RFCNConfig) -> RFCN:
    """An R-FCN with fresh weights.

    >>> model = build_rfcn(RFCNConfig(backbone="resnet50", transform=ImageTransform(size=(64, 96)))).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    backbone = config.build_backbone()
    channels = backbone.feature_info.channels
    shapes = anchor_shapes(SIZES, RATIOS)
    return RFCN(
        config,
        backbone,
        nn.Identity(),
        RPNHead(channels[3], len(shapes), RPN_CHANNELS, background=True),
        PositionSensitiveHead(channels[4], config.num_classes, scale=1 / STRIDE),
        levels=(3, 4),
        grid=AnchorGrid(shapes=(shapes,), strides=(STRIDE,), offset=0.5),
    )


# --- key map ----------------------------------------------------------------------------------------------------------


def rfcn_pytorch_modules(config: RFCNConfig) -> dict[str, str]:
    """princewang1994/RFCN_CoupleNet.pytorch: stages by their number in a sequence, the last one apart."""
    stages = {"conv1": "RCNN_base.0", "bn1": "RCNN_base.1"}
    stages |= {f"layer{i}": f"RCNN_base.{i + 3}" for i in (1, 2, 3)} | {"layer4": "RCNN_conv_new.0"}
    paths = {
        "RCNN_rpn.RPN_Conv": "rpn.conv.conv",
        "RCNN_rpn.RPN_cls_score": "rpn.objectness",
        "RCNN_rpn.RPN_bbox_pred": "rpn.boxes",
        "RCNN_conv_1x1": "head.reduce.conv",
        "RCNN_conv_new.1": "head.reduce.conv",  # the same layer by its second name
        "RCNN_cls_base": "head.classes",
        "RCNN_bbox_base": "head.boxes",
    }
    for theirs, ours in config.backbone_modules("torchvision", "").items():
        stage, dot, rest = theirs.partition(".")
        paths[stages[stage] + dot + rest] = ours
    return paths


register(
    Family(
        name="R-FCN",
        task="detection",
        paper=PAPER,
        build=build_rfcn,
        variants=VARIANTS,
        key_maps=(KeyMap("RFCN_CoupleNet.pytorch", rfcn_pytorch_modules),),
    )
)
