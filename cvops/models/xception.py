"""Xception (Chollet 2017): the three flows of its figure 5, and the names timm and pretrainedmodels give to the layers.
The network is `backbone/xception.py`, the separable convolution `cvops.nn.SeparableConvNormAct`."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from cvops.models.backbone.xception import Flow, XceptionNet
from cvops.models.classifier import ImageClassifier
from cvops.models.config import INCEPTION_MEAN, INCEPTION_STD, Accuracy, ModelConfig, Paper, Preprocess
from cvops.models.head import ClassificationHead
from cvops.models.registry import Family, Variant, register
from cvops.models.weights import KeyMap
from cvops.nn import Padding, init_convnet

# --- variants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class XceptionConfig(ModelConfig):
    """`output_stride` 8 or 16 dilates instead of pooling. The Keras original runs with `padding="same"` and
    `norm_eps=1e-3`, and was trained with `dropout=0.5`. `drop_path` is the stochastic depth rate of the last block,
    `checkpointing` recomputes blocks in the backward pass to save memory."""

    output_stride: int = 32
    padding: Padding = "symmetric"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    checkpointing: bool = False


PAPER = Paper(
    title="Xception: Deep Learning with Depthwise Separable Convolutions",
    authors="Chollet",
    year=2017,
    url="https://arxiv.org/abs/1610.02357",
)

# Figure 5: entry flow, eight times the middle flow, exit flow; then two separable convolutions.
STEM_CHANNELS = (32, 64)
FLOWS = (
    Flow((128, 128), 2),
    Flow((256, 256), 2),
    Flow((728, 728), 2),
    *[Flow((728, 728, 728))] * 8,
    Flow((728, 1024), 2),
)
TAIL_CHANNELS = (1536, 2048)

VARIANTS = {
    "xception": Variant(
        XceptionConfig(),
        Preprocess(size=299, resize=333, mean=INCEPTION_MEAN, std=INCEPTION_STD),
        22_855_952,
        aliases=("legacy_xception",),
        macs=8_357_403_496,
        accuracy=Accuracy(79.0, "Keras", "https://keras.io/api/applications/"),
    ),
}

# --- assembly ---------------------------------------------------------------------------------------------------------


def build_xception(config: XceptionConfig) -> ImageClassifier:
    """An Xception with fresh weights: [N, in_chans, H, W] -> [N, num_classes]. Raises `ValueError` for an output stride
    other than 8, 16, 32.

    >>> model = build_xception(XceptionConfig(num_classes=10, output_stride=16))
    >>> model(torch.zeros(1, 3, 71, 71)).shape, model.feature_info.strides
    (torch.Size([1, 10]), (2, 4, 8, 16, 16))
    """
    norm = partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum)
    backbone = XceptionNet(
        config.in_chans,
        STEM_CHANNELS,
        FLOWS,
        TAIL_CHANNELS,
        norm=norm,
        padding=config.padding,
        output_stride=config.output_stride,
        drop_path=config.drop_path,
        checkpointing=config.checkpointing,
    )
    head = ClassificationHead(TAIL_CHANNELS[-1], config.num_classes, dropout=config.dropout)
    model = ImageClassifier(config, backbone, head)
    init_convnet(model)
    return model


# --- key map ----------------------------------------------------------------------------------------------------------


def modules(classifier: str) -> dict[str, str]:
    """The names of the PyTorch port that timm and pretrainedmodels share; the classifier is called differently."""
    paths = {classifier: "head.fc"}
    for i in (1, 2):
        paths |= {f"conv{i}": f"backbone.stem.{i - 1}.conv", f"bn{i}": f"backbone.stem.{i - 1}.norm"}
    units = []  # (their separable convolution, their norm, ours)
    for i, flow in enumerate(FLOWS):
        theirs, ours = f"block{i + 1}", f"backbone.blocks.{i}"
        for j in range(len(flow.widths)):
            # Theirs counts ReLU, convolution, norm; the first block has no ReLU in front.
            index = 3 * j + (i > 0)
            units.append((f"{theirs}.rep.{index}", f"{theirs}.rep.{index + 1}", f"{ours}.units.{j}"))
        if flow.stride > 1:
            paths |= {f"{theirs}.skip": f"{ours}.shortcut.conv", f"{theirs}.skipbn": f"{ours}.shortcut.norm"}
    units += [("conv3", "bn3", "backbone.tail.0"), ("conv4", "bn4", "backbone.tail.1")]
    for conv, norm, ours in units:
        paths[f"{conv}.conv1"] = f"{ours}.depthwise"
        paths[f"{conv}.pointwise"] = f"{ours}.pointwise.conv"
        paths[norm] = f"{ours}.pointwise.norm"
    return paths


def timm_modules(config: XceptionConfig) -> dict[str, str]:
    return modules("fc")


def pretrainedmodels_modules(config: XceptionConfig) -> dict[str, str]:
    return modules("last_linear")


def port_convention(config: XceptionConfig) -> dict[str, Any]:
    return {"padding": "symmetric", "norm_eps": 1e-5}


register(
    Family(
        name="Xception",
        task="classification",
        paper=PAPER,
        build=build_xception,
        variants=VARIANTS,
        key_maps=(
            KeyMap("timm", timm_modules, port_convention),
            KeyMap("pretrainedmodels", pretrainedmodels_modules, port_convention),
        ),
    )
)
