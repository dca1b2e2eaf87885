"""AmoebaNet-A and AmoebaNet-D (Real et al. 2019): their cells, the published sizes, and the names torchgpipe gives to
the layers of D. The network of cells is `backbone/cell_net.py`, the cell `cvops.nn.SearchedCell`."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

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
class AmoebaNetConfig(ModelConfig):
    """`repeats` normal cells in each of three stages (N in the paper, a third of L in GPipe's), `filters` the width of
    the cells of the first (F; D).

    `torchgpipe` builds D as torchgpipe does: a stem of `filters / 4` channels with padding and a ReLU before it, stem
    cells twice as wide, and the mean where TensorFlow takes the maximum of 3x3. `drop_path` is ScheduledDropPath's
    final rate in the last cell; tell the progress of training with `cvops.nn.set_drop_progress`. Published: 0.3 and
    `dropout=0.5`. `checkpointing` recomputes cells in the backward pass to save memory."""

    cell: Literal["A", "D"] = "A"
    repeats: int = 6
    filters: int = 190
    torchgpipe: bool = False
    padding: Padding = "same"
    norm_eps: float = 1e-3
    norm_momentum: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        if self.repeats < 1 or self.filters < 8 or self.filters % 2:
            raise ValueError(
                f"repeats must be 1 or more, filters even and 8 or more, got {self.repeats} and {self.filters}"
            )


PAPER = Paper(
    title="Regularized Evolution for Image Classifier Architecture Search",
    authors="Real et al.",
    year=2019,
    url="https://arxiv.org/abs/1802.01548",
)

# The cells of the reference code, which concatenates other states of D's normal cell than the paper's figure. State 0
# is the output of the cell before, state 1 of the one before that. (normal, reduction)
CELLS = {
    "A": (
        CellSpec(
            pairs=(
                ((0, "mean_3x3"), (0, "max_3x3")),
                ((1, "sep_3x3"), (1, "none")),
                ((0, "none"), (1, "mean_3x3")),
                ((0, "sep_3x3"), (2, "sep_5x5")),
                ((5, "mean_3x3"), (0, "sep_3x3")),
            ),
            concat=(1, 3, 4, 6),
        ),
        CellSpec(
            pairs=(
                ((1, "sep_3x3"), (0, "mean_3x3")),
                ((0, "max_3x3"), (2, "sep_7x7")),
                ((1, "max_3x3"), (0, "max_3x3")),
                ((4, "sep_3x3"), (0, "1x7_7x1")),
                ((1, "mean_3x3"), (0, "sep_7x7")),
            ),
            concat=(2, 3, 4, 5, 6),
        ),
    ),
    "D": (
        CellSpec(
            pairs=(
                ((1, "1x1"), (1, "max_3x3")),
                ((1, "none"), (0, "1x7_7x1")),
                ((0, "1x1"), (0, "1x7_7x1")),
                ((2, "max_3x3"), (2, "none")),
                ((1, "mean_3x3"), (5, "1x1")),
            ),
            concat=(0, 3, 4, 6),
        ),
        CellSpec(
            pairs=(
                ((0, "max_2x2"), (0, "max_3x3")),
                ((2, "none"), (1, "3x3")),
                ((2, "1x7_7x1"), (2, "max_3x3")),
                ((3, "none"), (1, "max_2x2")),
                ((2, "mean_3x3"), (3, "1x1")),
            ),
            concat=(4, 5, 6),
        ),
    ),
}
STEM_CHANNELS = 32


def _inception_input(size: int) -> Preprocess:
    return Preprocess(size=size, resize=round(size / 0.875), mean=INCEPTION_MEAN, std=INCEPTION_STD)


_GPIPE = AmoebaNetConfig(cell="D", filters=208, torchgpipe=True, padding="symmetric", norm_eps=1e-5)
VARIANTS = {
    "amoebanet_a_4_50": Variant(
        AmoebaNetConfig(repeats=4, filters=50), _inception_input(224), 5_086_898, macs=554_586_852
    ),
    "amoebanet_a_6_190": Variant(
        AmoebaNetConfig(),
        _inception_input(331),
        86_718_765,
        macs=23_133_443_059,
        accuracy=Accuracy(82.8, "paper, table 2", PAPER.url),
    ),
    # Its published multiply-adds are those of 299 pixels.
    "amoebanet_a_6_448": Variant(
        AmoebaNetConfig(filters=448),
        _inception_input(299),
        468_151_184,
        macs=103_887_693_968,
        accuracy=Accuracy(83.9, "paper, table 2", PAPER.url),
    ),
    "amoebanet_d_18_208": Variant(_GPIPE, Preprocess(size=224, resize=256), 81_505_540, macs=10_018_557_952),
    "amoebanet_d_18_256": Variant(
        replace(_GPIPE, filters=256), Preprocess(size=224, resize=256), 122_470_120, macs=15_170_093_056
    ),
    # As the reference code builds it.
    "tf_amoebanet_d_18_256": Variant(
        AmoebaNetConfig(cell="D", filters=256), _inception_input(299), 121_911_016, macs=26_964_901_216
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_amoebanet(config: AmoebaNetConfig) -> ImageClassifier:
    """An AmoebaNet with fresh weights: [N, in_chans, H, W] -> [N, num_classes].

    >>> model = build_amoebanet(AmoebaNetConfig(cell="D", repeats=1, filters=16, num_classes=10))
    >>> model(torch.zeros(1, 3, 64, 64)).shape, model.feature_info.channels
    (torch.Size([1, 10]), (32, 12, 64, 128, 256))
    """
    normal, reduction = CELLS[config.cell]
    filters = config.filters
    backbone = CellNet(
        config.in_chans,
        filters // 4 if config.torchgpipe else STEM_CHANNELS,
        (filters // 2, filters) if config.torchgpipe else (filters // 4, filters // 2),
        filters,
        config.repeats,
        normal,
        reduction,
        stem_padding=int(config.torchgpipe),
        stem_reads_raw=not config.torchgpipe,
        rectify_image=config.torchgpipe,
        rectify_last=not config.torchgpipe,
        padding=config.padding,
        norm=partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum),
        mean_for_max=config.torchgpipe,
        drop_path=config.drop_path,
        checkpointing=config.checkpointing,
    )
    head = ClassificationHead(backbone.feature_info.channels[-1], config.num_classes, dropout=config.dropout)
    model = ImageClassifier(config, backbone, head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def torchgpipe_modules(config: AmoebaNetConfig) -> dict[str, str]:
    """torchgpipe's benchmark model: a sequence of cells, their ten operations in one list, layers numbered with their
    ReLUs."""
    paths = {"stem1.conv": "backbone.stem.conv", "stem1.bn": "backbone.stem.norm", "classify.fc": "head.fc"}
    normal, reduction = CELLS[config.cell]
    for stage, j, ours in cells_of(config.repeats):
        if stage is None:
            theirs = f"stem{int(ours[-1]) + 2}"
        else:
            theirs = f"cell{2 * stage}_reduction" if j is None else f"cell{2 * stage + 1}_normal{j + 1}"
        spec = reduction if j is None else normal
        for their_unit, our_unit in (("reduce1", "current"), ("reduce2", "previous")):
            paths[f"{theirs}.{their_unit}.1"] = f"{ours}.{our_unit}.conv"
            paths[f"{theirs}.{their_unit}.2"] = f"{ours}.{our_unit}.norm"
        paths[f"{theirs}.reduce2.conv1"] = f"{ours}.previous.even"
        paths[f"{theirs}.reduce2.conv2"] = f"{ours}.previous.odd"
        paths[f"{theirs}.reduce2.bn"] = f"{ours}.previous.norm"
        for i, pair in enumerate(spec.pairs):
            for k, (side, (_, name)) in enumerate(zip(("left", "right"), pair, strict=True)):
                operation, unit = f"{theirs}.operations.{2 * i + k}.module", f"{ours}.{side}.{i}"
                # Convolutions in the operation; one alone is no sequence here.
                count = {"1x1": 1, "3x3": 3, "1x7_7x1": 4}.get(name, 0)
                for m in range(count):
                    layer = unit if count == 1 else f"{unit}.{m}"
                    paths[f"{operation}.{3 * m + 1}"] = f"{layer}.conv"
                    paths[f"{operation}.{3 * m + 2}"] = f"{layer}.norm"
    return paths


def torchgpipe_convention(config: AmoebaNetConfig) -> dict[str, Any] | str:
    if config.cell != "D":
        return "torchgpipe has AmoebaNet-D only"
    if not config.torchgpipe:
        return "torchgpipe's network is another one, take the name without tf_"
    return {"padding": "symmetric", "norm_eps": 1e-5}


register(
    Family(
        name="AmoebaNet",
        task="classification",
        paper=PAPER,
        build=build_amoebanet,
        variants=VARIANTS,
        key_maps=(KeyMap("torchgpipe", torchgpipe_modules, torchgpipe_convention),),
    )
)
