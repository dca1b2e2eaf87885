"""The box head of Faster R-CNN: features pooled in a region to class logits and box codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from cvops.nn import make_activation
from cvops.ops import multiscale_roi_align


class RegionOutput(NamedTuple):
    """classes: logits [R, C + 1] with the background. codes: box codes [R, C, 4], or [R, 1, 4] for all classes."""

    classes: Tensor
    codes: Tensor


@dataclass(frozen=True)
class RegionPool:
    """RoIAlign from the level that fits each region (Lin et al. 2017, arXiv:1612.03144, eq. 1): maps, finest first, and
    regions [R, 5] to [R, C, size, size]. scales: of the maps, in pixels of theirs per pixel of the batch."""

    size: int
    scales: tuple[float, ...]
    sampling_ratio: int = 0
    aligned: bool = True

    def __call__(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        some = list(maps[: len(self.scales)])
        return multiscale_roi_align(some, rois, self.size, self.scales, self.sampling_ratio, self.aligned)


class BoxHead(nn.Module):
    """Maps, and regions [R, 5] as rows of (image, x1, y1, x2, y2) in pixels of the batch -> class logits
    [R, num_classes + 1] and box codes [R, num_classes, 4] (Girshick 2015, arXiv:1504.08083, with the two layers of Lin
    et al. 2017, arXiv:1612.03144).

    Parts: `fc1`, `fc2`, `classes`, `boxes`; `pool` holds no weights. background: its logit is the `first` (torchvision,
    whose box codes have a slot for it too) or the `last` (detectron2, mmdetection).

    >>> head = BoxHead(8, 20, RegionPool(7, (1 / 16,)), width=16)
    >>> out = head([torch.zeros(1, 8, 4, 4)], torch.tensor([[0.0, 8, 8, 40, 60]]))
    >>> out.classes.shape, out.codes.shape
    (torch.Size([1, 21]), torch.Size([1, 20, 4]))
    """

    def __init__(
        self, in_channels: int, num_classes: int, pool: RegionPool, *, width: int = 1024, background: str = "first"
    ) -> None:
        super().__init__()
        self.background, self.pool = background, pool
        self.fc1 = nn.Linear(in_channels * pool.size**2, width)
        self.fc2 = nn.Linear(width, width)
        self.act = make_activation("relu")
        self.classes = nn.Linear(width, num_classes + 1)
        self.boxes = nn.Linear(width, 4 * (num_classes + 1 if background == "first" else num_classes))
        for layer, deviation in ((self.classes, 0.01), (self.boxes, 0.001)):  # section 2.3 of Fast R-CNN
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with rows for each class."""
        return ("classes.weight", "classes.bias", "boxes.weight", "boxes.bias")

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> RegionOutput:
        x = self.act(self.fc2(self.act(self.fc1(self.pool(maps, rois).flatten(1)))))
        codes = self.boxes(x).unflatten(1, (-1, 4))
        return RegionOutput(self.classes(x), codes[:, 1:] if self.background == "first" else codes)
