"""The head of detectors that take an object for a point: a heat map of centres, and what the box around each is."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from cvops.nn import ConvNormAct

HEAT_BIAS = -2.19  # probability 0.1 of every class at the start (Law and Deng 2018's code)


class PointOutput(NamedTuple):
    """What a point head puts out, a map for each of S stacks, all of one stride; detections come from the last.

    heat: logits [B, C, H, W]. boxes: [B, 2, H, W], width and height in pixels of the map, or [B, 4, H, W], distances to
    the left, top, right and bottom in pixels of the image. offsets: [B, 2, H, W], (x, y) within the cell, or None.
    """

    heat: list[Tensor]
    boxes: list[Tensor]
    offsets: list[Tensor] | None


class PointHead(nn.Module):
    """CenterNet's head (Zhou et al. 2019, arXiv:1904.07850, appendix B): for each of the `stacks` maps of `in_channels`
    and each output a 3x3 convolution of `hidden` channels, a ReLU and a 1x1 convolution.

    Parts: `heat`, `boxes`, `offsets`, of each stack.

    >>> output = PointHead(16, num_classes=3, hidden=8)([torch.zeros(1, 16, 4, 6)])
    >>> [maps[0].shape[1] for maps in output]
    [3, 2, 2]
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int, stacks: int = 1) -> None:
        super().__init__()
        self.heat, self.boxes, self.offsets = (
            nn.ModuleList(
                nn.Sequential(ConvNormAct(in_channels, hidden, 3, norm=None), nn.Conv2d(hidden, count, 1))
                for _ in range(stacks)
            )
            for count in (num_classes, 2, 2)
        )
        for tower in (*self.boxes, *self.offsets):
            for layer in tower.modules():
                if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for tower in self.heat:
            nn.init.constant_(tower.get_submodule("1").bias, HEAT_BIAS)  # type: ignore[arg-type]
        self.class_keys = tuple(f"heat.{i}.1.{leaf}" for i in range(stacks) for leaf in ("weight", "bias"))

    def forward(self, maps: Sequence[Tensor]) -> PointOutput:
        heat, boxes, offsets = (
            [tower(x) for tower, x in zip(towers, maps, strict=True)]
            for towers in (self.heat, self.boxes, self.offsets)
        )
        return PointOutput(heat, boxes, offsets)
