"""What the random ops share: drawing a seed, the bounds of a probability, a loop as vmap rule, and Philox in torch.

A kernel's randomness is a pure function of one int64 seed, which stays on the device (csrc/ops/philox.h).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def draw_seed(input: Tensor, generator: torch.Generator | None, seed: int | Tensor | None) -> Tensor:
    """One int64 on the device of `input`: given, or drawn from `generator` (torch's default one, so that
    `torch.manual_seed` governs)."""
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=input.device)
    if generator is not None:
        raise ValueError("seed and generator must not both be given")
    if isinstance(seed, Tensor):
        return seed
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into int64, got {seed}")
    return torch.full((1,), seed, dtype=torch.int64, device=input.device)


def check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")


def check_floating(input: Tensor) -> None:
    if not input.is_floating_point():
        raise ValueError(f"input must be float64, float32, float16 or bfloat16, got {input.dtype}")


def example_by_example(op: Callable[..., Any]) -> Callable[..., Any]:
    """A vmap rule: every example is a call of its own, with its own normaliser, and its own seed where
    ``randomness="different"`` has drawn one for each."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        def example(i: int) -> list[Any]:
            return [a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)]

        results = [op(*example(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def reference_philox(seed: int, index: Tensor, stream: int) -> list[Tensor]:
    """The four words of Philox4x32-10 (Salmon et al. 2011) for counters (index, stream), as int64."""
    low = 2**32 - 1

    def product(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
        high = ((x >> 16) * constant + ((x & 0xFFFF) * constant >> 16)) >> 16
        return high, (x * constant) & low

    key0, key1 = seed & low, seed >> 32 & low
    c0, c1 = index & low, index >> 32 & low
    c2, c3 = torch.full_like(index, stream), torch.zeros_like(index)
    for _ in range(10):
        (high0, low0), (high1, low1) = product(0xD2511F53, c0), product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & low, (key1 + 0xBB67AE85) & low
    return [c0, c1, c2, c3]


def reference_chance(p: float) -> int:
    """An event of probability p happens if 64 random bits are at most this."""
    return 2**64 - 1 if p >= 1 else max(int(p * 2**64) - 1, 0)
