"""SSD's head: on each map one convolution for the classes and one for the boxes."""

from collections.abc import Sequence

from torch import Tensor, nn

from cvops.models.detection import DenseOutput
from cvops.nn import ConvNormAct, Norm


class SSDHead(nn.Module):
    """Maps [B, in_channels[i], H, W], one for each level, to logits of num_classes + 1 classes with the background, and
    box codes, `anchors[i]` of a cell (Liu et al. 2016, arXiv:1512.02325, section 2.1). Parts: `classes`, `boxes`, a
    layer
    for each level: 3x3 convolutions, or with a `norm` SSDLite's depthwise 3x3, norm, ReLU6, 1x1 (Sandler et al. 2018,
    arXiv:1801.04381, section 6.2).

    >>> out = SSDHead((8, 16), (4, 6), 20)([torch.zeros(1, 8, 3, 3), torch.zeros(1, 16, 2, 2)])
    >>> [list(m.shape) for m in out.classes + out.codes]
    [[1, 84, 3, 3], [1, 126, 2, 2], [1, 16, 3, 3], [1, 24, 2, 2]]
    """

    def __init__(
        self, in_channels: Sequence[int], anchors: Sequence[int], num_classes: int, *, norm: Norm | None = None
    ) -> None:
        super().__init__()

        def layer(channels: int, outputs: int) -> nn.Module:
            if norm is None:
                return nn.Conv2d(channels, outputs, 3, padding=1)
            depthwise = ConvNormAct(channels, channels, 3, groups=channels, norm=norm, act="relu6")
            return nn.Sequential(depthwise, nn.Conv2d(channels, outputs, 1))

        levels = list(zip(in_channels, anchors, strict=True))
        self.classes = nn.ModuleList(layer(c, n * (num_classes + 1)) for c, n in levels)
        self.boxes = nn.ModuleList(layer(c, n * 4) for c, n in levels)

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with rows for each class."""
        lite = isinstance(self.classes[0], nn.Sequential)
        return tuple(
            f"classes.{i}.{'1.' if lite else ''}{leaf}" for i in range(len(self.classes)) for leaf in ("weight", "bias")
        )

    def forward(self, maps: Sequence[Tensor]) -> DenseOutput:
        return DenseOutput(
            [layer(x) for layer, x in zip(self.classes, maps, strict=True)],
            [layer(x) for layer, x in zip(self.boxes, maps, strict=True)],
        )
