"""Drop-in for a live model of anybody's: exchanges layers for ones that run on cvops, in place, and back.

A layer keeps its object, parameters, buffers, hooks and names: only its class becomes a subclass with another
`forward`, so optimizers, state_dicts and references from elsewhere stay valid. Folding of batch norm, which does change
parameters, is a choice. Patching torchvision's functions is cvops/patch.py.
"""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.fx
from torch import Tensor, nn

from cvops import ops
from cvops.nn.norm import apply_frozen_norm, fold_norm, is_fixed, is_traced, is_watched, takes_frozen_norm
from cvops.ops._activation import FUSED_ACTIVATIONS


@dataclass(frozen=True)
class Change:
    """One layer: its name in the model, the class that it had, and what happened to it."""

    name: str
    layer: str
    done: str


@dataclass
class Rewrite:
    """What :func:`accelerate` did. `print` it for a summary; `restore()` takes everything back."""

    changes: list[Change] = field(default_factory=list)
    left: list[Change] = field(default_factory=list)  # could have been changed, and why it was not
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def restore(self) -> None:
        """Give every layer its class back and undo folding. Calling it twice is fine."""
        while self._undo:
            self._undo.pop()()

    def __str__(self) -> str:
        def lines(changes: list[Change]) -> list[str]:
            counts = Counter((change.layer, change.done) for change in changes)
            return [f"  {number:>4} x {layer}: {done}" for (layer, done), number in counts.items()]

        left = ["left as they are:", *lines(self.left)] if self.left else []
        return "\n".join([f"{len(self.changes)} layers changed", *lines(self.changes), *left])


