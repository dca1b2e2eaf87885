"""The head of EfficientDet: towers of separable convolutions that every level of the pyramid runs through, with norms
of its own. Losses and postprocessing are in `dense_detector.py`."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from cvops.models.detection import DenseOutput
from cvops.models.head.dense import PRIOR
from cvops.nn import Norm, SeparableConvNormAct, make_activation
from cvops.ops.depthwise_conv2d import DepthwiseConv2d


class SeparableTower(nn.Module):
    """A map [B, channels, H, W] of one level to [B, outputs, H, W]. Parts: `convs` and `output` (3x3, separable, shared
    by all levels), `norms` (for each of `convs` one of each level), `act`."""

    def __init__(
        self, channels: int, outputs: int, *, convs: int, levels: int, norm: Norm, act: str, conv_bias: bool
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            SeparableConvNormAct(channels, channels, 3, norm=None, act=None, bias=conv_bias) for _ in range(convs)
        )
        self.norms = nn.ModuleList(nn.ModuleList(norm(channels) for _ in range(levels)) for _ in range(convs))
        self.act = make_activation(act)
        self.output = SeparableConvNormAct(channels, outputs, 3, norm=None, act=None)

    def forward(self, x: Tensor, level: int) -> Tensor:
        for conv, norms in zip(self.convs, self.norms, strict=True):
            x = self.act(norms[level](conv(x)))  # type: ignore[index]
        y: Tensor = self.output(x)
        return y


class SeparableHead(nn.Module):
    """Maps [B, in_channels, H, W] of `levels` levels to class logits and box codes, as `DenseHead`, by separable
    convolutions (Tan et al. 2020, arXiv:1911.09070, section 4). Parts: `classes` and `boxes`, a tower each.

    conv_bias: convolutions have a bias although a norm follows, as the published weights do.

    >>> out = SeparableHead(8, 3, 20, levels=2)([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)])
    >>> out.classes[0].shape, out.codes[1].shape
    (torch.Size([1, 60, 4, 4]), torch.Size([1, 12, 2, 2]))
    """

    class_keys = ("classes.output.pointwise.conv.weight", "classes.output.pointwise.conv.bias")

    def __init__(
        self,
        in_channels: int,
        anchors: int,
        num_classes: int,
        *,
        convs: int = 3,
        levels: int = 5,
        norm: Norm = nn.BatchNorm2d,
        act: str = "silu",
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.classes, self.boxes = (
            SeparableTower(
                in_channels, anchors * values, convs=convs, levels=levels, norm=norm, act=act, conv_bias=conv_bias
            )
            for values in (num_classes, 4)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | DepthwiseConv2d):
                # Variance 1 / fan_in in both halves, as the original starts its heads.
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classes.output.pointwise.conv.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> DenseOutput:
        if len(maps) != self.levels:
            raise ValueError(f"maps must be one for each of the {self.levels} levels, got {len(maps)}")
        return DenseOutput(
            [self.classes(x, i) for i, x in enumerate(maps)], [self.boxes(x, i) for i, x in enumerate(maps)]
        )
