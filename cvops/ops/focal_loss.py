"""Focal losses: sigmoid, softmax and the penalty-reduced form for heatmaps, finite for any logit and any gamma >= 0.

Backward keeps only the logits and targets, and sums are made inside the kernels. Kernels are in
csrc/{ops,cpu,cuda}/focal_loss*.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.ops._register import autocast_to, batch_first, differentiable, double_backward


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Focal loss of independent binary labels (Lin et al. 2017, arXiv:1708.02002); torchvision's, and more.

    ``alpha_t (1 - p_t)^gamma * binary cross-entropy``, from logits, in the log-sigmoid form.

    Args:
        inputs: ``[..., C]`` logits, floating, any shape.
        targets: one of

            - floating labels of the shape of `inputs`, hard or soft; also beyond [0, 1], as the formula says;
            - bool or integer labels of that shape: 0, or anything else for 1;
            - int64 class indices ``[...]``: the one-hot rows are never built. -1 and C mean "no class"
              (background). On the CPU any other index raises; on CUDA, where raising would have to wait for the
              device, it counts as background.
        alpha: weight of label 1; label 0 has ``1 - alpha``. Negative: no weights. Or a tensor ``[C]``, one per class;
            it is not differentiated.
        gamma: focusing exponent, >= 0.
        reduction: ``'none'``, ``'mean'`` (over the elements that are not ignored; the mean of nothing is 0) or
            ``'sum'``.
        ignore_index: class index whose row, or integer label whose element, has loss and gradient 0 whatever its
            logits are.
        weight: factor per element (shape of `inputs`) or per row (``inputs.shape[:-1]``), applied before the reduction.

    Returns:
        ``'none'``: the shape and dtype of `inputs`. Otherwise a scalar, float32 (float64 for float64 inputs): the sum
        of a batch does not fit float16.

    Raises:
        ValueError: unknown `reduction`, negative `gamma`, or shapes that do not fit.
        RuntimeError: dtypes or devices that do not fit; a class index out of range.

    >>> sigmoid_focal_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([[0.0005, 0.0170]])
    >>> sigmoid_focal_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([0]), reduction="sum")
    tensor(0.0174)
    """
    _check(reduction, gamma)
    indices = targets.ndim == inputs.ndim - 1 and targets.shape == inputs.shape[:-1]
    if not indices and targets.shape != inputs.shape:
        raise ValueError(
            f"targets must be {list(inputs.shape)}, the shape of inputs, or that without the last dimension for class "
            f"indices, got {list(targets.shape)}"
        )
    if weight is not None and weight.shape not in (inputs.shape, inputs.shape[:-1]):
        raise ValueError(
            f"weight must be {list(inputs.shape)}, one per element, or {list(inputs.shape[:-1])}, one per row, "
            f"got {list(weight.shape)}"
        )
    class_alpha, alpha = _split_alpha(alpha, inputs)
    if targets.is_floating_point():
        targets = _targets_for(inputs, targets)
        if ignore_index is not None:
            raise ValueError(f"ignore_index needs integer targets, got {targets.dtype}")
    elif targets.dtype not in (torch.int64, torch.bool):
        targets = targets.long() if indices or ignore_index is not None else targets.bool()
    wide = _wide(inputs)
    if weight is not None and weight.requires_grad:  # rare: the kernel treats its weights as constants
        loss = _sigmoid(inputs, targets, None, class_alpha, alpha, gamma, ignore_index, False).to(wide)
        loss = loss * (weight if weight.ndim == inputs.ndim else weight.unsqueeze(-1))
        if reduction == "none":
            return loss.to(inputs.dtype)
        return _mean_of(loss.sum(), inputs, targets, indices, ignore_index) if reduction == "mean" else loss.sum()
    if weight is not None:
        weight = weight.to(wide)
    out: Tensor = _sigmoid(inputs, targets, weight, class_alpha, alpha, gamma, ignore_index, reduction != "none")
    return _mean_of(out, inputs, targets, indices, ignore_index) if reduction == "mean" else out


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    ignore_index: int = -100,
) -> Tensor:
    """Focal loss of mutually exclusive classes, ``-alpha_t (1 - p_t)^gamma log(p_t)`` with p the softmax of `inputs`.

    The arguments are laid out as in :func:`torch.nn.functional.cross_entropy`, which it equals at ``gamma=0`` and
    ``alpha=None`` (except that the mean of nothing is 0). Lin et al. 2017, arXiv:1708.02002, with a softmax.

    Args:
        inputs: ``[N, C]`` or ``[N, C, d1, ...]`` logits.
        targets: ``[N]`` or ``[N, d1, ...]`` int64 class indices. On the CPU an index out of range raises; on CUDA,
            where raising would have to wait for the device, its loss is NaN.
        alpha: None, a factor for every class, or a tensor ``[C]`` of factors, one per target class; a tensor is not
            differentiated.
        gamma: focusing exponent, >= 0.
        reduction: ``'none'``, ``'mean'`` (over the positions that are not ignored) or ``'sum'``.
        ignore_index: target whose position has loss and gradient 0.

    Returns:
        ``'none'``: the shape of `targets` in the dtype of `inputs`. Otherwise a scalar, float32 (float64 for float64
        inputs).

    Raises:
        ValueError: unknown `reduction`, negative `gamma`, or shapes that do not fit.
        RuntimeError: dtypes or devices that do not fit; a target out of range.

    >>> softmax_focal_loss(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    tensor([0.0109, 0.4883])
    """
    _check(reduction, gamma)
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be [N, C] or [N, C, d1, ...], got {list(inputs.shape)}")
    if targets.shape != inputs.shape[:1] + inputs.shape[2:]:
        raise ValueError(f"targets must be {list(inputs.shape[:1] + inputs.shape[2:])}, got {list(targets.shape)}")
    class_alpha, factor = _split_alpha(1.0 if alpha is None else alpha, inputs, dim=1)
    total = reduction != "none"
    logits, labels = (inputs.unsqueeze(2), targets.unsqueeze(1)) if inputs.ndim == 2 else (inputs, targets)
    out: Tensor = _softmax(logits.flatten(2), labels.flatten(1), class_alpha, factor, float(gamma), ignore_index, total)
    if reduction == "mean":
        return out / (targets != ignore_index).sum().clamp(min=1)
    return out if total else out.reshape(targets.shape)


