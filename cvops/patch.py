"""Drop-in for torchvision: its ops, and every model that uses them, run on cvops until the patch is undone.

Two layers. torchvision's own operators (`torchvision::nms`, `roi_align`, ...) get our kernels under the same names in
torch's dispatcher, so eager, scripted and already imported code all arrive there, and torchvision's Python checks and
signatures stay as they are. Functions that torchvision composes of tensor operations (box_iou, losses, drop_block, ...)
are exchanged wherever a loaded module holds them, and the forward of FrozenBatchNorm2d in its class. Rewriting the
layers of one model is cvops/rewrite.py.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
import threading
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from cvops import ops
from cvops.nn.norm import apply_frozen_norm, takes_frozen_norm

Function = Callable[..., Any]


class Patch(AbstractContextManager["Patch"]):
    """What :func:`torchvision` returns: undo it with `restore()` or by leaving the `with` block."""

    def __init__(self, swap: _Swap) -> None:
        self._swap: _Swap | None = swap
        self.replaced = tuple(swap.replaced)

    def restore(self) -> None:
        """Give torchvision its own functions back (when the last active patch is undone). Calling it twice is fine."""
        swap, self._swap = self._swap, None
        if swap is not None:
            swap.release()

    def __exit__(self, *error: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "restored" if self._swap is None else "active"
        return f"<cvops.patch.torchvision: {state}, {', '.join(self.replaced)}>"


def torchvision() -> Patch:
    """Make torchvision's ops run on cvops, in this process, until :meth:`Patch.restore`.

    Covers the operators nms, roi_align, roi_pool, ps_roi_align, ps_roi_pool and deform_conv2d (with their modules, in
    eager, scripted and traced code) and the functions batched_nms, box_iou, generalized_ / distance_ /
    complete_box_iou, the three IoU losses, sigmoid_focal_loss, drop_block2d / 3d, stochastic_depth, the pooling of
    MultiScaleRoIAlign, and FrozenBatchNorm2d. Signatures, module classes and errors for bad input stay torchvision's.
    A call that cvops does not take (quantized tensors, TorchScript tracing, focal loss with gamma 0, an unusual
    argument) runs torchvision's own code.

    Differences on purpose: batched_nms compares groups by id, NaN boxes are never kept, IoU of two empty boxes is 0,
    a RoI with a batch index outside of the batch is an error instead of a read of foreign memory, and random masks are
    drawn from another stream of torch's generator.

    Returns:
        A :class:`Patch`, which is a context manager. Patches nest; the outermost one restores.

    Raises:
        ImportError: if torchvision is not installed.

    >>> import torchvision
    >>> boxes, scores = torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9]]), torch.tensor([0.5, 0.9])
    >>> with cvops.patch.torchvision() as patch:
    ...     torchvision.ops.nms(boxes, scores, 0.5), "nms" in patch.replaced
    (tensor([1]), True)
    """
    return Patch(_Swap.acquire())


class _Swap:
    """The exchange itself: at most one at a time, counted."""

    _lock = threading.RLock()
    _active: _Swap | None = None

    @classmethod
    def acquire(cls) -> _Swap:
        with cls._lock:
            if cls._active is None:
                cls._active = cls()
            cls._active._holders += 1
            return cls._active

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._undo()
                type(self)._active = None

    def __init__(self) -> None:
        importlib.import_module("torchvision.ops")
        importlib.import_module("torchvision.models.detection")
        self._holders = 0
        self._library = torch.library.Library("torchvision", "IMPL")
        for name, kernel in _KERNELS.items():
            for key in ("CPU", "CUDA"):
                self._library.impl(name, kernel, key)
        self._pairs = [_exchange(path, ours, takes) for path, (ours, takes) in _FUNCTIONS.items()]
        _replace_everywhere(self._pairs)
        self._forwards = [_exchange(f"{path}.forward", ours, takes) for path, (ours, takes) in _MODULES.items()]
        for path, (_, wrapper) in zip(_MODULES, self._forwards, strict=True):
            pkgutil.resolve_name(path).forward = wrapper
        names = [*_KERNELS, *(path.rpartition(".")[2] for path in (*_FUNCTIONS, *_MODULES))]
        self.replaced = [name for name in names if not name.startswith("_")]

    def _undo(self) -> None:
        _replace_everywhere([(wrapper, original) for original, wrapper in self._pairs])
        for path, (original, _) in zip(_MODULES, self._forwards, strict=True):
            pkgutil.resolve_name(path).forward = original
        self._library._destroy()


def _exchange(path: str, ours: Function, takes: Function) -> tuple[Function, Function]:
    """torchvision's function at `path`, and what stands in for it."""
    original: Function = pkgutil.resolve_name(path)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            fits = torch._C._get_tracing_state() is None and takes(*args, **kwargs)
        except (TypeError, AttributeError):  # arguments of another number or type
            fits = False
        return ours(*args, **kwargs) if fits else original(*args, **kwargs)

    # torch.jit.script compiles the function under this name instead of the wrapper, whose arguments it cannot type.
    wrapper.__dict__.update({"__script_if_tracing_wrapper": True, "__original_fn": original})
    return original, wrapper


