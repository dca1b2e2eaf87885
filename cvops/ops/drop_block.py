"""DropBlock in two and three dimensions: an exactly calibrated drop rate, any block and map, one mask on every device.

Kernels are in csrc/{ops,cpu,cuda}/drop_block*. One op makes the mask (one bit per element) and counts what is kept;
another multiplies with it. The second is linear and its own gradient, so backward reads the mask that forward made:
keeping a bit per element costs less time than drawing the seeds again.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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


def drop_block2d(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Drop blocks of a feature map (Ghiasi et al. 2018, arXiv:1810.12890), in every channel independently, and scale
    what is kept by ``numel / (eps + kept)``, counted over the whole tensor.

    `p` is the expected share of dropped elements, exactly. Block corners are drawn with a probability gamma wherever
    a block fits; an element that ``c`` such places cover survives with probability ``(1 - gamma)^c``, and gamma solves
    ``mean over elements of (1 - gamma)^c = 1 - p``. (The paper's gamma ignores that blocks overlap and that elements
    near the border are covered less.) The mask depends on the seed, the shape, the block and `p` alone: not on device,
    dtype, memory format, number of threads or instruction set.

    Args:
        input: ``[N, C, H, W]``; float64, float32, float16 or bfloat16, any strides.
        p: expected share of dropped elements, in [0, 1].
        block_size: side of the block, or (height, width); any number >= 1, clipped to the map.
        inplace: write the result into `input`.
        eps: added to the number of kept elements, >= 0.
        training: if false, `input` is returned as it is, as for ``p = 0``.
        generator: where the seed is drawn from; torch's default generator for the device if None.
        seed: the seed itself, an integer or a tensor of one int64 on the device, instead of a drawn one.

    Returns:
        The shape, dtype and (contiguous or channels_last) memory format of `input`. Dropped elements are 0, whatever
        they held; if nothing is kept, all are.

    Raises:
        ValueError: for a bad `p`, `block_size` or `eps`, and for an input of another rank or dtype.

    >>> kept = drop_block2d(torch.ones(1, 1, 4, 6), 0.4, 3, seed=3) > 0
    >>> kept.int()
    tensor([[[[1, 1, 1, 1, 1, 1],
              [1, 1, 1, 0, 0, 0],
              [1, 1, 1, 0, 0, 0],
              [1, 1, 1, 0, 0, 0]]]], dtype=torch.int32)
    """
    return _drop(input, p, block_size, 2, inplace, eps, training, generator, seed)


