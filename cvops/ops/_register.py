"""Registration helpers that every op shares: autocast policy, and second derivatives through a reference.

Kernels, schemas and argument checks are in csrc/; fakes, autograd and vmap rules are in the op's own file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Setup = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[..., Any]
Vmap = Callable[..., Any]

_autocast = torch.library.Library("cvops", "IMPL")


def autocast_to(op: str, dtype: torch.dtype | None) -> None:
    """Under autocast, give `op` its floating-point tensors in `dtype`; None means the active autocast dtype."""
    overload = getattr(torch.ops.cvops, op).default

    def register(device: str, key: str) -> None:
        def cast_and_call(*args: Any, **kwargs: Any) -> Any:
            to = dtype or torch.get_autocast_dtype(device)

            def cast(value: Any) -> Any:
                castable = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
                return value.to(to) if castable else value

            with torch.autocast(device, enabled=False):
                return overload(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

        _autocast.impl(op, cast_and_call, key)

    register("cpu", "AutocastCPU")
    register("cuda", "AutocastCUDA")


def empty_dense_like(input: Tensor) -> Tensor:
    """The output of an op that keeps contiguous and channels_last inputs as they are: `dense` in
    csrc/ops/memory_format.h."""
    if input.is_contiguous() or (input.ndim > 2 and input.movedim(1, -1).is_contiguous()):
        return torch.empty_like(input)
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def follows_channels_last(input: Tensor) -> bool:
    """The rule of the function of this name in csrc/ops/memory_format.h, for fakes."""
    return input.shape[1] > 1 and input.stride(1) == 1 and not input.is_contiguous()


def empty_maps(like: Tensor, shape: Sequence[Any], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An output ``[N, C, H, W]`` of a fake kernel."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(list(shape), dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def transforming() -> bool:
    """Whether a torch.func transform or forward mode is active."""
    active = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return active and not torch.compiler.is_compiling()


def differentiable(op: str, save: Setup, backward: Backward, vmap: Vmap | None = None) -> Callable[..., Any]:
    """Register the gradient (and vmap rule) of `op`, and return what wrappers call instead of the bare op.

    What torch.library registers serves compilers, exporters and direct calls of the op. It is slow to call, and takes
    no part in torch.func or in forward mode. So the returned callable uses an autograd.Function of its own in eager
    mode, and another, with setup_context, while such a transform is active.
    """
    overload = getattr(torch.ops.cvops, op).default
    torch.library.register_autograd(f"cvops::{op}", backward, setup_context=save)

    class EagerFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = overload(*args)
            save(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return overload(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output)
            ctx.save_for_forward(*(x for x in inputs if isinstance(x, Tensor)))
            ctx.constants = [None if isinstance(x, Tensor) else (x,) for x in inputs]

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            primals = iter([forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors])
            inputs = [next(primals) if constant is None else constant[0] for constant in ctx.constants]
            return _push_forward(call, inputs, tangents)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            if vmap is None:
                raise RuntimeError(f"cvops::{op} has no vmap rule")
            return vmap(info, in_dims, *args)

    if vmap is not None:
        torch.library.register_vmap(f"cvops::{op}", vmap)

    def call(*args: Any) -> Any:
        if transforming():
            return Function.apply(*args)
        if not _is_plainly_eager():
            return overload(*args)
        if torch.is_grad_enabled():
            for x in args:
                if isinstance(x, Tensor) and x.requires_grad:
                    return EagerFunction.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    return call


def _is_plainly_eager() -> bool:
    """Whether nothing watches or changes the calls of ops: no compiler or tracer, dispatch mode or autocast."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
    )


def _push_forward(call: Callable[..., Any], inputs: list[Any], tangents: Sequence[Tensor | None]) -> Any:
    """Derivative of `call` at `inputs` along `tangents`, as the pull-back of the pull-back: v -> J^T v is linear, and
    the transpose of J^T is J. So no op needs a forward-mode rule of its own."""
    moved = [i for i, t in enumerate(tangents) if t is not None and t.is_floating_point()]
    smooth: list[bool] = []  # which outputs have a tangent: indices have none

    def floats(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = list(inputs)
        for i, value in zip(moved, values, strict=True):
            arguments[i] = value
        outputs = call(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        smooth[:] = [x.is_floating_point() for x in outputs]
        return tuple(x for x in outputs if x.is_floating_point())

    outputs, pull_back = torch.func.vjp(floats, *(inputs[i] for i in moved))[:2]
    push = torch.func.vjp(pull_back, tuple(torch.zeros_like(x) for x in outputs))[1]
    pushed = iter(push(tuple(tangents[i] for i in moved))[0])
    aligned = tuple(next(pushed) if has_tangent else None for has_tangent in smooth)
    return aligned[0] if len(aligned) == 1 else aligned


def batch_first(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a vmap rule with their batch dimension first, unbatched ones expanded."""
    return [
        t.unsqueeze(0).expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]


def double_backward(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, grad_grads: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Derivatives of (the gradients of `reference` at `inputs`, times `grad`), times `grad_grads`.

    Returns those by `grad` first, then by each input. Second derivatives are rare, so they run through autograd over
    the pure-torch reference, which materialises what the kernels do not.
    """

    def gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.func.vjp(reference, *inputs)[1](grad))

    # A view, since what an outer transform that has ended saved is still wrapped, which only ops undo.
    values, pull_back = torch.func.vjp(gradients, *(x.view_as(x) for x in (grad, *inputs)))[:2]
    filled = tuple(v.new_zeros(v.shape) if g is None else g for v, g in zip(values, grad_grads, strict=True))
    return tuple(pull_back(filled))
