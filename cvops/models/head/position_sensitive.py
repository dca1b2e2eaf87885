"""The head of R-FCN: score maps for the whole image, and the votes of a region."""

import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.head.box import RegionOutput
from cvops.nn import ConvNormAct
from cvops.ops import ps_roi_pool


class PositionSensitiveHead(nn.Module):
    """Position-sensitive score maps (Dai et al. 2016, arXiv:1605.06409, section 2): [B, in_channels, H, W] -> class
    maps [B, (num_classes + 1) * size^2, H, W], the background first, and box maps [B, 4 * size^2, H, W] for all
    classes.

    Parts: `reduce` (1x1, ReLU), `classes`, `boxes` (1x1). `vote` gives what a region makes of the maps: each of its
    size x size cells looks at a map of its own, and the mean of the cells counts.

    >>> head = PositionSensitiveHead(16, 20, channels=8)
    >>> out = head.vote(*head(torch.zeros(1, 16, 8, 8)), torch.tensor([[0.0, 0, 0, 64, 64]]), 1 / 16)
    >>> out.classes.shape, out.codes.shape
    (torch.Size([1, 21]), torch.Size([1, 1, 4]))
    """

    background = "first"

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 1024, size: int = 7) -> None:
        super().__init__()
        self.size = size
        self.reduce = ConvNormAct(in_channels, channels, norm=None, bias=False)
        self.classes = nn.Conv2d(channels, (num_classes + 1) * size**2, 1, bias=False)
        self.boxes = nn.Conv2d(channels, 4 * size**2, 1, bias=False)
        for layer in (self.reduce.conv, self.classes, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with rows for each class."""
        return ("classes.weight",)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.reduce(x)
        return self.classes(x), self.boxes(x)

    def vote(self, classes: Tensor, boxes: Tensor, rois: Tensor, scale: float) -> RegionOutput:
        """Class logits [R, num_classes + 1] and box codes [R, 1, 4] of regions [R, 5]; `scale` is that of the maps."""
        votes = (ps_roi_pool(maps, rois, self.size, scale) for maps in (classes, boxes))
        logits, codes = (F.adaptive_avg_pool2d(pooled, 1).flatten(1) for pooled in votes)
        return RegionOutput(logits, codes[:, None])
