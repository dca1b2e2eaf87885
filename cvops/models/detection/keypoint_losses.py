"""Losses of detectors that find objects as key points: heat maps, offsets within a cell, and CornerNet's tags. Where
the points of objects are on the maps is here too; the heat maps' targets are drawn in `gaussians.py`."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvops.models.detection.gaussians import DEVIATIONS, draw_gaussians
from cvops.ops import gaussian_focal_loss


class KeyPoints(NamedTuple):
    """One point of each of N objects on the maps of a batch.

    image, labels: [N] int64. ys, xs: [N] int64, the cell. offsets: [N, 2] floating, (x, y) of the point within it.
    """

    image: Tensor
    labels: Tensor
    ys: Tensor
    xs: Tensor
    offsets: Tensor

    def of(self, maps: Tensor) -> Tensor:
        """The values of maps [B, K, H, W] in the cells: [N, K]."""
        return maps[self.image, :, self.ys, self.xs]


def locate(points: Tensor, image: Tensor, labels: Tensor, size: tuple[int, int]) -> KeyPoints:
    """The cells of points [N, 2] = (x, y) in pixels of a map of height and width `size`. A point on the far border
    belongs to the last cell.

    >>> zero = torch.tensor([0]); locate(torch.tensor([[2.75, 8.0]]), zero, zero, (8, 8))[2:]
    (tensor([7]), tensor([2]), tensor([[0.7500, 1.0000]]))
    """
    limits = torch.tensor((size[1] - 1, size[0] - 1), device=points.device)
    cells = points.floor().long().clamp(min=0).minimum(limits)
    return KeyPoints(image, labels, cells[:, 1], cells[:, 0], points - cells)


def heatmap_loss(logits: Tensor, points: KeyPoints, radii: Tensor, deviations: float = DEVIATIONS) -> Tensor:
    """Focal loss of a heat map [B, C, H, W], less strict within `radii` [N] or [N, 2] around the points, divided by the
    number of points (Law and Deng 2018, arXiv:1808.01244, equation 1); `deviations` as in `draw_gaussians`.

    >>> zero = torch.tensor([0]); point = KeyPoints(zero, zero, zero, zero, torch.zeros(1, 2))
    >>> heatmap_loss(torch.zeros(1, 1, 1, 2), point, torch.zeros(1))
    tensor(0.3466)
    """
    b, c, h, w = logits.shape
    targets = draw_gaussians((b, c, h, w), points.image, points.labels, points.ys, points.xs, radii, deviations)
    return gaussian_focal_loss(logits, targets, reduction="sum") / (targets == 1).sum().clamp(min=1)


def offset_loss(maps: Tensor, points: KeyPoints, kind: Literal["smooth_l1", "l1"] = "smooth_l1") -> Tensor:
    """How far the offsets [B, 2, H, W] are from those of the points: summed over x and y, averaged over points;
    `smooth_l1` is CornerNet's, `l1` CenterNet's (points).

    >>> zero = torch.tensor([0]); point = KeyPoints(zero, zero, zero, zero, torch.tensor([[0.5, 0.0]]))
    >>> offset_loss(torch.zeros(1, 2, 1, 1), point)
    tensor(0.1250)
    """
    if kind not in ("smooth_l1", "l1"):
        raise ValueError(f"kind must be 'smooth_l1' or 'l1', got {kind!r}")
    loss = F.smooth_l1_loss if kind == "smooth_l1" else F.l1_loss
    got = points.of(maps)
    return loss(got.to(points.offsets.dtype), points.offsets, reduction="sum") / max(len(got), 1)


def tag_losses(first: Tensor, second: Tensor, image: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """(pull, push) of the tags [N] of the two corners of N objects (Law and Deng 2018, arXiv:1808.01244, equations 4
    and 5): the tags of an object to their mean, the means of an image's objects away from each other to a distance of
    1. Both are averaged over the objects, or pairs of objects, of an image, then over the `batch` images.

    >>> tag_losses(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), 1)
    (tensor(0.2500), tensor(0.5000))
    """
    counts = torch.bincount(image, minlength=batch).to(first.dtype)[image]  # [N], objects of the same image
    mean = (first + second) / 2
    pull = (((first - mean) ** 2 + (second - mean) ** 2) / counts).sum() / batch
    near = F.relu(1 - (mean[:, None] - mean).abs())  # [N, N]
    pairs = (image[:, None] == image).fill_diagonal_(False)
    push = torch.where(pairs, near / (counts * (counts - 1)).clamp(min=1), 0).sum() / batch
    return pull, push
