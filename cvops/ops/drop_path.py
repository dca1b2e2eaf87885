"""Stochastic depth and its relatives: whole samples, or channels of samples, set to zero and the others scaled.

Kernels are in csrc/{ops,cpu,cuda}/drop_path*: one op, whose groups are the tensor, its samples or their channels. It is
linear and its own gradient: backward draws the groups again from the seed and keeps nothing else.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvops.ops._random import (
    check_floating,
    check_probability,
    draw_seed,
    example_by_example,
    reference_chance,
    reference_philox,
)
from cvops.ops._register import differentiable, empty_dense_like

MODES = ("batch", "row")  # the index is the number of leading dimensions that are told apart
CHANNELS = 2


def drop_path(
    input: Tensor,
    p: float,
    training: bool = True,
    scale_by_keep: bool = True,
    mode: str = "row",
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): every sample is set to zero with probability `p`.

    Args:
        input: ``[N, ...]``; float64, float32, float16 or bfloat16, any strides.
        p: probability of a drop, in [0, 1].
        training: if false, `input` is returned as it is, as for ``p = 0``.
        scale_by_keep: multiply what is kept by ``1 / (1 - p)``, which keeps the mean.
        mode: ``'row'`` drops sample by sample, ``'batch'`` all samples or none.
        generator: where the seed is drawn from; torch's default generator for the device if None.
        seed: the seed itself, an integer or a tensor of one int64 on the device, instead of a drawn one.

    Returns:
        The shape, dtype and (contiguous or channels_last) memory format of `input`. Dropped elements are 0, whatever
        they held.

    Raises:
        ValueError: for a bad `p` or `mode`, and for an input without dimensions or of another dtype.

    >>> drop_path(torch.ones(4, 3), 0.5, seed=0)
    tensor([[2., 2., 2.],
            [0., 0., 0.],
            [2., 2., 2.],
            [2., 2., 2.]])
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    return _drop(input, p, training, scale_by_keep, MODES.index(mode), generator, seed)


def drop_channel(
    input: Tensor,
    p: float,
    training: bool = True,
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Spatial dropout (Tompson et al. 2015, arXiv:1411.4280): every channel of every sample of ``[N, C, ...]`` is set
    to zero with probability `p`. Arguments as :func:`drop_path`.

    >>> drop_channel(torch.ones(1, 4, 2), 0.5, seed=0)[0, :, 0]
    tensor([2., 0., 2., 2.])
    """
    return _drop(input, p, training, scale_by_keep, CHANNELS, generator, seed)


