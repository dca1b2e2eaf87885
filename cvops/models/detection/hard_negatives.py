"""The loss of classes of SSD: softmax, over the positives and the backgrounds that are most wrong."""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_negative_loss(logits: Tensor, labels: Tensor, background: int, ratio: float = 3.0) -> Tensor:
    """Sum of the cross-entropy over the positives of all images and, of each image, over up to `ratio` times as many
    backgrounds, those with the greatest loss (Liu et al. 2016, arXiv:1512.02325, section 2.2).

    logits: [B, N, C]. labels: [B, N] int64, `background` where there is no object.

    >>> logits = torch.tensor([[[0.0, 0], [0, 0], [9, 0]]])
    >>> hard_negative_loss(logits, torch.tensor([[1, 0, 0]]), background=0, ratio=1)
    tensor(1.3863)
    """
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    positive = labels != background
    wanted = ratio * positive.sum(1, keepdim=True)
    order = torch.where(positive, -torch.inf, loss.detach()).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    chosen = positive | (rank < wanted)
    return (loss * chosen).sum()