def accelerate(model: nn.Module, *, fold_batch_norm: bool = False) -> Rewrite:
    """Rewrite `model` in place so that its layers run on cvops.

    Exchanged are depthwise convolutions (`nn.Conv2d` with `groups == in_channels`, timm's `Conv2dSame`), torchvision's
    RoIAlign, RoIPool, PSRoIAlign, PSRoIPool, MultiScaleRoIAlign, DeformConv2d, DropBlock2d / 3d and StochasticDepth,
    timm's DropBlock2d and DropPath, and the frozen batch norms of both: a convolution right before one scales its
    weights in each call, with gradients, instead of its maps. Subclasses of these with code of their own are left
    alone. Outputs agree to float32 rounding; random layers draw from another stream of torch's generator.

    Args:
        model: any module.
        fold_batch_norm: also fold batch norms that are in eval mode, or frozen, into the convolution before them, and
            activations into depthwise convolutions. Folded layers stay folded (frozen) if the model is put in training
            mode later, and their entries leave the state_dict, so this is for inference and frozen backbones. A block
            whose `forward` cannot be traced is left as it is and listed under `left`.

    Returns:
        A :class:`Rewrite`: what was changed, what was left and why, and `restore()`.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.BatchNorm2d(8)).eval()
    >>> print(cvops.accelerate(model, fold_batch_norm=True))
    2 layers changed
         1 x Conv2d: runs on cvops
         1 x BatchNorm2d: folded into 0
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    report = Rewrite()
    _exchange(model, _RULES, report)
    if fold_batch_norm:
        _fold(model, report)
    else:
        _join(model, report)
    _exchange(model, _FROZEN_NORMS, report)
    return report


def _exchange(model: nn.Module, rules: dict[str, Rule], report: Rewrite) -> None:
    for name, module in model.named_modules():
        rule = rules.get(_path(module))
        if rule is None:
            continue
        reason = rule.refuses(module)
        if reason is None:
            _set_class(module, report)
            report.changes.append(Change(name, type(module).__qualname__, "runs on cvops"))
        elif reason:
            report.left.append(Change(name, type(module).__qualname__, reason))


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _set_class(module: nn.Module, report: Rewrite) -> None:
    before = type(module)
    module.__class__ = accelerated_class(_path(module))
    report._undo.append(lambda: setattr(module, "__class__", before))


@dataclass(frozen=True)
class Rule:
    """For one class of layer: the forward that replaces its own, and a test that gives None (take it), a reason to
    leave it that is worth telling, or '' (not meant)."""

    forward: Callable[..., Any]
    refuses: Callable[[Any], str | None] = lambda module: None


@functools.cache
def accelerated_class(path: str) -> type:
    """The subclass that layers of the class at `path` ("torch.nn.modules.conv.Conv2d") become."""
    module, _, name = path.rpartition(".")
    source = getattr(sys.modules.get(module) or importlib.import_module(module), name)

    def reduce(self: nn.Module, protocol: int) -> Any:  # copies and pickles stay accelerated
        return _blank, (path,), self.__dict__

    rule = _RULES.get(path) or _FROZEN_NORMS[path]
    body = {"forward": rule.forward, "__reduce_ex__": reduce, "__module__": __name__, "__qualname__": name}
    return type(name, (source,), body)


def _blank(path: str) -> Any:
    return object.__new__(accelerated_class(path))


def _refuses_conv(conv: Any) -> str | None:
    if conv.groups == 1 or conv.groups != conv.in_channels:
        return ""
    return None if conv.padding_mode == "zeros" else f"padding_mode={conv.padding_mode!r}"


def _conv(self: Any, input: Tensor) -> Tensor:
    weight, bias = _joined_weights(self, input)
    if _refuses_conv(self) is not None:
        return self._conv_forward(input, weight, bias)  # type: ignore[no-any-return]
    activation = self.__dict__.get("fused_activation")
    return ops.depthwise_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, activation=activation)


def _depthwise_same(self: Any, input: Tensor) -> Tensor:
    activation = self.__dict__.get("fused_activation")
    return ops.depthwise_conv2d(
        input, self.weight, self.bias, self.stride, "same", self.dilation, activation=activation
    )


def _roi_align(self: Any, input: Tensor, rois: Any) -> Tensor:
    return ops.roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


def _roi_pool(self: Any, input: Tensor, rois: Any) -> Tensor:
    return ops.roi_pool(input, rois, self.output_size, self.spatial_scale)


def _ps_roi_align(self: Any, input: Tensor, rois: Any) -> Tensor:
    return ops.ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)


def _ps_roi_pool(self: Any, input: Tensor, rois: Any) -> Tensor:
    return ops.ps_roi_pool(input, rois, self.output_size, self.spatial_scale)


def _multiscale_roi_align(self: Any, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Any]) -> Tensor:
    features = [value for name, value in x.items() if name in self.featmap_names]
    if self.scales is None or self.map_levels is None:
        setup = sys.modules["torchvision.ops.poolers"]._setup_scales
        self.scales, self.map_levels = setup(features, image_shapes, self.canonical_scale, self.canonical_level)
    return ops.multiscale_roi_align(
        features,
        boxes,
        self.output_size,
        self.scales,
        self.sampling_ratio,
        aligned=False,
        canonical_scale=self.canonical_scale,
        canonical_level=self.canonical_level,
    )


def _deform_conv(self: Any, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
    return ops.deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)


def _drop_block2d(self: Any, input: Tensor) -> Tensor:
    return ops.drop_block2d(input, self.p, self.block_size, self.inplace, self.eps, self.training)


def _drop_block3d(self: Any, input: Tensor) -> Tensor:
    return ops.drop_block3d(input, self.p, self.block_size, self.inplace, self.eps, self.training)


def _stochastic_depth(self: Any, input: Tensor) -> Tensor:
    return ops.drop_path(input, self.p, self.training, mode=self.mode)


def _timm_drop_path(self: Any, x: Tensor) -> Tensor:
    return ops.drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


def _refuses_timm_drop_block(block: Any) -> str | None:
    if block.with_noise or block.gamma_scale != 1 or not block.scale_by_keep:
        return "with_noise, gamma_scale or scale_by_keep=False"
    return None


def _timm_drop_block(self: Any, x: Tensor) -> Tensor:
    if not self.training or not self.drop_prob:
        return x
    if not self.couple_channels:
        return ops.drop_block2d(x, self.drop_prob, self.block_size, self.inplace)
    shared = ops.drop_block2d(x.new_ones(x.shape[0], 1, *x.shape[2:]), self.drop_prob, self.block_size)
    return x.mul_(shared) if self.inplace else x * shared


_RULES: dict[str, Rule] = {
    "torch.nn.modules.conv.Conv2d": Rule(_conv, _refuses_conv),
    "timm.layers.conv2d_same.Conv2dSame": Rule(_depthwise_same, _refuses_conv),
    "timm.layers.drop.DropBlock2d": Rule(_timm_drop_block, _refuses_timm_drop_block),
    "timm.layers.drop.DropPath": Rule(_timm_drop_path),
    "torchvision.ops.deform_conv.DeformConv2d": Rule(_deform_conv),
    "torchvision.ops.drop_block.DropBlock2d": Rule(_drop_block2d),
    "torchvision.ops.drop_block.DropBlock3d": Rule(_drop_block3d),
    "torchvision.ops.poolers.MultiScaleRoIAlign": Rule(_multiscale_roi_align),
    "torchvision.ops.ps_roi_align.PSRoIAlign": Rule(_ps_roi_align),
    "torchvision.ops.ps_roi_pool.PSRoIPool": Rule(_ps_roi_pool),
    "torchvision.ops.roi_align.RoIAlign": Rule(_roi_align),
    "torchvision.ops.roi_pool.RoIPool": Rule(_roi_pool),
    "torchvision.ops.stochastic_depth.StochasticDepth": Rule(_stochastic_depth),
}


# Frozen batch norms. Behind a convolution, which then has the norm beside it, the norm only passes on what it gets.


def _joined_weights(conv: Any, input: Tensor) -> tuple[Tensor, Tensor | None]:
    norm = conv.__dict__.get("frozen_norm")
    if norm is None or not _are_joined(conv, norm, input):
        return conv.weight, conv.bias
    return fold_norm(norm, conv.weight, conv.bias)


def _are_joined(conv: Any, norm: Any, x: Tensor) -> bool:
    """Asked by both, with the input and the output of `conv`, to the same answer: hooks and tracers see the parts. So
    do replicas on another device, whose partner stays on the first."""
    same_device = conv.weight.device == norm.running_var.device
    return same_device and not (is_traced(x) or is_watched(conv) or is_watched(norm))


def _frozen_norm(self: Any, x: Tensor) -> Tensor:
    conv, replaced = self.__dict__.get("frozen_conv"), cast(Any, type(self).__base__)
    if conv is not None and _are_joined(conv, self, x):
        normed = x
    elif takes_frozen_norm(self, x):
        normed = apply_frozen_norm(self, x)
    else:
        return replaced.forward(self, x)  # type: ignore[no-any-return]
    return self.act(self.drop(normed)) if hasattr(self, "act") else normed  # timm's has them


_FROZEN_NORMS: dict[str, Rule] = {
    "timm.layers.norm_act.FrozenBatchNormAct2d": Rule(_frozen_norm),
    "torchvision.ops.misc.FrozenBatchNorm2d": Rule(_frozen_norm),
}


def _is_frozen(norm: nn.Module) -> bool:
    return _path(norm) in _FROZEN_NORMS


def _join(model: nn.Module, report: Rewrite) -> None:
    for parent, prefix, conv_name, norm_name, _ in _runs(model, _is_frozen):
        conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
        if _path(conv) == "torch.nn.modules.conv.Conv2d":
            _set_class(conv, report)
        elif type(conv) is not accelerated_class("torch.nn.modules.conv.Conv2d"):
            continue
        _set_class(norm, report)
        for layer, key, other in ((conv, "frozen_norm", norm), (norm, "frozen_conv", conv)):
            layer.__dict__[key] = other  # no submodule of it
            report._undo.append(functools.partial(layer.__dict__.pop, key))
        done = f"scales the weights of {conv_name}"
        report.changes.append(Change(f"{prefix}.{norm_name}".lstrip("."), type(norm).__name__, done))


# Folding once and for all. A parent's forward is traced with all of its children as leaves; what counts is a
# convolution whose result is read by one batch norm only.


class _ChildrenAreLeaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _can_fold(norm: nn.Module) -> bool:
    return is_fixed(norm) or _is_frozen(norm) or type(norm).forward is _frozen_norm


def _fold(model: nn.Module, report: Rewrite) -> None:
    for run in _runs(model, _can_fold, report):
        _fold_one(*run, report)


Run = tuple[nn.Module, str, str, str, str | None]
"""A module and its name; the names in it of a convolution, batch norm, and activation or None, that follow each other
and nothing else reads between."""


def _runs(model: nn.Module, is_norm: Callable[[nn.Module], bool], report: Rewrite | None = None) -> Iterator[Run]:
    """All runs of layers that have one place in the model; what cannot be traced is listed in the report."""
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for prefix, parent in list(model.named_modules()):
        norms = [child for child in parent.children() if is_norm(child)]
        if not norms:
            continue
        try:
            graph = _ChildrenAreLeaves().trace(parent)
        except Exception as error:  # whatever a forward does that cannot be traced, it is left as it is
            why = f"not folded: forward of {type(parent).__name__} cannot be traced ({type(error).__name__})"
            if report is not None:
                report.left += [Change(prefix, type(norm).__name__, why) for norm in norms]
            continue
        for conv_name, norm_name, act_name in _runs_of(graph, parent, is_norm):
            if all(places[id(parent.get_submodule(name))] == 1 for name in (conv_name, norm_name)):
                yield parent, prefix, conv_name, norm_name, act_name


def _runs_of(
    graph: torch.fx.Graph, parent: nn.Module, is_norm: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, str, str | None]]:
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def only_reader(node: torch.fx.Node) -> torch.fx.Node | None:
        readers = list(node.users)
        alone = len(readers) == 1 and readers[0].op == "call_module" and readers[0].args == (node,)
        return readers[0] if alone and calls[readers[0].target] == 1 else None

    for node in graph.nodes:
        if node.op != "call_module" or calls[node.target] != 1:
            continue
        conv = parent.get_submodule(str(node.target))
        norm = only_reader(node)
        if not isinstance(conv, nn.Conv2d) or norm is None or not is_norm(parent.get_submodule(str(norm.target))):
            continue
        act = only_reader(norm)
        fusable = act is not None and type(parent.get_submodule(str(act.target))) in FUSED_ACTIVATIONS
        yield str(node.target), str(norm.target), str(act.target) if fusable and act is not None else None


def _fold_one(
    parent: nn.Module, prefix: str, conv_name: str, norm_name: str, act_name: str | None, report: Rewrite
) -> None:
    conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
    folded, rest = _folded(conv, norm), nn.Sequential()
    for name in ("drop", "act"):  # timm's BatchNormAct2d
        layer = getattr(norm, name, None)
        if isinstance(layer, nn.Module) and not isinstance(layer, nn.Identity):
            rest.append(layer)
    is_depthwise = type(conv).__module__ == __name__ and _refuses_conv(conv) is None
    if is_depthwise and len(rest) == 1 and type(rest[0]) in FUSED_ACTIVATIONS:
        folded.fused_activation = FUSED_ACTIVATIONS[type(rest[0])]
        rest = nn.Sequential()
    elif is_depthwise and len(rest) == 0 and act_name is not None:
        act = parent.get_submodule(act_name)
        folded.fused_activation = FUSED_ACTIVATIONS[type(act)]
        _put(parent, act_name, nn.Identity(), report)
        report.changes.append(Change(f"{prefix}.{act_name}".lstrip("."), type(act).__name__, f"fused into {conv_name}"))
    _put(parent, conv_name, folded, report)
    _put(parent, norm_name, rest if len(rest) else nn.Identity(), report)
    report.changes.append(Change(f"{prefix}.{norm_name}".lstrip("."), type(norm).__name__, f"folded into {conv_name}"))


@torch.no_grad()
def _folded(conv: Any, norm: Any) -> Any:
    """A convolution that computes norm(conv(x)). It shares nothing with `conv`, which stays as it was."""
    bias = None if conv.bias is None else conv.bias.double()
    weight, bias = fold_norm(norm, conv.weight.double(), bias)
    folded = copy.copy(conv)
    folded.__dict__.pop("frozen_norm", None)  # which an earlier call joined it with
    folded._parameters = dict(conv._parameters)
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), conv.weight.requires_grad)
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype), conv.weight.requires_grad)
    return folded


def _put(parent: nn.Module, name: str, module: nn.Module, report: Rewrite) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = parent.get_submodule(owner_name)
    before = owner._modules[leaf]
    module.train(before.training if before is not None else False)
    owner._modules[leaf] = module
    report._undo.append(lambda: owner._modules.__setitem__(leaf, before))
