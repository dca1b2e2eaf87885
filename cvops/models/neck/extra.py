"""SSD's neck: maps of a backbone, and ever smaller ones made of the last."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cvops.nn import ConvNormAct, Norm


@dataclass(frozen=True)
class ExtraLayer:
    """A 1x1 convolution to `reduced` channels and a 3x3 one to `channels`."""

    reduced: int
    channels: int
    stride: int = 2
    padding: int = 1


class ExtraLayers(nn.Module):
    """The maps it is given, then one for each of `layers`, each made of the one before (Liu et al. 2016,
    arXiv:1512.02325, section 2.1).

    Parts: `widen` (1x1 on the last map to `widen` channels, absent when None), `layers` (pairs). `separable`: the 3x3
    convolutions are depthwise separable (SSDLite: Sandler et al. 2018, arXiv:1801.04381, section 6.2). Convolutions
    have an activation, and a norm or, where `norm` is None, a bias.

    >>> neck = ExtraLayers(8, [ExtraLayer(4, 16)], norm=None)
    >>> [list(m.shape) for m in neck([torch.zeros(1, 8, 5, 5)])], neck.out_channels
    ([[1, 8, 5, 5], [1, 16, 3, 3]], (8, 16))
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[ExtraLayer],
        *,
        widen: int | None = None,
        separable: bool = False,
        norm: Norm | None = nn.BatchNorm2d,
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.widen = ConvNormAct(in_channels, widen, norm=norm, act=act) if widen is not None else nn.Identity()
        channels = widen if widen is not None else in_channels
        self.out_channels = (channels, *(layer.channels for layer in layers))
        self.layers = nn.ModuleList()
        for layer in layers:
            reduce = ConvNormAct(channels, layer.reduced, norm=norm, act=act)
            if separable:
                assert norm is not None
                grow = nn.Sequential(
                    ConvNormAct(
                        layer.reduced, layer.reduced, 3, layer.stride, groups=layer.reduced, norm=norm, act=act
                    ),
                    ConvNormAct(layer.reduced, layer.channels, norm=norm, act=act),
                )
            else:
                grow = nn.Sequential(
                    ConvNormAct(
                        layer.reduced, layer.channels, 3, layer.stride, padding=layer.padding, norm=norm, act=act
                    )
                )
            self.layers.append(nn.Sequential(reduce, *grow))
            channels = layer.channels

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        out = [*maps[:-1], self.widen(maps[-1])]
        for layer in self.layers:
            out.append(layer(out[-1]))
        return out
