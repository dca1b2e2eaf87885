"""SENet (Hu et al. 2018): squeeze-and-excitation in ResNet, ResNeXt, and SENet-154; and the names timm and
pretrainedmodels give to the layers. The network is `backbone/resnet.py`, the layer is `cvops.nn.SqueezeExcite`."""

from dataclasses import dataclass, replace
from typing import Any

from cvops.models.backbone.resnet import ResidualConfig, layer_modules
from cvops.models.config import Accuracy, Paper, Preprocess, by_timm
from cvops.models.registry import Family, Variant, register
from cvops.models.resnet import TABLE, build_residual
from cvops.models.weights import KeyMap
from cvops.nn import SEPlacement

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SENetConfig(ResidualConfig):
    """`se` is the place of squeeze-and-excitation: `standard`, or one that section 6.4 of the paper compares.

    The published networks are Caffe's: they pool without padding (`pool="ceil"`), and those without groups stride in
    the first 1x1 convolution. Their names begin with `legacy_`, as in timm; the others pool and stride as torchvision's
    ResNet does."""

    se: SEPlacement | None = "standard"


PAPER = Paper(
    title="Squeeze-and-Excitation Networks",
    authors="Hu et al.",
    year=2018,
    url="https://arxiv.org/abs/1709.01507",
)

SE_RESNET = {depth: SENetConfig(depths=TABLE[depth].depths) for depth in (50, 101, 152)}
SE_RESNEXT = {depth: SENetConfig(depths=TABLE[depth].depths, groups=32, group_width=4) for depth in (50, 101)}
# The appendix of the paper: the 64x4d ResNeXt-152 with half the channels before the 3x3 convolutions, three 3x3
# convolutions as the stem, 3x3 convolutions in the shortcuts that stride, dropout.
SENET_154 = SENetConfig(
    depths=TABLE[152].depths,
    groups=64,
    group_width=4,
    halve_reduction=True,
    stem="3x3x3",
    shortcut_kernel=3,
    dropout=0.2,
)

_CAFFE_INPUT = Preprocess(size=224, resize=256, interpolation="bilinear")
_TIMM_INPUT = Preprocess(size=224, resize=256)


def _caffe(config: SENetConfig) -> SENetConfig:
    return replace(config, pool="ceil", stride_first=config.groups == 1)


def _by_authors(error: float) -> Accuracy:
    """From the top-1 error, in per cent, of the weights that the authors released."""
    return Accuracy(round(100 - error, 2), "authors' Caffe weights", "https://github.com/hujie-frank/SENet")


VARIANTS = {
    "legacy_seresnet50": Variant(
        _caffe(SE_RESNET[50]),
        _CAFFE_INPUT,
        28_088_024,
        aliases=("se_resnet50",),
        macs=3_860_488_192,
        accuracy=_by_authors(22.37),
    ),
    "legacy_seresnet101": Variant(
        _caffe(SE_RESNET[101]),
        _CAFFE_INPUT,
        49_326_872,
        aliases=("se_resnet101",),
        macs=7_574_937_600,
        accuracy=_by_authors(21.75),
    ),
    "legacy_seresnet152": Variant(
        _caffe(SE_RESNET[152]),
        _CAFFE_INPUT,
        66_821_848,
        aliases=("se_resnet152",),
        macs=11_288_993_792,
        accuracy=_by_authors(21.34),
    ),
    "legacy_seresnext50_32x4d": Variant(
        _caffe(SE_RESNEXT[50]),
        _CAFFE_INPUT,
        27_559_896,
        aliases=("se_resnext50_32x4d",),
        macs=4_232_994_816,
        accuracy=_by_authors(20.97),
    ),
    "legacy_seresnext101_32x4d": Variant(
        _caffe(SE_RESNEXT[101]),
        _CAFFE_INPUT,
        48_955_416,
        aliases=("se_resnext101_32x4d",),
        macs=7_974_739_968,
        accuracy=_by_authors(19.81),
    ),
    "legacy_senet154": Variant(
        _caffe(SENET_154), _CAFFE_INPUT, 115_088_984, macs=20_688_363_520, accuracy=_by_authors(18.68)
    ),
    "seresnet50": Variant(
        SE_RESNET[50],
        Preprocess(size=224, resize=236),
        28_088_024,
        macs=4_091_699_200,
        accuracy=by_timm(81.284, "ra2_in1k", size=288),
    ),
    "seresnext50_32x4d": Variant(
        SE_RESNEXT[50],
        _TIMM_INPUT,
        27_559_896,
        macs=4_232_994_816,
        accuracy=by_timm(79.910, "gluon_in1k"),
    ),
    "seresnext101_32x4d": Variant(
        SE_RESNEXT[101],
        _TIMM_INPUT,
        48_955_416,
        macs=7_974_739_968,
        accuracy=by_timm(80.892, "gluon_in1k"),
    ),
    "senet154": Variant(
        SENET_154, _TIMM_INPUT, 115_088_984, macs=20_688_363_520, accuracy=by_timm(81.226, "gluon_in1k")
    ),
}

# --- key map ----------------------------------------------------------------------------------------------------------


def _stem_modules(convs: list[str], norms: list[str]) -> dict[str, str]:
    """Convolutions and norms of the stem, as others name them, in ours."""
    paths: dict[str, str] = {}
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        ours = "backbone.stem" if len(convs) == 1 else f"backbone.stem.{i}"
        paths |= {conv: f"{ours}.conv", norm: f"{ours}.norm"}
    return paths


def timm_modules(config: SENetConfig) -> dict[str, str]:
    """timm's ResNet with `se` in its blocks; the layers of a deep stem are numbered, activations included."""
    if config.stem == "7x7":
        paths = _stem_modules(["conv1"], ["bn1"])
    else:
        paths = _stem_modules(["conv1.0", "conv1.3", "conv1.6"], ["conv1.1", "conv1.4", "bn1"])
    return paths | layer_modules(config) | {"fc": "head.fc"}


def caffe_modules(config: SENetConfig) -> dict[str, str]:
    """The port of the authors' Caffe networks in pretrainedmodels, which timm keeps as its `legacy_` models."""
    numbers = [i + 1 for i, _ in enumerate(config.stem_channels)]
    paths = _stem_modules([f"layer0.conv{i}" for i in numbers], [f"layer0.bn{i}" for i in numbers])
    return paths | layer_modules(config, "se_module") | {"last_linear": "head.fc"}


def timm_convention(config: SENetConfig) -> dict[str, Any] | str:
    if config.ic_dropout is not None:
        return "nobody publishes weights of IC networks"
    if config.pool == "ceil":
        return "they pool with padding, take the name without legacy_"
    return {"stride_first": False}


def caffe_convention(config: SENetConfig) -> dict[str, Any] | str:
    if config.ic_dropout is not None:
        return "nobody publishes weights of IC networks"
    if config.pool != "ceil":
        return "they pool as Caffe does, take the name with legacy_"
    return {"stride_first": config.groups == 1}


register(
    Family(
        name="SENet",
        task="classification",
        paper=PAPER,
        build=build_residual,
        variants=VARIANTS,
        key_maps=(
            KeyMap("timm", timm_modules, timm_convention),
            KeyMap("timm", caffe_modules, caffe_convention),
            KeyMap("pretrainedmodels", caffe_modules, caffe_convention),
        ),
    )
)
