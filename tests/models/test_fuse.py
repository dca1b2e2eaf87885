"""Merging of fixed norms: by `fuse`, the same outputs with fewer layers and the original untouched; on every call of a
unit, the same outputs and gradients without a pass of the norm, and only where nobody can tell."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import cvops
from cvops.nn import ConvNormAct, fuse, make_norm
from cvops.ops.depthwise_conv2d import DepthwiseConv2d


@pytest.mark.parametrize("name", ["mobilenetv2_035", "efficientnet_b0", "tf_efficientnet_lite0"])
def test_outputs_agree_and_the_original_stays(name: str) -> None:
    from peers import images, randomise

    model = randomise(cvops.create_model(name)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model)
    batch = images(2, 64, 65)
    with torch.inference_mode():
        want, got = model(batch), fused(batch)
    assert (want - got).abs().max() < 1e-4 * want.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    depthwise = [layer for layer in fused.modules() if isinstance(layer, DepthwiseConv2d)]
    assert depthwise
    assert all(layer.activation in ("relu6", "silu") for layer in depthwise)


def test_other_norms_stay() -> None:
    unit = ConvNormAct(4, 8, norm=lambda channels: nn.GroupNorm(2, channels))
    assert isinstance(fuse(unit).norm, nn.GroupNorm)


def test_a_bias_before_the_norm_is_folded_too() -> None:
    unit = ConvNormAct(4, 8, bias=True).eval()
    nn.init.normal_(unit.norm.running_mean)
    nn.init.normal_(unit.conv.bias)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fuse(unit)(x), unit(x))


def test_fused_models_still_have_gradients() -> None:
    fused = fuse(cvops.create_model("mobilenetv2_035"))
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    fused(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


BIG, SMALL = (3, 16, 128, 128), (1, 16, 9, 8)  # more and fewer output elements than a fold costs
KINDS = ["pointwise", "strided, asymmetric", "grouped", "depthwise", "depthwise, asymmetric", "linear"]


def random_unit(kind: str, norm: str = "batch") -> ConvNormAct:
    """In float64, with statistics that matter; a batch norm is in eval mode."""
    options: dict[str, Any] = {
        "pointwise": {},
        "strided, asymmetric": {"kernel_size": 3, "stride": 2, "padding": "same", "bias": True, "out_channels": 64},
        "linear": {"act": None},
        "grouped": {"kernel_size": 3, "groups": 2, "act": "leaky_relu"},
        "depthwise": {"kernel_size": 3, "groups": 16, "act": "silu"},
        "depthwise, asymmetric": {"kernel_size": 5, "padding": "same", "groups": 16, "act": "hard_swish", "bias": True},
    }[kind]
    unit = ConvNormAct(16, options.pop("out_channels", 16), norm=make_norm(norm, eps=1e-3), **options).double()  # type: ignore[arg-type]
    for name, value in (*unit.named_parameters(), *unit.named_buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value.data, 0.5 if name == "norm.running_var" else -1.0)
    return unit.train(norm == "frozen")


def parts(unit: ConvNormAct, x: Tensor) -> Tensor:
    y: Tensor = unit.act(unit.norm(unit.conv(x)))
    return y


def count_norms(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> int:
    """How often `call` goes over maps for a norm alone, with torch's batch norm or ours."""
    calls = []
    with monkeypatch.context() as patch:
        for owner, name in ((nn.functional, "batch_norm"), (cvops.nn.norm, "frozen_batch_norm")):
            plain = getattr(owner, name)
            patch.setattr(owner, name, lambda *args, plain=plain, **kwargs: calls.append(1) or plain(*args, **kwargs))
        call()
    return len(calls)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_norm_costs_no_pass(kind: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = random_unit(kind, norm)
    x = torch.randn(BIG, dtype=torch.float64, requires_grad=True)
    wanted = [x, *unit.parameters()]
    assert count_norms(monkeypatch, lambda: unit(x)) == 0
    assert count_norms(monkeypatch, lambda: parts(unit, x)) == 1
    got, want = unit(x), parts(unit, x)
    torch.testing.assert_close(got, want)
    weights = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, wanted, weights), torch.autograd.grad(want, wanted, weights), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():  # where a depthwise kernel applies the activation as well
        torch.testing.assert_close(unit(x), want)


