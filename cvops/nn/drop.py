"""Stochastic depth. Dropout of units is torch's, dropout of regions is `cvops.ops.drop_block`."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, sets a residual branch to zero for each
    sample with probability `rate` and scales the others by 1 / (1 - rate). In eval mode the identity.
    [N, ...] -> [N, ...].

    >>> DropPath(0.5).eval()(torch.ones(2, 3)).sum()
    tensor(6.)
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