def scheduled_drop_path(
    input: Tensor,
    p: float,
    layer: int,
    layers: int,
    step: int,
    steps: int,
    training: bool = True,
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """ScheduledDropPath (Zoph et al. 2018, arXiv:1707.07012): :func:`drop_path` whose probability grows linearly with
    depth and with training, ``p * (layer / layers) * min(step / steps, 1)``.

    Args:
        input: ``[N, ...]``, the output of one path.
        p: probability in the last layer at the end of training, in [0, 1].
        layer: number of the layer, from 1 (0 never drops) to `layers`.
        layers: number of layers, >= 1.
        step: training step, >= 0; after `steps` the probability stays.
        steps: training steps over which the probability grows, >= 1.
        training, scale_by_keep, generator, seed: as in :func:`drop_path`.

    Raises:
        ValueError: as :func:`drop_path`, and for a layer or step out of range.

    >>> scheduled_drop_path(torch.ones(2, 2), 0.6, layer=2, layers=3, step=50, steps=200, seed=2)
    tensor([[0.0000, 0.0000],
            [1.1111, 1.1111]])
    """
    check_probability(p)
    return _drop(
        input, p * _progress(layer, layers, step, steps), training, scale_by_keep, MODES.index("row"), generator, seed
    )


class _Drop(nn.Module):
    def __init__(self, p: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        check_probability(p)
        self.p, self.scale_by_keep = p, scale_by_keep

    def extra_repr(self) -> str:
        return f"p={self.p}" + ("" if self.scale_by_keep else ", scale_by_keep=False")


class DropPath(_Drop):
    """Module form of :func:`drop_path`; the identity in eval mode."""

    def __init__(self, p: float, scale_by_keep: bool = True, mode: str = "row") -> None:
        super().__init__(p, scale_by_keep)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return drop_path(input, self.p, self.training, self.scale_by_keep, self.mode)


class DropChannel(_Drop):
    """Module form of :func:`drop_channel`; the identity in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        return drop_channel(input, self.p, self.training, self.scale_by_keep)


class ScheduledDropPath(_Drop):
    """Module form of :func:`scheduled_drop_path`. The training loop sets `step`; it starts at 0, where nothing is
    dropped.

    >>> layer = ScheduledDropPath(0.4, layer=6, layers=12, steps=1000)
    >>> layer.step = 500
    >>> layer
    ScheduledDropPath(p=0.4, layer=6/12, step=500/1000)
    """

    def __init__(self, p: float, layer: int, layers: int, steps: int, scale_by_keep: bool = True) -> None:
        super().__init__(p, scale_by_keep)
        _progress(layer, layers, 0, steps)
        self.layer, self.layers, self.step, self.steps = layer, layers, 0, steps

    def forward(self, input: Tensor) -> Tensor:
        return scheduled_drop_path(
            input, self.p, self.layer, self.layers, self.step, self.steps, self.training, self.scale_by_keep
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, layer={self.layer}/{self.layers}, step={self.step}/{self.steps}"


def _progress(layer: int, layers: int, step: int, steps: int) -> float:
    """The share of the final probability that holds in a layer at a step."""
    if not 0 <= layer <= layers or layers < 1:
        raise ValueError(f"layer must be in [0, layers] and layers >= 1, got {layer} and {layers}")
    if step < 0 or steps < 1:
        raise ValueError(f"step must be >= 0 and steps >= 1, got {step} and {steps}")
    return layer / layers * min(step / steps, 1.0)


def _drop(
    input: Tensor,
    p: float,
    training: bool,
    scale_by_keep: bool,
    leading: int,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor:
    check_probability(p)
    if input.ndim < max(leading, 1):
        expected = "[N, C, ...]" if leading == CHANNELS else "[N, ...]"
        raise ValueError(f"input must be {expected}, got {list(input.shape)}")
    check_floating(input)
    if not training or p == 0:
        return input
    scale = 1 / (1 - p) if scale_by_keep and p < 1 else 1.0
    out: Tensor = _drop_path(input, draw_seed(input, generator, seed), leading, p, scale)
    return out


@torch.library.register_fake("cvops::drop_path")
def _fake(input: Tensor, seed: Tensor, leading: int, p: float, scale: float) -> Tensor:
    return empty_dense_like(input)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, *ctx.rest = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    return _drop_path(grad, seed, *ctx.rest), None, None, None, None


_drop_path = differentiable("drop_path", _save, _backward, example_by_example(torch.ops.cvops.drop_path.default))


def reference_drop_path(input: Tensor, p: float, seed: int, leading: int = 1, scale_by_keep: bool = True) -> Tensor:
    """Pure-torch oracle; `leading` dimensions are told apart."""
    groups = input.shape[:leading]
    words = reference_philox(seed, torch.arange(groups.numel()), 2)
    most = reference_chance(p)
    high, low = words[1], words[0]
    dropped = (high < most >> 32) | ((high == most >> 32) & (low <= (most & 2**32 - 1)))
    kept = ~dropped.reshape(*groups, *[1] * (input.ndim - leading)).to(input.device)
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    scale = torch.tensor(1 / (1 - p) if scale_by_keep and p < 1 else 1.0, dtype=compute, device=input.device)
    return torch.where(kept, input.to(compute) * scale, 0).to(input.dtype)
