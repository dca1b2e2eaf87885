"""Stochastic depth as blocks use it. The op, and its relatives with more options, are in cvops/ops/drop_path.py."""

from torch import Tensor, nn

from cvops.ops.drop_path import drop_path


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
        return drop_path(x, self.rate, self.training)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
