"""The box head of Faster R-CNN: pooled features of a region to class logits and box codes."""

from typing import NamedTuple

from torch import Tensor, nn

from cvops.nn import make_activation


class RegionOutput(NamedTuple):
    """classes: logits [R, C + 1] with the background. codes: box codes [R, C, 4], or [R, 1, 4] for all classes."""

    classes: Tensor
    codes: Tensor


class BoxHead(nn.Module):
    """[R, in_channels, size, size] -> class logits [R, num_classes + 1] and box codes [R, num_classes, 4] (Girshick
    2015, arXiv:1504.08083, with the two layers of Lin et al. 2017, arXiv:1612.03144).

    Parts: `fc1`, `fc2`, `classes`, `boxes`. background: its logit is the `first` (torchvision, whose box codes have a
    slot for it too) or the `last` (detectron2, mmdetection).

    >>> out = BoxHead(8, 7, 20, width=16)(torch.zeros(5, 8, 7, 7)); out.classes.shape, out.codes.shape
    (torch.Size([5, 21]), torch.Size([5, 20, 4]))
    """

    def __init__(
        self, in_channels: int, size: int, num_classes: int, *, width: int = 1024, background: str = "first"
    ) -> None:
        super().__init__()
        self.background = background
        self.fc1 = nn.Linear(in_channels * size * size, width)
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

    def forward(self, regions: Tensor) -> RegionOutput:
        x = self.act(self.fc2(self.act(self.fc1(regions.flatten(1)))))
        codes = self.boxes(x).unflatten(1, (-1, 4))
        return RegionOutput(self.classes(x), codes[:, 1:] if self.background == "first" else codes)
