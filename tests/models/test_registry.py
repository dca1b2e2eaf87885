"""The registry: names, aliases, overrides, infos, and what it says to mistakes."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

import cvops
from cvops.models import UnknownModelError, registry


def build_meta(name: str, **settings: object) -> nn.Module:
    with torch.device("meta"):
        return cvops.create_model(name, **settings)


@pytest.mark.parametrize("name", cvops.list_models())
def test_info_is_complete(name: str) -> None:
    info = cvops.model_info(name)
    assert info.name == name
    assert "http" in str(info.paper)
    if info.task == "classification":
        assert 0 < info.preprocess.crop <= 1
    # Nobody publishes weights of AmoebaNet-A, or of D as TensorFlow has it, in a format to read here; nor of these
    # detectors on MobileNetV2, or of the small ones that are for tests and little data.
    unpublished = ("amoebanet_a", "tf_amoebanet", "fasterrcnn_mobilenetv2", "ssd300_mobilenetv2")
    assert len(info.checkpoints) > 1 or name.startswith(unpublished) or name.endswith("_small")
    json.dumps(dict(info.checkpoints), default=asdict)


def test_lists_by_pattern_and_task() -> None:
    assert cvops.list_models("*lite0") == ["efficientnet_lite0", "tf_efficientnet_lite0"]
    assert cvops.list_models("lite0") == cvops.list_models("*lite0*")
    tasks = {cvops.model_info(name).task for name in cvops.list_models()}
    assert sorted(name for task in tasks for name in cvops.list_models(task=task)) == cvops.list_models()
    assert "fcos_resnet50_fpn" in cvops.list_models(task="detection")
    assert cvops.list_models("nothing") == []
    assert len([name for name in cvops.list_models() if name.startswith("mobilenetv2")]) == 7


def test_alias_builds_the_same_model() -> None:
    assert cvops.model_info("mobilenet_v2") == cvops.model_info("mobilenetv2_100")
    assert "mobilenet_v2" not in cvops.list_models()


def test_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UnknownModelError, match=r"'efficientnet-b0', did you mean .*efficientnet_b0"):
        cvops.create_model("efficientnet-b0")
    with pytest.raises(ValueError, match="unknown model"):
        cvops.model_info("")


def test_registering_a_name_twice_raises_and_adds_nothing() -> None:
    family = registry._MODELS["mobilenetv2_100"]
    variant = family.variants["mobilenetv2_100"]
    before = cvops.list_models()
    for names in ({"brand_new": variant}, {"brand_new": replace(variant, aliases=("efficientnet_b0",))}):
        with pytest.raises(ValueError, match="already registered"):
            registry.register(replace(family, variants=names))
    with pytest.raises(ValueError, match="already registered: same"):
        registry.register(replace(family, variants={"new": replace(variant, aliases=("same", "same"))}))
    assert cvops.list_models() == before


def test_overrides_reach_the_config_and_the_network() -> None:
    model = build_meta("efficientnet_b0", num_classes=7, in_chans=1, dropout=0.5, norm_eps=1e-2, drop_path=0.0)
    assert model.config.num_classes == 7
    assert model.head.fc.out_features == 7
    assert model.head.dropout.p == 0.5
    assert model.backbone.stem.conv.in_channels == 1
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-2}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dropuot": 0.1}, TypeError, "no setting 'dropuot', did you mean dropout"),
        ({"num_classes": -1}, ValueError, "num_classes must be 0 or more, got -1"),
        ({"in_chans": 0}, ValueError, "in_chans must be 1 or more, got 0"),
        ({"padding": "valid"}, ValueError, "padding must be 'symmetric' or 'same', got 'valid'"),
        ({"drop_path": 1.5}, ValueError, r"drop_path must be in \[0, 1\), got 1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_meta("efficientnet_b0", **settings)
