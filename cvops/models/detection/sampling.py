"""Which of the assigned anchors or proposals of an image a two-stage detector learns from: a few, with a share of
positives."""

import torch
from torch import Tensor

from cvops.models.detection.assigners import BACKGROUND


def sample(index: Tensor, size: int, positives: float) -> tuple[Tensor, Tensor]:
    """Draws up to `size` of every image, at random and without repetition: positives up to the share `positives`, the
    rest from the background (Ren et al. 2015, arXiv:1506.01497, section 3.1.3).

    index: an assigner's, [B, N]. Returns the image and the position of each that was drawn, [S] each, by torch's
    generator.

    >>> image, position = sample(torch.tensor([[0, -1, -1, 1, -2]]), 2, 0.5)
    >>> sorted(torch.tensor([0, -1, -1, 1, -2])[position].clamp(max=0).tolist())
    [-1, 0]
    """
    keys = torch.rand(index.shape, device=index.device)
    best, first = torch.where(index >= 0, keys, -1.0).topk(min(int(size * positives), index.shape[1]), dim=1)
    drawn = best >= 0
    best, second = torch.where(index == BACKGROUND, keys, -1.0).topk(min(size, index.shape[1]), dim=1)
    room = size - drawn.sum(1, keepdim=True)
    drawn = torch.cat([drawn, (best >= 0) & (torch.arange(best.shape[1], device=index.device) < room)], 1)
    image, slot = drawn.nonzero(as_tuple=True)
    return image, torch.cat([first, second], 1)[image, slot]
