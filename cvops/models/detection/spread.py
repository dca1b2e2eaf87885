"""Which cells around an object's centre learn its box, and how much each counts: the training samples of TTFNet (Liu et
al. 2019, arXiv:1909.00700, section 3). Heat maps are `gaussians.py`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cvops.models.detection.gaussians import DEVIATIONS
from cvops.models.detection.keypoint_losses import KeyPoints


class Samples(NamedTuple):
    """K cells that learn a box: `image`, `ys`, `xs` [K] int64; `target` [K] int64, the number of the object; `weight`
    [K] floating, which of the cells of an object adds up to the logarithm of its area, unless others cover it."""

    image: Tensor
    ys: Tensor
    xs: Tensor
    target: Tensor
    weight: Tensor


def spread(points: KeyPoints, radii: Tensor, areas: Tensor, shape: tuple[int, int, int]) -> Samples:
    """The cells within `radii` [N, 2] = (vertical, horizontal), in cells and rounded down, around the points of N
    objects, weighed by the Gaussian that `draw_gaussians` draws. Where objects overlap a cell belongs to the smallest.

    areas: [N], in pixels. shape: number of images, height and width of the map.

    >>> zero = torch.tensor([0]); point = KeyPoints(zero, zero, zero, torch.tensor([2]), torch.zeros(1, 2))
    >>> spread(point, torch.tensor([[0.0, 1.9]]), torch.tensor([math.e]), (1, 1, 4)).xs
    tensor([1, 2, 3])
    """
    _, height, width = shape
    owner = torch.full(shape, -1, device=areas.device)
    share = areas.new_zeros(shape)
    total = areas.clamp(min=math.e).log()
    order = areas.argsort(descending=True, stable=True).tolist()
    columns = (points.image, points.ys, points.xs, *radii.long().unbind(1))
    rows = torch.stack(columns, 1).tolist()  # one wait for the device
    for k in order:
        image, y, x, down, across = rows[k]
        profiles, windows = [], []
        for at, reach, limit in ((y, down, height), (x, across, width)):
            window = slice(max(at - reach, 0), min(at + reach + 1, limit))
            away = torch.arange(window.start, window.stop, device=areas.device, dtype=areas.dtype) - at
            profiles.append(torch.exp(-(away**2) / (2 * ((2 * reach + 1) / DEVIATIONS) ** 2)))
            windows.append(window)
        bump = profiles[0][:, None] * profiles[1]
        owner[image, windows[0], windows[1]] = k
        share[image, windows[0], windows[1]] = bump * (total[k] / bump.sum())
    image_index, ys, xs = (owner >= 0).nonzero(as_tuple=True)
    return Samples(image_index, ys, xs, owner[image_index, ys, xs], share[image_index, ys, xs])
