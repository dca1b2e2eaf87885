"""CornerNet (Law and Deng 2018): its settings, and the names its authors and mmdetection give to its layers. Losses and
the pairing of corners are `corner_detector.py`, corner pooling is `head/corners.py`."""

from dataclasses import dataclass, replace
from typing import Any

from cvops.models.backbone.hourglass import mmdet_hourglass
from cvops.models.config import IMAGENET_MEAN, IMAGENET_STD, Accuracy, Paper
from cvops.models.corner_detector import CornerDetector, CornerDetectorConfig, authors_modules
from cvops.models.detector import detector_variant
from cvops.models.head.corners import CornerPooling, PointPooling
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CornerNetConfig(CornerDetectorConfig):
    """What makes a CornerNet."""


PAPER = Paper(
    title="CornerNet: Detecting Objects as Paired Keypoints",
    authors="Law and Deng",
    year=2018,
    url="https://arxiv.org/abs/1808.01244",
)

_PAPER = CornerNetConfig()
_52 = replace(_PAPER, stacks=1)
_BEST = Accuracy(42.2, "paper, abstract (test-dev)", PAPER.url, metric="AP")
# Nobody's weights: for small data sets and for tests.
_SMALL = replace(
    _52,
    channels=(64, 64, 96, 128),
    blocks=(1, 1, 1, 1),
    stem_channels=32,
    features=64,
    pooled=32,
    transform=replace(_PAPER.transform, divisor=32),
)

VARIANTS = {
    "cornernet_hourglass104": detector_variant(_PAPER, 201_035_212, accuracy=_BEST),
    "cornernet_hourglass52": detector_variant(_52, 100_330_278),
    "cornernet_small": detector_variant(_SMALL, 2_008_390),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


class CornerNet(CornerDetector):
    """Top-left and bottom-right corners, each with corner pooling along the sides of its box."""

    def poolings(self) -> list[PointPooling]:
        width, pooled = self.config.features, self.config.pooled
        return [CornerPooling(width, pooled, ("top", "left")), CornerPooling(width, pooled, ("bottom", "right"))]


def build_cornernet(config: CornerNetConfig) -> CornerNet:
    """A CornerNet with fresh weights.

    >>> model = build_cornernet(_SMALL).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    return CornerNet(config)


# --- key map ----------------------------------------------------------------------------------------------------------


def cornernet_modules(config: CornerNetConfig) -> dict[str, str]:
    """princeton-vl/CornerNet."""
    return authors_modules(config, ("tl", "br"))


def mmdet_modules(config: CornerNetConfig) -> dict[str, str]:
    """mmdetection."""
    paths = mmdet_hourglass(config.stacks, config.blocks)
    units = {"direction1_conv": "first", "direction2_conv": "second", "aftpool_conv": "join"}
    units |= {"conv1": "shortcut", "conv2": "output"}
    for stack in range(config.stacks):
        for i, kind in enumerate(("tl", "br")):
            branch = f"heads.{stack}.{i}"
            for theirs, ours in units.items():
                for leaf, part in (("conv", "conv"), ("bn", "norm")):
                    paths[f"bbox_head.{kind}_pool.{stack}.{theirs}.{leaf}"] = f"{branch}.pool.{ours}.{part}"
            for theirs, ours in (("heat", "heat"), ("emb", "tags"), ("off", "offsets")):
                paths[f"bbox_head.{kind}_{theirs}.{stack}.0.conv"] = f"{branch}.{ours}.0.conv"
                paths[f"bbox_head.{kind}_{theirs}.{stack}.1.conv"] = f"{branch}.{ours}.1"
    return paths


def mmdet_convention(config: CornerNetConfig) -> dict[str, Any]:
    """Its weights take red first, with ImageNet's numbers (configs/cornernet)."""
    return {"transform": replace(config.transform, mean=IMAGENET_MEAN, std=IMAGENET_STD, bgr=False)}


register(
    Family(
        name="CornerNet",
        task="detection",
        paper=PAPER,
        build=build_cornernet,
        variants=VARIANTS,
        key_maps=(
            KeyMap("CornerNet", cornernet_modules),
            KeyMap("mmdetection", mmdet_modules, mmdet_convention),
        ),
    )
)
