"""NASNet-A (Zoph et al. 2018): its two cells, the Large and the Mobile network, and the names timm and pretrainedmodels
give to the layers. The network of cells is `backbone/cell_net.py`, the cell `cvops.nn.SearchedCell`."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from cvops.models.backbone.cell_net import CellNet, cells_of
from cvops.models.classifier import ImageClassifier
from cvops.models.config import INCEPTION_MEAN, INCEPTION_STD, Accuracy, ModelConfig, Paper, Preprocess
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap
from cvops.nn import CellSpec, Padding, init_convnet

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NASNetConfig(ModelConfig):
    """ "N @ P": `repeats` is N, the normal cells of a stage, `penultimate` is P, the channels of the last map.

    `skip_reduction`: the cell after a reduction cell looks past it for its previous input (Large only).
    `counts_padding`: means over windows that overhang divide by the whole window, as timm computes them; TensorFlow and
    pretrainedmodels count what is inside the image. `drop_path` is ScheduledDropPath's final rate in the last cell;
    tell the progress of training with `cvops.nn.set_drop_progress`. Published: 0.3 and `dropout=0.5` for Large, no
    `drop_path` and `dropout=0.5` for Mobile. `checkpointing` recomputes cells in the backward pass to save memory."""

    penultimate: int = 4032
    repeats: int = 6
    stem_channels: int = 96
    skip_reduction: bool = True
    padding: Padding = "same"
    counts_padding: bool = False
    norm_eps: float = 1e-3
    norm_momentum: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penultimate % 96:
            raise ValueError(f"penultimate must be a multiple of 96, got {self.penultimate}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be 1 or more, got {self.repeats}")


PAPER = Paper(
    title="Learning Transferable Architectures for Scalable Image Recognition",
    authors="Zoph et al.",
    year=2018,
    url="https://arxiv.org/abs/1707.07012",
)

# Figure 4. State 0 is h_i, state 1 is h_(i-1).
NORMAL = CellSpec(
    pairs=(
        ((0, "sep_5x5"), (1, "sep_3x3")),
        ((1, "sep_5x5"), (1, "sep_3x3")),
        ((0, "mean_3x3"), (1, "none")),
        ((1, "mean_3x3"), (1, "mean_3x3")),
        ((0, "sep_3x3"), (0, "none")),
    ),
    concat=(1, 2, 3, 4, 5, 6),
)
REDUCTION = CellSpec(
    pairs=(
        ((0, "sep_5x5"), (1, "sep_7x7")),
        ((0, "max_3x3"), (1, "sep_7x7")),
        ((0, "mean_3x3"), (1, "sep_5x5")),
        ((3, "none"), (2, "mean_3x3")),
        ((2, "sep_3x3"), (0, "max_3x3")),
    ),
    concat=(3, 4, 5, 6),
)

_SLIM = "https://github.com/tensorflow/models/blob/master/research/slim/README.md"

VARIANTS = {
    "nasnetalarge": Variant(
        NASNetConfig(),
        Preprocess(size=331, resize=364, mean=INCEPTION_MEAN, std=INCEPTION_STD),
        88_753_150,
        aliases=("nasnet_large",),
        macs=23_783_414_658,
        accuracy=Accuracy(82.7, "TF-Slim", _SLIM),
    ),
    "nasnetamobile": Variant(
        NASNetConfig(penultimate=1056, repeats=4, stem_channels=32, skip_reduction=False),
        Preprocess(size=224, resize=256, mean=INCEPTION_MEAN, std=INCEPTION_STD),
        5_289_978,
        aliases=("nasnet_mobile",),
        macs=563_638_816,
        accuracy=Accuracy(74.0, "TF-Slim", _SLIM),
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_nasnet(config: NASNetConfig) -> ImageClassifier:
    """A NASNet-A with fresh weights: [N, in_chans, H, W] -> [N, num_classes].

    >>> model = build_nasnet(NASNetConfig(penultimate=96, repeats=1, stem_channels=8, num_classes=10))
    >>> model(torch.zeros(1, 3, 64, 64)).shape, model.feature_info.channels
    (torch.Size([1, 10]), (8, 4, 24, 48, 96))
    """
    # The last stage is four times as wide as the first, and a normal cell returns six states.
    filters = config.penultimate // 24
    backbone = CellNet(
        config.in_chans,
        config.stem_channels,
        (filters // 4, filters // 2),
        filters,
        config.repeats,
        NORMAL,
        REDUCTION,
        skip_reduction=config.skip_reduction,
        padding=config.padding,
        norm=partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum),
        counts_padding=config.counts_padding,
        drop_path=config.drop_path,
        checkpointing=config.checkpointing,
    )
    head = ClassificationHead(config.penultimate, config.num_classes, dropout=config.dropout)
    model = ImageClassifier(config, backbone, head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def port_modules(config: NASNetConfig) -> dict[str, str]:
    """The names of the PyTorch port that timm and pretrainedmodels share. It numbers the normal cells of the stages
    from 0, 6 and 12, whatever `repeats` is."""
    paths = {"conv0.conv": "backbone.stem.conv", "conv0.bn": "backbone.stem.norm", "last_linear": "head.fc"}
    for stage, j, ours in cells_of(config.repeats):
        if stage is None:
            theirs = f"cell_stem_{ours[-1]}"
        else:
            theirs = f"reduction_cell_{stage - 1}" if j is None else f"cell_{6 * stage + j}"
        spec = REDUCTION if j is None else NORMAL
        for their_unit, our_unit in (("conv_1x1", "current"), ("conv_prev_1x1", "previous")):
            paths[f"{theirs}.{their_unit}.conv"] = f"{ours}.{our_unit}.conv"
            paths[f"{theirs}.{their_unit}.bn"] = f"{ours}.{our_unit}.norm"
        paths[f"{theirs}.path_1.conv"] = f"{ours}.previous.even"
        paths[f"{theirs}.path_2.conv"] = f"{ours}.previous.odd"
        paths[f"{theirs}.final_path_bn"] = f"{ours}.previous.norm"
        for i, pair in enumerate(spec.pairs):
            for side, (_, name) in zip(("left", "right"), pair, strict=True):
                if name.startswith("sep"):
                    for k in range(2):
                        operation, unit = f"{theirs}.comb_iter_{i}_{side}", f"{ours}.{side}.{i}.{k}"
                        paths[f"{operation}.separable_{k + 1}.depthwise_conv2d"] = f"{unit}.depthwise"
                        paths[f"{operation}.separable_{k + 1}.pointwise_conv2d"] = f"{unit}.pointwise.conv"
                        paths[f"{operation}.bn_sep_{k + 1}"] = f"{unit}.pointwise.norm"
    return paths


def timm_convention(config: NASNetConfig) -> dict[str, Any] | str:
    if not config.skip_reduction:
        return "timm has NASNet-A Large only"
    return {"padding": "same", "norm_eps": 1e-3, "counts_padding": True}


def pretrainedmodels_convention(config: NASNetConfig) -> dict[str, Any]:
    return {"padding": "same", "norm_eps": 1e-3, "counts_padding": False}


register(
    Family(
        name="NASNet",
        task="classification",
        paper=PAPER,
        build=build_nasnet,
        variants=VARIANTS,
        key_maps=(
            KeyMap("timm", port_modules, timm_convention),
            KeyMap("pretrainedmodels", port_modules, pretrainedmodels_convention),
        ),
    )
)
