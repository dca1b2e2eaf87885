"""Inception-ResNet-v2 (Szegedy et al. 2017), as TensorFlow published it: its table, and the names timm and
pretrainedmodels give to the layers. The network is `backbone/inception_resnet.py`."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from cvops.models.backbone.inception_resnet import InceptionResNet, InceptionStage
from cvops.models.classifier import ImageClassifier
from cvops.models.config import INCEPTION_MEAN, INCEPTION_STD, Accuracy, ModelConfig, Paper, Preprocess
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap
from cvops.nn import init_convnet
from cvops.nn.inception import Branch, Conv, Pool

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InceptionResNetConfig(ModelConfig):
    """Published with `dropout=0.2`. `drop_path` is the stochastic depth rate of the last residual, `checkpointing`
    recomputes blocks in the backward pass to save memory."""

    norm_eps: float = 1e-3
    norm_momentum: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    checkpointing: bool = False


PAPER = Paper(
    title="Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
    authors="Szegedy et al.",
    year=2017,
    url="https://arxiv.org/abs/1602.07261",
)

# Figures 16 to 19 with the widths of the TensorFlow code, which differ from the figures in places.
TABLE = (
    InceptionStage(
        begin=(
            (Conv(96),),
            (Conv(48), Conv(64, 5)),
            (Conv(64), Conv(96, 3), Conv(96, 3)),
            (Pool("mean"), Conv(64)),
        ),
        residual=((Conv(32),), (Conv(32), Conv(32, 3)), (Conv(32), Conv(48, 3), Conv(64, 3))),
        repeats=10,
        scale=0.17,
    ),
    InceptionStage(
        begin=((Conv(384, 3, 2),), (Conv(256), Conv(256, 3), Conv(384, 3, 2)), (Pool("max", 2),)),
        residual=((Conv(192),), (Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1)))),
        repeats=20,
        scale=0.10,
    ),
    InceptionStage(
        begin=(
            (Conv(256), Conv(384, 3, 2)),
            (Conv(256), Conv(288, 3, 2)),
            (Conv(256), Conv(288, 3), Conv(320, 3, 2)),
            (Pool("max", 2),),
        ),
        residual=((Conv(192),), (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1)))),
        repeats=9,
        scale=0.20,
        plain_end=True,
    ),
)
TAIL_CHANNELS = 1536

VARIANTS = {
    "inception_resnet_v2": Variant(
        InceptionResNetConfig(),
        Preprocess(size=299, resize=333, mean=INCEPTION_MEAN, std=INCEPTION_STD),
        55_843_464,
        aliases=("inceptionresnetv2",),
        macs=13_155_794_016,
        accuracy=Accuracy(
            80.4,
            "TF-Slim",
            "https://github.com/tensorflow/models/blob/master/research/slim/README.md",
        ),
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_inception_resnet(config: InceptionResNetConfig) -> ImageClassifier:
    """An Inception-ResNet-v2 with fresh weights: [N, in_chans, H, W] -> [N, num_classes], H and W at least 75.

    >>> build_inception_resnet(InceptionResNetConfig(num_classes=10))(torch.zeros(2, 3, 75, 75)).shape
    torch.Size([2, 10])
    """
    norm = partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum)
    backbone = InceptionResNet(
        config.in_chans,
        TABLE,
        TAIL_CHANNELS,
        norm=norm,
        drop_path=config.drop_path,
        checkpointing=config.checkpointing,
    )
    head = ClassificationHead(TAIL_CHANNELS, config.num_classes, dropout=config.dropout)
    model = ImageClassifier(config, backbone, head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def modules(classifier: str) -> dict[str, str]:
    """The names of the PyTorch port that timm and pretrainedmodels share; the classifier is called differently."""
    paths = {classifier: "head.fc"}
    units = [(f"conv2d_{name}", f"backbone.stem.0.{i}") for i, name in enumerate(("1a", "2a", "2b"))]
    units += [("conv2d_3b", "backbone.stem.1.1"), ("conv2d_4a", "backbone.stem.1.2"), ("conv2d_7b", "backbone.tail")]

    def branches(theirs: str, ours: str, table: tuple[Branch, ...]) -> None:
        for i, steps in enumerate(table):
            for j, step in enumerate(steps):
                if isinstance(step, Conv):
                    units.append((f"{theirs}.branch{i}{f'.{j}' if len(steps) > 1 else ''}", f"{ours}.{i}.{j}"))

    starts, repeats = ("mixed_5b", "mixed_6a", "mixed_7a"), ("repeat", "repeat_1", "repeat_2")
    for i, (row, start, repeat) in enumerate(zip(TABLE, starts, repeats, strict=True)):
        branches(start, f"backbone.stages.{i}.0", row.begin)
        blocks = [f"{repeat}.{j}" for j in range(row.repeats)] + ["block8"] * row.plain_end
        for j, theirs in enumerate(blocks, start=1):
            branches(theirs, f"backbone.stages.{i}.{j}.branches", row.residual)
            paths[f"{theirs}.conv2d"] = f"backbone.stages.{i}.{j}.project"
    for theirs, ours in units:
        paths |= {f"{theirs}.conv": f"{ours}.conv", f"{theirs}.bn": f"{ours}.norm"}
    return paths


def timm_modules(config: InceptionResNetConfig) -> dict[str, str]:
    return modules("classif")


def pretrainedmodels_modules(config: InceptionResNetConfig) -> dict[str, str]:
    return modules("last_linear")


def port_convention(config: InceptionResNetConfig) -> dict[str, Any]:
    return {"norm_eps": 1e-3}


register(
    Family(
        name="Inception-ResNet",
        task="classification",
        paper=PAPER,
        build=build_inception_resnet,
        variants=VARIANTS,
        key_maps=(
            KeyMap("timm", timm_modules, port_convention),
            KeyMap("pretrainedmodels", pretrainedmodels_modules, port_convention),
        ),
    )
)