def gaussian_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 2.0, gamma: float = 4.0, reduction: str = "none"
) -> Tensor:
    """Penalty-reduced focal loss of a heatmap of Gaussian peaks (Law & Deng 2018, arXiv:1808.01244, equation 1).

    ``-(1 - p)^alpha log(p)`` where the target is exactly 1, ``-(1 - target)^gamma p^alpha log(1 - p)`` elsewhere, with
    p the sigmoid of `inputs`. mmdetection's function of this name takes probabilities and adds an epsilon inside its
    logarithms; pass the logits, before the sigmoid, instead: nothing is clipped then. CornerNet and CenterNet divide
    the sum by the number of peaks: ``gaussian_focal_loss(x, t, reduction='sum') / (t == 1).sum().clamp(min=1)``.

    Args:
        inputs: logits of any shape.
        targets: heatmap of that shape with values in [0, 1], floating.
        alpha: focusing exponent of the probability, >= 0.
        gamma: exponent of the reduction of the penalty near a peak, >= 0.
        reduction: ``'none'``, ``'mean'`` (over all elements; the mean of nothing is 0) or ``'sum'``.

    Returns:
        ``'none'``: the shape and dtype of `inputs`. Otherwise a scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: unknown `reduction`, negative exponent, or shapes that differ.
        RuntimeError: dtypes or devices that do not fit.

    >>> gaussian_focal_loss(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
    tensor([0.0018, 0.0108, 0.1733])
    """
    _check(reduction, gamma)
    if alpha < 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}")
    if targets.shape != inputs.shape:
        raise ValueError(f"targets must be {list(inputs.shape)}, the shape of inputs, got {list(targets.shape)}")
    targets = _targets_for(inputs, targets)
    out: Tensor = _gaussian(inputs, targets, float(alpha), float(gamma), reduction != "none")
    return out / max(inputs.numel(), 1) if reduction == "mean" else out


