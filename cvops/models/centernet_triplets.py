"""CenterNet with key point triplets (Duan et al. 2019): its settings, and the names its authors give to its layers.
Losses, the pairing of corners and its confirmation by a center are `corner_detector.py`, the poolings are
`head/corners.py`. CenterNet of Zhou et al., objects as points, is another family."""

from dataclasses import dataclass, replace

from cvops.models.config import Accuracy, Paper
from cvops.models.corner_detector import CornerDetector, CornerDetectorConfig, authors_modules
from cvops.models.detector import detector_variant
from cvops.models.head.corners import CascadeCornerPooling, CenterPooling, PointPooling
from cvops.models.registry import Family, register
from cvops.models.weights import KeyMap

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CenterNetTripletsConfig(CornerDetectorConfig):
    """What makes a CenterNet with key point triplets."""

    points: int = 70


PAPER = Paper(
    title="CenterNet: Keypoint Triplets for Object Detection",
    authors="Duan et al.",
    year=2019,
    url="https://arxiv.org/abs/1904.08189",
)

_PAPER = CenterNetTripletsConfig()
_52 = replace(_PAPER, stacks=1)
_BEST = Accuracy(47.0, "paper, abstract (test-dev)", PAPER.url, metric="AP")
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
    "centernet_triplets_hourglass104": detector_variant(_PAPER, 210_062_960, accuracy=_BEST),
    "centernet_triplets_hourglass52": detector_variant(_52, 104_844_152),
    "centernet_triplets_small": detector_variant(_SMALL, 2_295_192),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


class CenterNetTriplets(CornerDetector):
    """Both corners with cascade corner pooling, and centers with center pooling."""

    def poolings(self) -> list[PointPooling]:
        width, pooled = self.config.features, self.config.pooled
        return [
            CascadeCornerPooling(width, pooled, ("top", "left")),
            CascadeCornerPooling(width, pooled, ("bottom", "right")),
            CenterPooling(width, pooled),
        ]


def build_centernet_triplets(config: CenterNetTripletsConfig) -> CenterNetTriplets:
    """A CenterNet with fresh weights.

    >>> model = build_centernet_triplets(_SMALL).eval()
    >>> [sorted(result) for result in model([torch.rand(3, 64, 80)])]
    [['boxes', 'labels', 'scores']]
    """
    return CenterNetTriplets(config)


# --- key map ----------------------------------------------------------------------------------------------------------


def centernet_modules(config: CenterNetTripletsConfig) -> dict[str, str]:
    """Duankaiwen/CenterNet."""
    return authors_modules(config, ("tl", "br", "ct"))


register(
    Family(
        name="CenterNet (triplets)",
        task="detection",
        paper=PAPER,
        build=build_centernet_triplets,
        variants=VARIANTS,
        key_maps=(KeyMap("Duankaiwen/CenterNet", centernet_modules),),
    )
)
