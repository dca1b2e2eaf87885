"""The head of RetinaNet and FCOS: two towers of convolutions that every level of the pyramid runs through, and what
they put out. Their losses and postprocessing are in `dense_detector.py`."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cvops.models.detection import DenseOutput
from cvops.nn import ConvNormAct, Norm

PRIOR = 0.01  # probability of every class at the start of training (Lin et al. 2017, section 4.1)


class Scale(nn.Module):
    """A learned factor, 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DenseHead(nn.Module):
    """Maps [B, in_channels, H, W] of each level to class logits, box codes and, by choice, centerness.

    Parts: `class_tower`, `box_tower` (`convs` units of 3x3 convolution, `norm`, ReLU), `classes`, `boxes`,
    `centerness` (3x3 convolutions; the last is on the box tower, None if `centerness` is False), `scales` (a learned
    factor of the box codes for each of `levels`; 0 for none).

    code: what is made of the box codes: `plain`, `relu` (torchvision's FCOS) or `exp` (the FCOS paper's).

    >>> out = DenseHead(8, 3, 20, convs=1)([torch.zeros(1, 8, 4, 4)])
    >>> out.classes[0].shape, out.codes[0].shape
    (torch.Size([1, 60, 4, 4]), torch.Size([1, 12, 4, 4]))
    """

    def __init__(
        self,
        in_channels: int,
        anchors: int,
        num_classes: int,
        *,
        convs: int = 4,
        norm: Norm | None = None,
        conv_bias: bool | None = None,
        centerness: bool = False,
        levels: int = 0,
        code: Literal["plain", "relu", "exp"] = "plain",
    ) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            units = (ConvNormAct(in_channels, in_channels, 3, norm=norm, bias=conv_bias) for _ in range(convs))
            return nn.Sequential(*units)

        self.class_tower, self.box_tower = tower(), tower()
        self.classes = nn.Conv2d(in_channels, anchors * num_classes, 3, padding=1)
        self.boxes = nn.Conv2d(in_channels, anchors * 4, 3, padding=1)
        self.centerness = nn.Conv2d(in_channels, anchors, 3, padding=1) if centerness else None
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        if code not in ("plain", "relu", "exp"):
            raise ValueError(f"code must be 'plain', 'relu' or 'exp', got {code!r}")
        self.code = code
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classes.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with rows for each class."""
        return ("classes.weight", "classes.bias")

    def forward(self, maps: Sequence[Tensor]) -> DenseOutput:
        classes, codes, quality = [], [], []
        for i, x in enumerate(maps):
            classes.append(self.classes(self.class_tower(x)))
            y = self.box_tower(x)
            code = self.boxes(y)
            if self.scales:
                code = self.scales[i](code)
            if self.code != "plain":
                code = code.relu() if self.code == "relu" else code.exp()
            codes.append(code)
            if self.centerness is not None:
                quality.append(self.centerness(y))
        return DenseOutput(classes, codes, quality if self.centerness is not None else None)


def mmdet_towers(convs: int, levels: int) -> dict[str, str]:
    """mmdetection's names of the towers and of the scales of levels."""
    paths = {f"bbox_head.scales.{i}": f"head.scales.{i}" for i in range(levels)}
    for theirs, ours in (("cls_convs", "class_tower"), ("reg_convs", "box_tower")):
        for i in range(convs):
            paths[f"bbox_head.{theirs}.{i}.conv"] = f"head.{ours}.{i}.conv"
            paths[f"bbox_head.{theirs}.{i}.gn"] = f"head.{ours}.{i}.norm"
    return paths