class SigmoidFocalLoss(nn.Module):
    """Module form of :func:`sigmoid_focal_loss`; a tensor `alpha` is a buffer."""

    def __init__(
        self,
        alpha: float | Tensor = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        *,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        _check(reduction, gamma)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma, self.reduction, self.ignore_index = gamma, reduction, ignore_index

    alpha: float | Tensor

    def forward(self, inputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        return sigmoid_focal_loss(
            inputs, targets, self.alpha, self.gamma, self.reduction, ignore_index=self.ignore_index, weight=weight
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"


class SoftmaxFocalLoss(nn.Module):
    """Module form of :func:`softmax_focal_loss`; a tensor `alpha` is a buffer."""

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        reduction: str = "mean",
        *,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        _check(reduction, gamma)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma, self.reduction, self.ignore_index = gamma, reduction, ignore_index

    alpha: float | Tensor | None

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return softmax_focal_loss(
            inputs, targets, self.alpha, self.gamma, self.reduction, ignore_index=self.ignore_index
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"


class GaussianFocalLoss(nn.Module):
    """Module form of :func:`gaussian_focal_loss`."""

    def __init__(self, alpha: float = 2.0, gamma: float = 4.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(reduction, gamma)
        self.alpha, self.gamma, self.reduction = alpha, gamma, reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return gaussian_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"


def _check(reduction: str, gamma: float) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if not gamma >= 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")


def _wide(inputs: Tensor) -> torch.dtype:
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def _targets_for(inputs: Tensor, targets: Tensor) -> Tensor:
    return targets if targets.dtype in (inputs.dtype, _wide(inputs)) else targets.to(_wide(inputs))


def _split_alpha(alpha: float | Tensor, inputs: Tensor, dim: int = -1) -> tuple[Tensor | None, float]:
    """A tensor of one per class for the kernel, or a number."""
    if not isinstance(alpha, Tensor):
        return None, float(alpha)
    classes = inputs.shape[dim] if inputs.ndim else 1
    if alpha.ndim == 0:
        alpha = alpha.expand(classes)
    if alpha.shape != (classes,):
        raise ValueError(f"alpha must be a number or [{classes}], one per class, got {list(alpha.shape)}")
    return alpha.detach().to(_wide(inputs)), 0.0


def _mean_of(total: Tensor, inputs: Tensor, targets: Tensor, indices: bool, ignore_index: int | None) -> Tensor:
    if ignore_index is None:
        return total / max(inputs.numel(), 1)
    kept = (targets != ignore_index).sum()
    return total / (kept * inputs.shape[-1] if indices else kept).clamp(min=1)


def _empty_loss(inputs: Tensor, like: Tensor, total: bool) -> Tensor:
    return inputs.new_empty((), dtype=_wide(inputs)) if total else inputs.new_empty(like.shape)


@torch.library.register_fake("cvops::sigmoid_focal_loss")
def _fake_sigmoid(
    inputs: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    class_alpha: Tensor | None,
    alpha: float,
    gamma: float,
    ignore_index: int | None,
    total: bool,
) -> Tensor:
    return _empty_loss(inputs, inputs, total)


@torch.library.register_fake("cvops::gaussian_focal_loss")
def _fake_gaussian(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, total: bool) -> Tensor:
    return _empty_loss(inputs, inputs, total)


@torch.library.register_fake("cvops::softmax_focal_loss")
def _fake_softmax(
    inputs: Tensor,
    targets: Tensor,
    class_alpha: Tensor | None,
    alpha: float,
    gamma: float,
    ignore_index: int,
    total: bool,
) -> Tensor:
    return _empty_loss(inputs, targets, total)


def _fake_backward(grad: Tensor, inputs: Tensor, *rest: Any) -> Tensor:
    return inputs.new_empty(inputs.shape)


for _op in ("sigmoid", "gaussian", "softmax"):
    torch.library.register_fake(f"cvops::{_op}_focal_loss_backward", _fake_backward)


def _save_sigmoid(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, targets, weight, class_alpha, *ctx.options = inputs[:7]
    ctx.save_for_backward(logits, targets, weight, class_alpha)


def _backward_sigmoid(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs, targets, weight, class_alpha = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 8
    if ctx.needs_input_grad[0]:
        grads[0] = _sigmoid_backward(grad, inputs, targets, weight, class_alpha, *ctx.options)
    if ctx.needs_input_grad[1] and targets.is_floating_point():
        alpha, gamma, _ = ctx.options
        slope = _target_slope(inputs, targets, class_alpha if class_alpha is not None else alpha, gamma)
        if weight is not None:
            slope = slope * (weight if weight.ndim == inputs.ndim else weight.unsqueeze(-1))
        grads[1] = (grad * slope).to(targets.dtype)
    return tuple(grads)


def _save_sigmoid_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[5:]
    ctx.save_for_backward(*inputs[:5])


def _double_backward_sigmoid(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, inputs, targets, weight, class_alpha = ctx.saved_tensors
    alpha, gamma, ignore_index = ctx.options
    soft = ctx.needs_input_grad[2] and targets.is_floating_point()

    def loss(x: Tensor, t: Tensor = targets) -> Tensor:
        a = class_alpha if class_alpha is not None else alpha
        out = reference_sigmoid_focal_loss(x, t, a, gamma, ignore_index, weight, differentiable_targets=soft)
        return out if grad.ndim == x.ndim else out.to(_wide(x)).sum()

    wanted = (inputs, targets) if soft else (inputs,)
    grads = list(double_backward(loss, wanted, grad, [grad_grad] + [None] * (len(wanted) - 1)))
    return *grads, *[None] * (8 - len(grads))


def _save_gaussian(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[2:4]
    ctx.save_for_backward(*inputs[:2])


def _backward_gaussian(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs, targets = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 5
    if ctx.needs_input_grad[0]:
        grads[0] = _gaussian_backward(grad, inputs, targets, *ctx.options)
    if ctx.needs_input_grad[1]:
        alpha, gamma = ctx.options
        u = torch.where(targets == 1, 1, 1 - targets.to(_wide(inputs)))
        penalty = reference_gaussian_focal_loss(inputs.to(_wide(inputs)), torch.zeros_like(u), alpha, gamma)
        slope = torch.where(targets == 1, 0, -gamma * u ** (gamma - 1) * penalty)
        grads[1] = (grad * slope).to(targets.dtype)
    return tuple(grads)


def _save_gaussian_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _double_backward_gaussian(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, inputs, targets = ctx.saved_tensors

    def loss(x: Tensor, t: Tensor) -> Tensor:
        out = reference_gaussian_focal_loss(x, t, *ctx.options)
        return out if grad.ndim == x.ndim else out.to(_wide(x)).sum()

    return *double_backward(loss, (inputs, targets), grad, [grad_grad, None]), None, None


def _save_softmax(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[3:6]
    ctx.save_for_backward(*inputs[:3])


def _backward_softmax(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _softmax_backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * 6


def _save_softmax_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _double_backward_softmax(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, inputs, targets, class_alpha = ctx.saved_tensors
    alpha, gamma, ignore_index = ctx.options

    def loss(x: Tensor) -> Tensor:
        a = class_alpha if class_alpha is not None else alpha
        out = reference_softmax_focal_loss(x, targets, a, gamma, ignore_index)
        return out if grad.ndim == targets.ndim else out.to(_wide(x)).sum()

    return *double_backward(loss, (inputs,), grad, [grad_grad]), *[None] * 5


def _per_sample(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of a sum per sample, spread over the losses of the sample; others as they are."""
    return grad.reshape(-1, *[1] * (like.ndim - 1)).expand(like.shape) if grad.ndim == 1 != like.ndim else grad


def _sum_samples(loss: Tensor, total: bool) -> Tensor:
    return loss.to(_wide(loss)).flatten(1).sum(1) if total else loss


def _alpha_is_shared(class_alpha: Tensor | None, dim: int | None) -> None:
    if class_alpha is not None and dim is not None:
        raise NotImplementedError("vmap over alpha: one alpha must serve all samples")


def _vmap_sigmoid(info: Any, in_dims: Any, inputs: Any, targets: Any, weight: Any, *rest: Any) -> Any:
    _alpha_is_shared(rest[0], in_dims[3])
    x, t = batch_first(info, in_dims, (inputs, targets))
    w = None if weight is None else batch_first(info, in_dims[2:], (weight,))[0]
    *options, total = rest
    if x.ndim == 1:  # scalars: the batch is not a class dimension
        x, t, w = x.unsqueeze(1), t.unsqueeze(1), None if w is None else w.unsqueeze(1)
        return _sum_samples(_sigmoid(x, t, w, *options, False).squeeze(1), False), 0
    return _sum_samples(_sigmoid(x, t, w, *options, False), total), 0


def _vmap_sigmoid_backward(
    info: Any, in_dims: Any, grad: Any, inputs: Any, targets: Any, weight: Any, *rest: Any
) -> Any:
    _alpha_is_shared(rest[0], in_dims[4])
    g, x, t = batch_first(info, in_dims, (grad, inputs, targets))
    w = None if weight is None else batch_first(info, in_dims[3:], (weight,))[0]
    return _sigmoid_backward(_per_sample(g, x), x, t, w, *rest), 0


def _vmap_gaussian(info: Any, in_dims: Any, inputs: Any, targets: Any, alpha: float, gamma: float, total: bool) -> Any:
    x, t = batch_first(info, in_dims, (inputs, targets))
    return _sum_samples(_gaussian(x, t, alpha, gamma, False), total), 0


def _vmap_gaussian_backward(info: Any, in_dims: Any, grad: Any, inputs: Any, targets: Any, *options: Any) -> Any:
    g, x, t = batch_first(info, in_dims, (grad, inputs, targets))
    return _gaussian_backward(_per_sample(g, x), x, t, *options), 0


def _vmap_softmax(info: Any, in_dims: Any, inputs: Any, targets: Any, class_alpha: Any, *rest: Any) -> Any:
    _alpha_is_shared(class_alpha, in_dims[2])
    x, t = batch_first(info, in_dims, (inputs, targets))
    *options, total = rest
    loss = _softmax(x.flatten(0, 1), t.flatten(0, 1), class_alpha, *options, False).reshape(t.shape)
    return _sum_samples(loss, total), 0


def _vmap_softmax_backward(
    info: Any, in_dims: Any, grad: Any, inputs: Any, targets: Any, class_alpha: Any, *options: Any
) -> Any:
    _alpha_is_shared(class_alpha, in_dims[3])
    g, x, t = batch_first(info, in_dims, (grad, inputs, targets))
    g = _per_sample(g, t).flatten(0, 1)
    return _softmax_backward(g, x.flatten(0, 1), t.flatten(0, 1), class_alpha, *options).reshape(x.shape), 0


_sigmoid = differentiable("sigmoid_focal_loss", _save_sigmoid, _backward_sigmoid, _vmap_sigmoid)
_sigmoid_backward = differentiable(
    "sigmoid_focal_loss_backward", _save_sigmoid_backward, _double_backward_sigmoid, _vmap_sigmoid_backward
)
_gaussian = differentiable("gaussian_focal_loss", _save_gaussian, _backward_gaussian, _vmap_gaussian)
_gaussian_backward = differentiable(
    "gaussian_focal_loss_backward", _save_gaussian_backward, _double_backward_gaussian, _vmap_gaussian_backward
)
_softmax = differentiable("softmax_focal_loss", _save_softmax, _backward_softmax, _vmap_softmax)
_softmax_backward = differentiable(
    "softmax_focal_loss_backward", _save_softmax_backward, _double_backward_softmax, _vmap_softmax_backward
)
for _op in ("sigmoid", "gaussian", "softmax"):
    autocast_to(f"{_op}_focal_loss", torch.float32)


def _target_slope(inputs: Tensor, targets: Tensor, alpha: float | Tensor, gamma: float) -> Tensor:
    """d loss / d targets of the sigmoid form."""
    x, t = inputs.to(_wide(inputs)), targets.to(_wide(inputs))
    p, q = x.sigmoid(), (-x).sigmoid()
    ce = -t * F.logsigmoid(x) - (1 - t) * F.logsigmoid(-x)
    m = p * (1 - t) + q * t
    positive, negative = _alpha_pair(alpha, x)
    weight = positive * t + negative * (1 - t)
    slope = (positive - negative) * m**gamma * ce - weight * m**gamma * x
    return slope + weight * gamma * m ** (gamma - 1) * (q - p) * ce if gamma else slope


def _alpha_pair(alpha: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.as_tensor(alpha, dtype=x.dtype, device=x.device)
    return torch.where(a < 0, 1, a), torch.where(a < 0, 1, 1 - a)


def reference_sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    differentiable_targets: bool = False,
) -> Tensor:
    """Pure-torch oracle of :func:`sigmoid_focal_loss`, finite with its derivatives by `inputs`, whatever they are.

    At labels 0 and 1 the modulation ``m^gamma`` is ``exp(gamma log sigmoid(+-x))``, whose derivatives are bounded; that
    drops its derivative by the targets there, unless `differentiable_targets` asks for the plain power everywhere.
    """
    x = inputs.to(_wide(inputs))
    ignored = None if ignore_index is None else targets == ignore_index
    if targets.ndim < inputs.ndim:
        columns = torch.arange(inputs.shape[-1], device=inputs.device)
        t = (targets.unsqueeze(-1) == columns).to(x.dtype)
        ignored = None if ignored is None else ignored.unsqueeze(-1)
    else:
        t = targets.to(x.dtype) if targets.is_floating_point() else (targets != 0).to(x.dtype)
    if ignored is not None:
        x = torch.where(ignored, 0, x)
    below, above = F.logsigmoid(x), F.logsigmoid(-x)  # log p, log (1 - p)
    ce = -t * below - (1 - t) * above
    hard = torch.zeros_like(t, dtype=torch.bool) if differentiable_targets else (t == 0) | (t == 1)
    t_soft = torch.where(hard, 0.5, t)
    soft_power = (x.sigmoid() * (1 - t_soft) + (-x).sigmoid() * t_soft) ** gamma
    hard_power = (gamma * torch.where(t == 1, above, below)).exp()
    positive, negative = _alpha_pair(alpha, x)
    loss = (positive * t + negative * (1 - t)) * torch.where(hard, hard_power, soft_power) * ce
    if weight is not None:
        loss = loss * (weight if weight.ndim == inputs.ndim else weight.unsqueeze(-1))
    if ignored is not None:
        loss = torch.where(ignored, 0, loss)
    return loss.to(inputs.dtype)


def reference_gaussian_focal_loss(inputs: Tensor, targets: Tensor, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """Pure-torch oracle of :func:`gaussian_focal_loss`."""
    x, t = inputs.to(_wide(inputs)), targets.to(_wide(inputs))
    below, above = F.logsigmoid(x), F.logsigmoid(-x)
    peak = -(alpha * above).exp() * below
    rest = -((1 - torch.where(t == 1, 0, t)) ** gamma) * (alpha * below).exp() * above
    return torch.where(t == 1, peak, rest).to(inputs.dtype)


def reference_softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
) -> Tensor:
    """Pure-torch oracle of :func:`softmax_focal_loss`, ``[N, C, ...]`` and ``[N, ...]``, with finite derivatives."""
    ignored = targets == ignore_index
    x = torch.where(ignored.unsqueeze(1), 0, inputs.to(_wide(inputs)))
    t = torch.where(ignored, 0, targets)
    classes = torch.arange(x.shape[1], device=x.device).view(-1, *[1] * (t.ndim - 1))
    own = t.unsqueeze(1) == classes
    log_sum = x.logsumexp(1)
    nll = log_sum - x.gather(1, t.unsqueeze(1)).squeeze(1)
    log_others = torch.where(own, -1e30, x).logsumexp(1) - log_sum  # log (1 - p_t), without cancellation
    loss = (gamma * log_others).exp() * nll
    if isinstance(alpha, Tensor):
        loss = loss * alpha.to(x.dtype)[t]
    elif alpha is not None:
        loss = loss * alpha
    return torch.where(ignored, 0, loss).to(inputs.dtype)
