"""Gradient checkpointing for stages that carry running statistics. Which stages, and when, is each backbone's."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, *inputs: Tensor) -> Tensor:
    """`module(*inputs)` that keeps only these for the backward pass and computes the rest again (Chen et al. 2016,
    arXiv:1604.06174). Outputs, gradients, random draws and, unlike with torch's function alone, the running statistics
    of batch norms are those of a plain call: the second pass leaves them as they are. Without gradients, and inside
    torch.compile, whose partitioner decides by itself what to keep, it is a plain call.

    >>> x = torch.ones(2, 4, requires_grad=True)
    >>> recompute(nn.Linear(4, 3), x).sum().backward(); x.grad.shape
    torch.Size([2, 4])
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        y: Tensor = module(*inputs)
        return y
    out: Tensor = checkpoint(
        module,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _still_statistics(module)),
    )
    return out


@contextlib.contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Momentum 0 writes the old values back; leaving the statistics out would change what autograd saves.
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked = count
