"""Xception, Inception-ResNet, NASNet and AmoebaNet beyond what the registry's tests see: their layers by definition,
multiply-adds, dilation, ScheduledDropPath."""

import math

import pytest
import torch
import torch.nn.functional as F
from peers import images, randomise
from torch import Tensor, nn

import cvops
from cvops.models.amoebanet import AmoebaNetConfig, build_amoebanet
from cvops.models.classifier import ImageClassifier
from cvops.models.nasnet import NASNetConfig, build_nasnet
from cvops.nn import Pool2d, SeparableConvNormAct, SeparableTwice, fuse, set_drop_progress
from cvops.nn.cells import ReduceByTwoPaths, make_operation
from cvops.ops import ScheduledDropPath
from cvops.ops.depthwise_conv2d import DepthwiseConv2d


def tiny_nasnet(**settings: object) -> ImageClassifier:
    torch.manual_seed(0)
    config = NASNetConfig(penultimate=192, repeats=2, stem_channels=8, num_classes=5, **settings)
    return build_nasnet(config)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 6, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_pooling_pads_as_tensorflow_and_counts_what_is_inside(kind: str, kernel: int, stride: int, size: int) -> None:
    x = torch.randn(2, 3, size, size + 1)
    out = [math.ceil(n / stride) for n in x.shape[2:]]
    want = torch.empty(2, 3, *out)
    before = [max((o - 1) * stride + kernel - n, 0) // 2 for o, n in zip(out, x.shape[2:], strict=True)]
    for i in range(out[0]):
        for j in range(out[1]):
            top, left = i * stride - before[0], j * stride - before[1]
            window = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            want[:, :, i, j] = window.amax((2, 3)) if kind == "max" else window.mean((2, 3))
    torch.testing.assert_close(Pool2d(kind, kernel, stride, padding="same")(x), want)  # type: ignore[arg-type]


def test_symmetric_pooling_is_torch_s() -> None:
    x = torch.randn(1, 2, 6, 7)
    assert torch.equal(Pool2d("max", 3, 2)(x), F.max_pool2d(x, 3, 2, 1))
    assert torch.equal(Pool2d("mean", 3, 2)(x), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False))
    assert torch.equal(Pool2d("max", 3, dilation=2)(x), F.max_pool2d(F.pad(x, [2] * 4, value=-99), 3, 1, dilation=2))
    with pytest.raises(ValueError, match="kind must be 'max' or 'mean', got 'min'"):
        Pool2d("min", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride 1 can be dilated"):
        Pool2d("max", 3, 2, dilation=2)


def test_separable_convolution_by_definition() -> None:
    layer = randomise_norms(SeparableConvNormAct(4, 6, 3, 2, dilation=2)).eval()
    x = torch.randn(2, 4, 9, 8)
    depthwise, unit = layer.depthwise.weight, layer.pointwise
    y = F.conv2d(F.conv2d(x, depthwise, None, 2, 2, 2, groups=4), unit.conv.get_parameter("weight"))
    torch.testing.assert_close(layer(x), F.relu(unit.norm(y)))
    twice = randomise_norms(SeparableTwice(4, 6, 5, 2, padding="same")).eval()
    assert twice(x).min() < 0
    torch.testing.assert_close(fuse(twice)(x), twice(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fuse(twice).modules())


def randomise_norms(layer: nn.Module) -> nn.Module:
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert value is not None
                value.uniform_(0.5, 1.5)
    return layer


@pytest.mark.parametrize("channels", [6, 7])
def test_two_paths_see_even_and_odd_pixels(channels: int) -> None:
    layer = ReduceByTwoPaths(3, channels).eval()
    for size in ((1, 2), (5, 6)):
        x = torch.randn(2, 3, *size)
        even = F.conv2d(x[:, :, ::2, ::2], layer.even.weight)
        odd = F.conv2d(F.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2], layer.odd.weight)
        want = torch.cat([even, odd, even.new_zeros(2, channels % 2, *even.shape[2:])], 1)
        torch.testing.assert_close(layer(x), want / math.sqrt(1 + 1e-5))


def test_operations_change_width_and_stride() -> None:
    x = torch.randn(1, 8, 7, 6)
    for name in ("none", "1x1", "3x3", "1x7_7x1", "sep_3x3", "sep_5x5", "sep_7x7", "mean_3x3", "max_2x2", "max_3x3"):
        for padding in ("same", "symmetric"):
            for stride, shape in ((1, (1, 12, 7, 6)), (2, (1, 12, 4, 3))):
                operation = make_operation(name, 8, 12, stride, padding=padding)  # type: ignore[arg-type]
                assert operation(x).shape == shape, name
    with pytest.raises(ValueError, match="unknown operation 'conv'"):
        make_operation("conv", 8, 8)  # type: ignore[arg-type]


# --- networks ---------------------------------------------------------------------------------------------------------


def multiply_adds(name: str, side: int) -> float:
    """Of convolutions and linear layers, in billions."""
    total = 0

    def count(layer: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.get_parameter("weight")[0].numel()

    with torch.device("meta"):
        model = cvops.create_model(name).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | DepthwiseConv2d | nn.Linear):
                layer.register_forward_hook(count)
        model(torch.empty(1, 3, side, side))
    return total / 1e9


@pytest.mark.parametrize(
    ("name", "side", "billions"),
    [
        ("xception", 299, 8.357),
        ("inception_resnet_v2", 299, 13.156),
        ("nasnetalarge", 331, 23.783),
        ("nasnetamobile", 224, 0.564),  # as published; pretrainedmodels pads, crops and counts 0.568
        ("amoebanet_a_4_50", 224, 0.555),
        ("amoebanet_a_6_190", 331, 23.133),
        ("amoebanet_a_6_448", 299, 103.888),
        ("amoebanet_d_18_208", 224, 10.019),
        ("amoebanet_d_18_256", 224, 15.170),
    ],
)
def test_multiply_adds_are_those_counted_elsewhere(name: str, side: int, billions: float) -> None:
    assert round(multiply_adds(name, side), 3) == billions


def test_dilation_keeps_the_values_and_adds_those_between() -> None:
    strided = randomise(cvops.create_model("xception")).eval()
    batch = images(1, 79, 64)
    with torch.inference_mode():
        maps = strided.features(batch)
        for output_stride in (8, 16):
            dense = cvops.create_model("xception", weights=strided.state_dict(), output_stride=output_stride).eval()
            info = dense.feature_info
            assert info.strides == tuple(min(s, output_stride) for s in (2, 4, 8, 16, 32))
            for want, got, stride in zip(maps, dense.features(batch), strided.feature_info.strides, strict=True):
                step = max(1, stride // output_stride)
                assert (got[..., ::step, ::step] - want).abs().max() < 1e-5 * want.abs().max()
                assert got.numel() == want.numel() or got[..., 1::2, 1::2].abs().max() > 0
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        cvops.create_model("xception", output_stride=4)


# --- regularisation and memory ----------------------------------------------------------------------------------------


def test_scheduled_drop_path_grows_with_depth_and_training() -> None:
    model = tiny_nasnet(drop_path=0.4)
    layers = [layer for layer in model.modules() if isinstance(layer, ScheduledDropPath)]
    assert [layer.layer / layer.layers for layer in layers] == [(i + 1) / 10 for i in range(10)]
    assert {layer.p for layer in layers} == {0.4}
    assert {layer.step / layer.steps for layer in layers} == {1.0}  # the full rate, until the schedule is told
    set_drop_progress(model, 0.25)
    assert {layer.step / layer.steps for layer in layers} == {0.25}
    assert not any(isinstance(layer, ScheduledDropPath) for layer in tiny_nasnet().modules())


def test_drop_path_acts_in_training_and_not_before_the_schedule_begins() -> None:
    model, plain = tiny_nasnet(drop_path=0.6).train(), tiny_nasnet().train()
    plain.load_state_dict(model.state_dict())
    batch = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        assert not torch.equal(model(batch), plain(batch))
        set_drop_progress(model, 0.0)
        assert torch.equal(model(batch), plain(batch))


def test_drop_path_of_a_cell_leaves_the_identity_alone() -> None:
    model = tiny_nasnet(drop_path=1.0).train()
    cell = model.backbone.stages[2][-1]
    x = torch.randn(2, cell.current.conv.in_channels, 6, 6)
    previous = torch.randn(2, cell.previous.conv.in_channels, 6, 6)
    states = cell(x, previous).chunk(6, 1)
    kept = cell.previous(F.relu(previous))
    torch.testing.assert_close(states[0], kept)  # h_(i-1) itself
    torch.testing.assert_close(states[3], kept)  # a dropped mean, plus h_(i-1)
    assert states[1].abs().max() == 0  # two dropped convolutions
    torch.testing.assert_close(states[5], cell.current(F.relu(x)))


def tiny_amoebanet(**settings: object) -> ImageClassifier:
    torch.manual_seed(0)
    return build_amoebanet(AmoebaNetConfig(repeats=1, filters=16, num_classes=5, **settings))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NASNetConfig(penultimate=100), "multiple of 96, got 100"),
        (lambda: NASNetConfig(repeats=0), "repeats must be 1 or more"),
        (lambda: AmoebaNetConfig(cell="C"), "cell must be one of A, D, got 'C'"),
        (lambda: AmoebaNetConfig(filters=31), "filters even and 8 or more, got 6 and 31"),
    ],
)
def test_bad_settings_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
