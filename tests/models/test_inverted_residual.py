"""MobileNetV2 and EfficientNet beyond what the registry's tests ask: dilation, and settings that are wrong."""

from typing import Any

import pytest
import torch
from peers import images, randomise
from torch import nn

import cvops
from cvops.models.backbone import InvertedResidualConfig, InvertedResidualNet, Stage


@pytest.mark.parametrize(
    ("name", "output_stride"), [("mobilenetv2_035", 8), ("mobilenetv2_035", 16), ("tf_efficientnet_lite0", 8)]
)
def test_output_stride_is_timm_s(name: str, output_stride: int) -> None:
    timm = pytest.importorskip("timm")
    peer = randomise(timm.create_model(name, output_stride=output_stride)).eval()
    model = cvops.create_model(name, output_stride=output_stride, weights=peer.state_dict()).eval()
    batch = images(1, 64, 81)
    with torch.inference_mode():
        want = peer(batch)
        assert (model(batch) - want).abs().max() < 1e-4 * want.abs().max()
        maps = model.features(batch)
    assert model.feature_info.channels == cvops.create_model(name).feature_info.channels
    assert model.feature_info.strides == tuple(min(s, output_stride) for s in (2, 4, 8, 16, 32))
    assert [m.shape[2] for m in maps] == [64 // s for s in model.feature_info.strides]


def test_dilation_keeps_the_values_and_adds_those_between() -> None:
    table = [Stage(1, 8, 1, 1), Stage(2, 12, 2, 2), Stage(2, 16, 2, 2), Stage(2, 20, 2, 2, kernel=5)]
    strided = randomise(InvertedResidualNet(InvertedResidualConfig(), 8, table))
    dense = InvertedResidualNet(InvertedResidualConfig(output_stride=8), 8, table).eval()
    dense.load_state_dict(strided.state_dict())
    batch = images(1, 64, 49)
    with torch.inference_mode():
        want, got = strided.features(batch)[-1], dense.features(batch)[-1]
    torch.testing.assert_close(got[..., ::2, ::2], want)
    assert got[..., 1::2, 1::2].abs().max() > 0


def test_norms_have_the_settings() -> None:
    net = InvertedResidualNet(InvertedResidualConfig(norm_eps=1e-2, norm_momentum=0.3), 8, [Stage(1, 8, 1, 1)])
    assert {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-2, 0.3)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.5}, r"dropout must be in \[0, 1\), got -0.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cvops.create_model("mobilenetv2_035", **settings)
