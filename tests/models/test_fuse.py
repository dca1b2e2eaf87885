"""Folding for inference: the same outputs with fewer layers, and the original untouched."""

import pytest
import torch
from torch import nn

import cvops
from cvops.nn import ConvNormAct, fuse
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