def _replace_everywhere(pairs: list[tuple[Function, Function]]) -> None:
    """Put the second of each pair where a loaded module has the first as an attribute; cvops keeps what it holds. Most
    modules have none, which is found out without a loop in Python: hundreds of thousands of attributes are loaded."""
    new = {id(old): replacement for old, replacement in pairs}
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType) and not new.keys().isdisjoint(map(id, vars(module).values())):
            if module.__name__.partition(".")[0] == "cvops":
                continue
            for name, value in list(vars(module).items()):
                if id(value) in new:
                    setattr(module, name, new[id(value)])


# torchvision's operators, and those of their gradients, in terms of ours. Registered for the backends only, so that
# torchvision's autograd stays above them: a Python kernel at the autograd key cannot be taken back without a trace.


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.ops.cvops.nms(boxes, scores, None, iou_threshold)


def _deform_conv2d(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
    modulation, lists = _deform_arguments(mask, geometry)
    return torch.ops.cvops.deform_conv2d(input, weight, offset, modulation, bias, *lists)


def _deform_conv2d_backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    modulation, lists = _deform_arguments(mask, geometry)
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = torch.ops.cvops.deform_conv2d_backward(grad, input, weight, offset, modulation, *lists, 7, deterministic)
    by_mask = torch.zeros_like(mask) if modulation is None else grads[3]
    return grads[0], grads[1], grads[2], by_mask, grad.sum((0, 2, 3))


def _deform_arguments(mask: Tensor, geometry: tuple[Any, ...]) -> tuple[Tensor | None, tuple[Any, ...]]:
    """Ours of stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups, use_mask."""
    *sizes, groups, offset_groups, use_mask = geometry
    return (mask if use_mask else None), (sizes[:2], sizes[2:4], sizes[4:6], groups, offset_groups)


def _pooling(name: str) -> Function:
    """The operator of ours with torchvision's arguments; like torchvision's, it wants one dtype."""

    def call(input: Tensor, rois: Tensor, *rest: Any) -> Any:
        if input.dtype != rois.dtype:
            raise RuntimeError(f"{name}: input and rois must have one dtype, got {input.dtype} and {rois.dtype}")
        return getattr(torch.ops.cvops, name)(input, rois, *rest)

    return call


_POOLINGS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
_KERNELS: dict[str, Function] = {
    "nms": _nms,
    "deform_conv2d": _deform_conv2d,
    "_deform_conv2d_backward": _deform_conv2d_backward,
    **{name: _pooling(name) for name in _POOLINGS},
    **{f"_{name}_backward": _pooling(f"{name}_backward") for name in _POOLINGS},
}


# torchvision's composed functions: ours, and a test of the arguments. What the test refuses, torchvision's own function
# gets, with its own errors.


def _are_boxes(*boxes: Any) -> bool:
    return (
        all(isinstance(b, Tensor) and b.ndim > 0 and b.shape[-1] == 4 and not b.is_complex() for b in boxes)
        and len({(b.dtype, b.device) for b in boxes}) == 1
    )


def _takes_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> bool:
    return fmt in ("xyxy", "xywh", "cxcywh") and _takes_matrix(boxes1, boxes2)


def _takes_matrix(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> bool:
    return _are_boxes(boxes1, boxes2) and boxes1.ndim == boxes2.ndim == 2


def _takes_pairs(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> bool:
    return reduction in _REDUCTIONS and _are_boxes(boxes1, boxes2) and boxes1.shape == boxes2.shape


def _takes_focal(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> bool:
    """With gamma 0 it is cross entropy, which callers compare with torch's to the last bit: torchvision's own code."""
    fits = inputs.shape == targets.shape and inputs.dtype == targets.dtype and inputs.is_floating_point()
    return fits and reduction in _REDUCTIONS and gamma > 0


def _takes_groups(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> bool:
    return boxes.numel() > 0 and boxes.ndim == 2 and boxes.is_floating_point() and not boxes.is_quantized


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return ops.batched_nms(boxes, scores, idxs.to(torch.int64), iou_threshold)


def _takes_maps(input: Tensor, *rest: Any, **named: Any) -> bool:
    return input.ndim == 4 and _takes_blocks(input, *rest, **named)


def _takes_volumes(input: Tensor, *rest: Any, **named: Any) -> bool:
    return input.ndim == 5 and _takes_blocks(input, *rest, **named)


def _takes_blocks(
    input: Tensor, p: float, block_size: int, inplace: bool = False, eps: float = 1e-6, training: bool = True
) -> bool:
    return 0 <= p <= 1 and block_size > 0 and input.is_floating_point()


def _takes_depth(input: Tensor, p: float, mode: str, training: bool = True) -> bool:
    return 0 <= p <= 1 and mode in ("batch", "row") and input.is_floating_point()


def _stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    return ops.drop_path(input, p, training, mode=mode)


def _takes_levels(features: list[Tensor], boxes: list[Tensor], *rest: Any, **named: Any) -> bool:
    scales, mapper = named.get("scales", rest[2:3]), named.get("mapper", rest[3] if len(rest) > 3 else None)
    kinds = {(t.dtype, t.device) for t in [*features, *boxes]}
    return bool(scales) and getattr(mapper, "eps", None) == 1e-6 and len(kinds) == 1 and len(features) > 1


def _multiscale_roi_align(
    features: list[Tensor], boxes: list[Tensor], output_size: Any, sampling_ratio: int, scales: Any, mapper: Any
) -> Tensor:
    return ops.multiscale_roi_align(
        features,
        boxes,
        output_size,
        scales,
        sampling_ratio,
        aligned=False,
        canonical_scale=mapper.s0,
        canonical_level=mapper.lvl0,
    )


_REDUCTIONS = ("none", "mean", "sum")
_FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "torchvision.ops.boxes.box_iou": (ops.box_iou, _takes_iou),
    "torchvision.ops.boxes.generalized_box_iou": (ops.generalized_box_iou, _takes_matrix),
    "torchvision.ops.boxes.distance_box_iou": (ops.distance_box_iou, _takes_matrix),
    "torchvision.ops.boxes.complete_box_iou": (ops.complete_box_iou, _takes_matrix),
    "torchvision.ops.boxes.batched_nms": (_batched_nms, _takes_groups),
    "torchvision.ops.giou_loss.generalized_box_iou_loss": (ops.generalized_box_iou_loss, _takes_pairs),
    "torchvision.ops.diou_loss.distance_box_iou_loss": (ops.distance_box_iou_loss, _takes_pairs),
    "torchvision.ops.ciou_loss.complete_box_iou_loss": (ops.complete_box_iou_loss, _takes_pairs),
    "torchvision.ops.focal_loss.sigmoid_focal_loss": (ops.sigmoid_focal_loss, _takes_focal),
    "torchvision.ops.drop_block.drop_block2d": (ops.drop_block2d, _takes_maps),
    "torchvision.ops.drop_block.drop_block3d": (ops.drop_block3d, _takes_volumes),
    "torchvision.ops.stochastic_depth.stochastic_depth": (_stochastic_depth, _takes_depth),
    "torchvision.ops.poolers._multiscale_roi_align": (_multiscale_roi_align, _takes_levels),
}
_MODULES: dict[str, tuple[Function, Function]] = {
    "torchvision.ops.misc.FrozenBatchNorm2d": (apply_frozen_norm, takes_frozen_norm),
}
