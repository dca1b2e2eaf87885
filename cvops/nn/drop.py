"""Stochastic depth and DropBlock as blocks use them, and the progress of their rates over training. The ops, and their
relatives with more options, are in cvops/ops/drop_path.py and cvops/ops/drop_block.py."""

from torch import Tensor, nn

from cvops.ops.drop_block import DropBlock2d, drop_block2d
from cvops.ops.drop_path import ScheduledDropPath, drop_path


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


class ScheduledDropBlock2d(DropBlock2d):
    """DropBlock (Ghiasi et al. 2018, arXiv:1810.12890) whose rate grows over training: `p` times `progress`, which
    `set_drop_progress` sets. [N, C, H, W] -> [N, C, H, W].

    >>> layer = ScheduledDropBlock2d(0.2, block_size=7)
    >>> layer.progress = 0.0
    >>> layer(torch.ones(1, 2, 3, 3)).sum()
    tensor(18.)
    """

    progress: float = 1.0

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.block_size, int)
        return drop_block2d(input, self.p * self.progress, self.block_size, self.inplace, self.eps, self.training)


def set_drop_progress(module: nn.Module, progress: float) -> None:
    """Tells every scheduled drop in `module` (`ScheduledDropBlock2d`, `cvops.ops.ScheduledDropPath`) which share of
    training is done; their rates grow linearly with it, as published. Call it once an epoch or step.

    >>> model = cvops.create_model("resnet50", drop_block=0.1)
    >>> for epoch in range(3): set_drop_progress(model, epoch / 2)
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    for layer in module.modules():
        if isinstance(layer, ScheduledDropBlock2d):
            layer.progress = progress
        elif isinstance(layer, ScheduledDropPath):
            layer.step = round(progress * layer.steps)
