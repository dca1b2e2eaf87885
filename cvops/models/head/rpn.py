"""The head of a region proposal network."""

from collections.abc import Sequence

from torch import Tensor, nn

from cvops.models.detection import DenseOutput
from cvops.nn import ConvNormAct


class RPNHead(nn.Module):
    """Maps [B, in_channels, H, W] of each level to one logit and one box code an anchor (Ren et al. 2015,
    arXiv:1506.01497, section 3.1). Parts: `conv` (3x3, ReLU), `objectness`, `boxes` (1x1).

    background: `objectness` has a logit for the background too, those of all anchors before the others, as in the
        original code; what counts is the difference.

    >>> out = RPNHead(8, 3)([torch.zeros(1, 8, 4, 4)]); out.classes[0].shape, out.codes[0].shape
    (torch.Size([1, 3, 4, 4]), torch.Size([1, 12, 4, 4]))
    """

    def __init__(
        self, in_channels: int, anchors: int, channels: int | None = None, *, background: bool = False
    ) -> None:
        super().__init__()
        channels = in_channels if channels is None else channels
        self.background = background
        self.conv = ConvNormAct(in_channels, channels, 3, norm=None)
        self.objectness = nn.Conv2d(channels, (2 if background else 1) * anchors, 1)
        self.boxes = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv.conv, self.objectness, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> DenseOutput:
        shared = [self.conv(x) for x in maps]
        return DenseOutput([self._logits(x) for x in shared], [self.boxes(x) for x in shared])

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.objectness(x)
        if self.background:
            background, something = logits.chunk(2, 1)
            return something - background
        return logits