def drop_block3d(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """:func:`drop_block2d` of ``[N, C, D, H, W]``; `block_size` is one number or (depth, height, width).

    >>> drop_block3d(torch.ones(2, 3, 4, 4, 4), 1.0, 2).sum()
    tensor(0.)
    """
    return _drop(input, p, block_size, 3, inplace, eps, training, generator, seed)


class _DropBlock(nn.Module):
    axes = 2

    def __init__(self, p: float, block_size: int | Sequence[int], inplace: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        check_probability(p)
        _sizes(block_size, self.axes)
        self.p, self.block_size, self.inplace, self.eps = p, block_size, inplace, eps

    def forward(self, input: Tensor) -> Tensor:
        return _drop(input, self.p, self.block_size, self.axes, self.inplace, self.eps, self.training, None, None)

    def extra_repr(self) -> str:
        return f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"


class DropBlock2d(_DropBlock):
    """Module form of :func:`drop_block2d`; the identity in eval mode.

    >>> DropBlock2d(0.1, 7)
    DropBlock2d(p=0.1, block_size=7, inplace=False)
    """


class DropBlock3d(_DropBlock):
    """Module form of :func:`drop_block3d`; the identity in eval mode."""

    axes = 3


def _sizes(block_size: int | Sequence[int], axes: int) -> list[int]:
    sizes = [block_size] * axes if isinstance(block_size, int) else list(block_size)
    if len(sizes) != axes or min(sizes) < 1:
        raise ValueError(f"block_size must be one or {axes} integers >= 1, got {block_size!r}")
    return sizes


def _drop(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    axes: int,
    inplace: bool,
    eps: float,
    training: bool,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor:
    check_probability(p)
    sizes = _sizes(block_size, axes)
    if eps < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    if input.ndim != axes + 2:
        expected = "[N, C, H, W]" if axes == 2 else "[N, C, D, H, W]"
        raise ValueError(f"input must be {expected}, got {list(input.shape)}")
    check_floating(input)
    if not training or p == 0:
        return input
    mask, kept = torch.ops.cvops.drop_block_mask(input.detach(), draw_seed(input, generator, seed), sizes, p)
    if inplace:
        return _drop_in_place(input, mask, kept, eps)
    out: Tensor = _drop_block(input, mask, kept, eps)
    return out


def _drop_in_place(input: Tensor, mask: Tensor, kept: Tensor, eps: float) -> Tensor:
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if traced or not (input.is_contiguous() or input.movedim(1, -1).is_contiguous()):
        return input.copy_(_drop_block(input, mask, kept, eps))
    out: Tensor = _InPlace.apply(input, mask, kept, eps)
    return out


class _InPlace(torch.autograd.Function):
    """The op that writes into its input: what torch.library's autograd cannot express."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Tensor, kept: Tensor, eps: float) -> Tensor:
        torch.ops.cvops.drop_block_(input, mask, kept, eps)
        ctx.mark_dirty(input)
        ctx.save_for_backward(mask, kept)
        ctx.eps = eps
        return input

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _backward(ctx, grad)


@torch.library.register_fake("cvops::drop_block_mask")
def _fake_mask(input: Tensor, seed: Tensor, block: Sequence[int], p: float) -> tuple[Tensor, Tensor]:
    return seed.new_empty((input.numel() + 63) // 64 + 1), seed.new_empty(1)


@torch.library.register_fake("cvops::drop_block")
def _fake(input: Tensor, mask: Tensor, kept: Tensor, eps: float) -> Tensor:
    return empty_dense_like(input)


@torch.library.register_fake("cvops::drop_block_")
def _fake_in_place(input: Tensor, mask: Tensor, kept: Tensor, eps: float) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, kept, ctx.eps = inputs
    ctx.save_for_backward(mask, kept)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _drop_block(grad, *ctx.saved_tensors, ctx.eps), None, None, None


_drop_block = differentiable("drop_block", _save, _backward, example_by_example(torch.ops.cvops.drop_block.default))
torch.library.register_vmap("cvops::drop_block_mask", example_by_example(torch.ops.cvops.drop_block_mask.default))


def reference_drop_block_gamma(size: Sequence[int], block: Sequence[int], p: float) -> float:
    """The probability of a seed, by bisection; `block` is already clipped to `size`."""
    cover = torch.ones(1, dtype=torch.float64)
    for n, b in zip(size, block, strict=True):
        places = n - b + 1
        of_axis = [min(i, places - 1) - max(0, i - b + 1) + 1 for i in range(n)]
        cover = torch.outer(cover, torch.tensor(of_axis, dtype=torch.float64)).flatten()
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (1 - (1 - middle) ** cover).mean() >= p else (middle, high)
    return high


def reference_drop_block_mask(size: Sequence[int], block: Sequence[int], p: float, seed: int) -> Tensor:
    """Pure-torch oracle of the mask of ``[N, C, (D,) H, W]``: true where kept."""
    planes, spatial = size[0] * size[1], list(size[2:])
    block = [min(b, n) for b, n in zip(block, spatial, strict=True)]
    region = [n - b + 1 for b, n in zip(block, spatial, strict=True)]
    gamma = reference_drop_block_gamma(spatial, block, p)
    count = planes * torch.Size(region).numel()
    index = torch.arange(count)
    words = torch.stack(reference_philox(seed, index // 128 * 16 + index % 32 // 2, 0))
    piece = words.gather(0, (index % 128 // 32)[None])[0] >> index % 2 * 16 & 0xFFFF
    rest = reference_philox(seed, index, 1)
    if gamma <= 1 / 128:
        seeds = torch.zeros(count, dtype=torch.bool)
        seeds[_seeds_by_gaps(gamma, count, piece, rest, seed)] = True
    else:
        most = reference_chance(gamma)
        last = (rest[1] & 0xFFFF) << 32 | rest[0]
        seeds = (piece < most >> 48) | ((piece == most >> 48) & (last <= (most & 2**48 - 1)))
    while len(block) < 3:
        block, region = [1, *block], [1, *region]
    margins = [b - 1 for b in reversed(block) for _ in range(2)]
    dropped = F.max_pool3d(F.pad(seeds.float().reshape(planes, 1, *region), margins), tuple(block), stride=1)
    return dropped.reshape(size) == 0


def _seeds_by_gaps(gamma: float, count: int, piece: Tensor, rest: Sequence[Tensor], seed: int) -> list[int]:
    """Rare seeds: their places, from geometric gaps that start anew at every 64th place."""
    at_least, power = [], float(2**64)
    for _ in range(65):
        at_least.append(min(int(power), 2**64 - 1))
        power *= 1 - gamma
    found = []
    for word in range((count + 63) // 64):
        drawn = [int(w[word]) for w in rest]
        stream, at, half = 3, 0, 1
        random = int(piece[word]) << 48 | (drawn[1] & 0xFFFF) << 32 | drawn[0]
        while random >= at_least[64]:
            at += next(j for j in range(64) if random >= at_least[j + 1])
            if at >= 64:
                break
            found.append(64 * word + at)
            at += 1
            if half == 0:
                drawn = [int(w[0]) for w in reference_philox(seed, torch.tensor([word]), stream)]
                stream += 1
            random = drawn[2 * half + 1] << 32 | drawn[2 * half]
            half = 1 - half
    return [i for i in found if i < count]


def reference_drop_block(input: Tensor, p: float, block: Sequence[int], seed: int, eps: float = 1e-6) -> Tensor:
    """Pure-torch oracle of both functions, with `block` per axis."""
    kept = reference_drop_block_mask(input.shape, block, p, seed).to(input.device)
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    count = int(kept.sum())
    scale = torch.tensor(input.numel() / (eps + count) if count else 0.0, dtype=torch.float64).to(compute)
    return torch.where(kept, input.to(compute) * scale.to(input.device), 0).to(input.dtype)