@pytest.mark.parametrize("shape", [SMALL, BIG], ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_no_map_is_too_small(
    kind: str, norm: str, form: torch.memory_format, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = random_unit(kind, norm).to(memory_format=form)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=form)
    before, want = x.clone(), parts(unit, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert count_norms(monkeypatch, lambda: unit(x)) == 0
            got = unit(x)
        torch.testing.assert_close(got, want)
        assert got.is_contiguous(memory_format=form)
    assert torch.equal(x, before)


def test_torch_func_gets_the_parts() -> None:
    unit, x = random_unit("pointwise"), torch.randn(4, *SMALL, dtype=torch.float64)
    want = torch.stack([parts(unit, one) for one in x])
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(unit)(x), want)
        _, moved = torch.func.jvp(unit, (x[0],), (x[1],))
        _, expected = torch.func.jvp(lambda one: parts(unit, one), (x[0],), (x[1],))
    torch.testing.assert_close(moved, expected)


def test_a_frozen_norm_keeps_nothing_for_the_backward() -> None:
    def kept(call: Callable[[], Any]) -> int:
        blocks: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: blocks.__setitem__(t.data_ptr(), t.nbytes) or t, lambda t: t
        ):
            call()
        return sum(blocks.values())

    unit, other, x = random_unit("pointwise", "frozen"), random_unit("pointwise"), torch.randn(BIG, dtype=torch.float64)
    least = kept(lambda: parts(other, x)) - 0.9 * x.nbytes
    assert kept(lambda: unit(x)) < least
    assert kept(lambda: parts(unit, x)) < least


@pytest.mark.parametrize("part", ["conv", "norm", "act"])
def test_hooks_see_the_parts(part: str) -> None:
    unit, x, seen = random_unit("depthwise"), torch.randn(BIG, dtype=torch.float64), []
    handle = unit.get_submodule(part).register_forward_hook(lambda layer, inputs, output: seen.append(output))
    want = unit(x)
    with torch.no_grad():
        torch.testing.assert_close(unit(x), want)
    handle.remove()
    assert len(seen) == 2
    torch.testing.assert_close(unit(x), want)
    assert len(seen) == 2


def test_only_what_pays_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = random_unit("pointwise")

    def norms(x: Tensor) -> int:
        return count_norms(monkeypatch, lambda: unit.to(x.dtype)(x))

    x = torch.randn(BIG)
    assert norms(x) == 0
    assert norms(torch.randn(SMALL)) == 1  # less work than the fold
    assert norms(x.bfloat16()) == 1  # scaled weights would be rounded
    with torch.autocast("cpu", torch.bfloat16):
        assert norms(x) == 1
    unit.train()
    before = unit.norm.running_mean.clone()
    assert norms(x) == 1
    assert not torch.equal(unit.norm.running_mean, before)


def test_a_subclass_of_the_norm_is_asked() -> None:
    class Doubling(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    unit = ConvNormAct(16, 16, norm=Doubling, act=None).eval()
    x = torch.randn(BIG)
    torch.testing.assert_close(unit(x), 2 * nn.functional.batch_norm(unit.conv(x), torch.zeros(16), torch.ones(16)))


def test_weights_that_a_hook_makes_are_left_to_it() -> None:
    unit, x = random_unit("pointwise"), torch.randn(BIG, dtype=torch.float64)
    torch.nn.utils.prune.random_unstructured(unit.conv, "weight", 0.5)
    torch.testing.assert_close(unit(x), parts(unit, x))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_pruned_norm_is_folded_as_it_is(name: str) -> None:
    unit, x = random_unit("pointwise"), torch.randn(SMALL, dtype=torch.float64)
    torch.nn.utils.prune.random_unstructured(unit.norm, name, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(unit(x), parts(unit, x))
        torch.testing.assert_close(fuse(unit)(x), parts(unit, x))


def test_an_activation_before_the_norm_stays_there() -> None:
    unit, x = random_unit("depthwise"), torch.randn(BIG, dtype=torch.float64)
    unit.conv.activation = "relu"
    torch.testing.assert_close(unit(x), parts(unit, x))


def test_exporters_get_the_parts() -> None:
    unit, x = random_unit("pointwise"), torch.randn(BIG, dtype=torch.float64)
    program = torch.export.export(unit, (x,))
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)
    traced = torch.fx.symbolic_trace(unit)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["conv", "norm", "act"]
    torch.testing.assert_close(program.module()(x), unit(x))
    with torch.no_grad():
        script = torch.jit.trace(unit, x)
    assert "aten::batch_norm" in str(script.inlined_graph)
    assert "cvops::" not in str(script.inlined_graph)
