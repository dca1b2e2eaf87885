"""The head of YOLOv4: of each level one map that holds boxes, objectness and classes. Losses and postprocessing are in
the family's file."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from cvops.models.detection import DenseOutput
from cvops.nn import ConvNormAct, Norm


class YOLOHead(nn.Module):
    """Maps of `in_channels`, one for each level, to a box code, the logit of an object and those of the classes for
    every anchor of a cell. Parts: `units` (3x3 to twice the channels), `outputs` (1x1; along the channels x, y, width,
    height, object and classes of the first anchor, then of the next).

    >>> out = YOLOHead((4,), 3, 20)([torch.zeros(1, 4, 8, 8)])
    >>> out.classes[0].shape, out.codes[0].shape, out.quality[0].shape
    (torch.Size([1, 60, 8, 8]), torch.Size([1, 12, 8, 8]), torch.Size([1, 3, 8, 8]))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        anchors: int,
        num_classes: int,
        *,
        act: str = "leaky_relu",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.units = nn.ModuleList(ConvNormAct(c, 2 * c, 3, norm=norm, act=act) for c in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(2 * c, anchors * (5 + num_classes), 1) for c in in_channels)

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with rows for each class; boxes and objects are in the same ones."""
        return tuple(f"outputs.{i}.{leaf}" for i in range(len(self.outputs)) for leaf in ("weight", "bias"))

    def maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What comes out of each level, [B, anchors * (5 + num_classes), H, W]."""
        return [output(unit(x)) for unit, output, x in zip(self.units, self.outputs, maps, strict=True)]

    def forward(self, maps: Sequence[Tensor]) -> DenseOutput:
        rows = [m.unflatten(1, (self.anchors, -1)) for m in self.maps(maps)]  # [B, A, 5 + C, H, W]
        return DenseOutput(
            classes=[m[:, :, 5:].flatten(1, 2) for m in rows],
            codes=[m[:, :, :4].flatten(1, 2) for m in rows],
            quality=[m[:, :, 4] for m in rows],
        )


def init_darknet(module: nn.Module) -> None:
    """Initialises convolutions as Darknet does: uniform with variance 2 / (3 fan_in), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            bound = math.sqrt(2 / (layer.in_channels * math.prod(layer.kernel_size)))
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
