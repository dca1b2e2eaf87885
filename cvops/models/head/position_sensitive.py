"""The head of R-FCN: score maps for the whole image, and the votes of a region."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.head.box import RegionOutput
from cvops.nn import ConvNormAct
from cvops.ops import ps_roi_pool


class PositionSensitiveHead(nn.Module):
    """The votes of regions on position-sensitive score maps (Dai et al. 2016, arXiv:1605.06409, section 2).

    `score_maps` makes the maps once for the image, [B, in_channels, H, W] -> class maps [B, (num_classes + 1) * size^2,
    H, W], the background first, and box maps [B, 4 * size^2, H, W] for all classes. The head itself takes these and
    regions [R, 5], rows of (image, x1, y1, x2, y2) in pixels of the batch, `1 / scale` of which are one of the maps:
    each of a region's size x size cells looks at maps of its own, and the mean of the cells counts.

    Parts: `reduce` (1x1, ReLU), `classes`, `boxes` (1x1).

    >>> head = PositionSensitiveHead(16, 20, scale=1 / 16, channels=8)
    >>> maps = head.score_maps(torch.zeros(1, 16, 8, 8))
    >>> out = head(maps, torch.tensor([[0.0, 0, 0, 64, 64]])); out.classes.shape, out.codes.shape
    (torch.Size([1, 21]), torch.Size([1, 1, 4]))
    """

    background = "first"

    def __init__(
        self, in_channels: int, num_classes: int, *, scale: float, channels: int = 1024, size: int = 7
    ) -> None:
        super().__init__()
        self.scale, self.size = scale, size
        self.reduce = ConvNormAct(in_channels, channels, norm=None, bias=False)
        self.classes = nn.Conv2d(channels, (num_classes + 1) * size**2, 1, bias=False)
        self.boxes = nn.Conv2d(channels, 4 * size**2, 1, bias=False)
        for layer in (self.reduce.conv, self.classes, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with rows for each class."""
        return ("classes.weight",)

    def score_maps(self, x: Tensor) -> list[Tensor]:
        """[class maps, box maps] of a batch."""
        x = self.reduce(x)
        return [self.classes(x), self.boxes(x)]

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> RegionOutput:
        votes = (ps_roi_pool(m, rois, self.size, self.scale) for m in maps)
        logits, codes = (F.adaptive_avg_pool2d(pooled, 1).flatten(1) for pooled in votes)
        return RegionOutput(logits, codes[:, None])
