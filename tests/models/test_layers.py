"""The shared layers on their own: both padding conventions, rounding of widths, squeeze-and-excitation, the inverted
residual's shortcut, stochastic depth, initial values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn import (
    Conv2dSame,
    ConvNormAct,
    DropPath,
    InvertedResidual,
    SqueezeExcite,
    init_convnet,
    make_activation,
    round_channels,
    same_padding,
)
from cvops.ops.depthwise_conv2d import DepthwiseConv2d


def same_conv_by_definition(x: Tensor, weight: Tensor, stride: int, dilation: int, groups: int) -> Tensor:
    """TensorFlow's rule written out: output i looks at input i * stride - before + k * dilation, zeros outside."""
    size, kernel = x.shape[-1], weight.shape[-1]
    out = math.ceil(size / stride)
    before = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0) // 2
    padded = F.pad(x, (before, 3 * kernel * dilation) * 2)
    full = F.conv2d(padded, weight, stride=stride, dilation=dilation, groups=groups)
    return full[..., :out, :out]


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_is_tensorflow_s(kernel: int, stride: int, dilation: int, depthwise: bool) -> None:
    unit = ConvNormAct(
        4,
        4,
        kernel,
        stride,
        groups=4 if depthwise else 1,
        dilation=dilation,
        padding="same",
        norm=nn.Identity,
        act=None,
    )
    assert isinstance(unit.conv, DepthwiseConv2d) == depthwise
    for size in (7, 8, 9, 12):
        x = torch.randn(2, 4, size, size)
        weight = unit.conv.get_parameter("weight")
        want = same_conv_by_definition(x, weight, stride, dilation, 4 if depthwise else 1)
        torch.testing.assert_close(unit.conv(x), want)


def test_same_padding_of_a_rectangle() -> None:
    conv = Conv2dSame(3, 8, 3, stride=2)
    assert conv(torch.zeros(1, 3, 15, 32)).shape == (1, 8, 8, 16)
    assert [same_padding(size, 3, 2) for size in (1, 2, 3, 224)] == [(1, 1), (0, 1), (1, 1), (0, 1)]


def test_unit_keeps_the_names_of_torch_layers() -> None:
    for unit in (ConvNormAct(8, 8, 3, groups=8), ConvNormAct(8, 16, 3), ConvNormAct(8, 16, 3, 2, padding="same")):
        keys = list(unit.state_dict())
        assert keys[:3] == ["conv.weight", "norm.weight", "norm.bias"]


def test_depthwise_unit_with_a_multiplier() -> None:
    unit = ConvNormAct(4, 8, 3, groups=4, norm=nn.Identity, act=None)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(unit(x), F.conv2d(x, unit.conv.get_parameter("weight"), padding=1, groups=4))
    with pytest.raises(ValueError, match="4 channels cannot give 6"):
        ConvNormAct(4, 6, 3, groups=4)


def test_widths_round_as_in_the_reference_code() -> None:
    assert [round_channels(c) for c in (1, 11.2, 11.9, 12, 100, 33.6, 134.4)] == [8, 16, 16, 16, 104, 32, 136]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        make_activation("swish")
    with pytest.raises(ValueError, match="got 'valid'"):
        ConvNormAct(3, 8, padding="valid")  # type: ignore[arg-type]


def test_squeeze_excite_by_definition() -> None:
    layer = SqueezeExcite(6, 2, act="silu")
    x = torch.randn(3, 6, 5, 4)
    reduce, expand = layer.reduce, layer.expand
    hidden = F.silu(x.mean((2, 3)) @ reduce.weight[:, :, 0, 0].T + reduce.bias)
    gate = torch.sigmoid(hidden @ expand.weight[:, :, 0, 0].T + expand.bias)
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


@pytest.mark.parametrize(("out_channels", "stride", "shortcut"), [(8, 1, True), (8, 2, False), (16, 1, False)])
def test_shortcut_only_where_shapes_agree(out_channels: int, stride: int, shortcut: bool) -> None:
    block = InvertedResidual(8, out_channels, stride=stride, drop_path=0.5).eval()
    assert isinstance(block.drop_path, DropPath) == shortcut
    x = torch.randn(2, 8, 6, 6)
    nn.init.zeros_(block.project.norm.get_parameter("weight"))
    assert torch.equal(block(x), x if shortcut else torch.zeros(2, out_channels, 6 // stride, 6 // stride))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    y = layer(torch.ones(4000, 3, 2))
    per_sample = y.reshape(4000, -1)
    assert torch.equal(per_sample.min(1).values, per_sample.max(1).values)
    assert sorted(set(per_sample[:, 0].tolist())) == [0.0, pytest.approx(1 / 0.75)]
    assert abs(per_sample[:, 0].mean().item() - 1) < 0.03
    assert torch.equal(layer.eval()(y), y)


def test_initial_values_keep_the_size_of_activations() -> None:
    torch.manual_seed(0)
    wide, deep = nn.Conv2d(64, 128, 3), DepthwiseConv2d(256, 3, padding=1)
    model = nn.Sequential(wide, deep)
    init_convnet(model)
    assert wide.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert deep.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert wide.bias is not None
    assert wide.bias.abs().max() == 0
