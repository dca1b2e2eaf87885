"""The feature pyramid of separable convolutions that ends at stride 4, of CenterNet on mobile backbones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn import ConvNormAct, Norm, SeparableConvNormAct, SqueezeExcite

SQUEEZE = 4


class SeparablePyramid(nn.Module):
    """Maps of falling size, each half the one before -> [one map of 2 * widths[0] channels at the size of the first].

    From the last map on: a 3x3 and a 5x5 separable convolution are added and enlarged, next to what a bottleneck of a
    5x5 separable convolution makes of the finer map. The result is weighed by squeeze-and-excitation. (As in the code
    of github.com/610265158/mobilenetv3_centernet; there is no paper.)

    in_channels: of the maps, finest first. widths: of both halves of each map but the last.

    Parts: for each map but the last `lateral`, `narrow` (3x3), `wide` (5x5), finest first; `gate`.

    >>> maps = [torch.zeros(1, 8, 8, 6), torch.zeros(1, 16, 4, 3)]
    >>> [m.shape for m in SeparablePyramid((8, 16), (12,))(maps)]
    [torch.Size([1, 24, 8, 6])]
    """

    def __init__(self, in_channels: Sequence[int], widths: Sequence[int], norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        if len(in_channels) != len(widths) + 1:
            raise ValueError(f"widths must be one less than in_channels, got {list(widths)} and {list(in_channels)}")
        self.lateral, self.narrow, self.wide = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        coarser = [2 * width for width in widths[1:]] + [in_channels[-1]]
        for channels, width, below in zip(in_channels[:-1], widths, coarser, strict=True):
            reduced = max(1, channels // SQUEEZE)
            self.lateral.append(
                nn.Sequential(
                    ConvNormAct(channels, reduced, norm=norm),
                    SeparableConvNormAct(reduced, width, 5, norm=norm, act=None),
                )
            )
            self.narrow.append(SeparableConvNormAct(below, width, 3, norm=norm, act=None))
            self.wide.append(SeparableConvNormAct(below, width, 5, norm=norm, act=None))
        self.gate = SqueezeExcite(2 * widths[0], 2 * widths[0] // SQUEEZE)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        x = maps[-1]
        for lateral, narrow, wide, fine in reversed(
            list(zip(self.lateral, self.narrow, self.wide, maps[:-1], strict=True))
        ):
            x = torch.relu_(torch.cat([lateral(fine), double(narrow(x) + wide(x))], 1))
        return [self.gate(x)]


def double(x: Tensor) -> Tensor:
    """Twice the size by bilinear interpolation from the top left corner on, as TensorFlow 1 does: every second pixel is
    an old one, those between are means, and the last repeats. [N, C, H, W] -> [N, C, 2 H, 2 W].

    >>> double(torch.tensor([[[[0.0, 2.0]]]]))
    tensor([[[[0., 1., 2., 2.],
              [0., 1., 2., 2.]]]])
    """
    height, width = x.shape[-2:]
    framed = F.pad(x, (0, 1, 0, 1), mode="replicate")
    larger = F.interpolate(framed, (2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)
    return larger[:, :, :-1, :-1]
