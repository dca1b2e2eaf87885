"""What every network has to do besides being right: features as declared, gradients everywhere, train and eval modes,
export, input checks. Parametrised over the registry where that is cheap, else one model of each kind."""

import copy
import pickle

import pytest
import torch

import cvops
from cvops.models import ImageClassifier

INFOS = [cvops.model_info(name) for name in cvops.list_models(task="classification")]
# The smallest model of each family, and the TensorFlow padding of those that have both.
SMALL = [
    min((info for info in INFOS if info.family == family), key=lambda info: info.parameters).name
    for family in dict.fromkeys(info.family for info in INFOS)
] + ["tf_efficientnet_b0"]

# Pixels that a map of a network without padding may be short of the declared size, as the backbones' docstrings say.
SHORT = {"Inception-ResNet": 4, "Xception": 3, "NASNet": 1, "AmoebaNet": 1, "SENet": 1}


def build(name: str, **settings: object) -> ImageClassifier:
    torch.manual_seed(0)
    model = cvops.create_model(name, **settings)
    assert isinstance(model, ImageClassifier)
    return model


@pytest.mark.parametrize("name", cvops.list_models(task="classification"))
def test_features_have_the_declared_channels_and_strides(name: str) -> None:
    with torch.device("meta"):
        model = cvops.create_model(name).eval()
        height, width = 96, max(65, model.backbone.min_size)
        maps = model.features(torch.empty(2, 3, height, width))
    info = model.feature_info
    assert info.strides == (2, 4, 8, 16, 32)
    # A network that pads takes any size and rounds up.
    slack = 0 if model.backbone.min_size == 1 else SHORT[cvops.model_info(name).family]
    for got, channels, stride in zip(maps, info.channels, info.strides, strict=True):
        assert got.shape[:2] == (2, channels)
        for size, whole in zip(got.shape[2:], (height, width), strict=True):
            assert 0 <= -(-whole // stride) - size <= slack


def test_features_can_be_chosen() -> None:
    model = build("mobilenetv2_035").eval()
    with torch.inference_mode():
        maps = model.features(torch.ones(1, 3, 64, 64))
        chosen = model.features(torch.ones(1, 3, 64, 64), out_indices=(-1, 1))
    assert len(chosen) == 2
    assert torch.equal(chosen[0], maps[4])
    assert torch.equal(chosen[1], maps[1])


@pytest.mark.parametrize("name", [name for name in SMALL if "timm" in cvops.model_info(name).checkpoints])
def test_features_equal_timm_s(name: str) -> None:
    timm = pytest.importorskip("timm")
    from peers import TIMM_NAMES, images, randomise, smallest_side

    peer = randomise(timm.create_model(TIMM_NAMES.get(name, name)), side=smallest_side(name)).eval()
    extractor = timm.create_model(TIMM_NAMES.get(name, name), features_only=True).eval()
    # timm taps some networks from outside: their layers are one level further down then.
    getattr(extractor, "body", extractor).load_state_dict(peer.state_dict(), strict=False)
    model = build(name, weights=peer.state_dict()).eval()
    with torch.inference_mode():
        batch = images(1, smallest_side(name), smallest_side(name) + 1)
        for got, want in zip(model.features(batch), extractor(batch), strict=True):
            assert (got - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_and_the_input(name: str) -> None:
    model = build(name, num_classes=5, drop_path=0.0).train()
    side = max(64, model.backbone.min_size)
    images = torch.randn(4, 3, side, side, requires_grad=True)
    torch.nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
    assert images.grad is not None
    assert images.grad.abs().max() > 0


def test_training_lowers_the_loss() -> None:
    model = build("mobilenetv2_035", num_classes=4, dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    images = torch.randn(8, 3, 64, 64) + torch.arange(8).view(8, 1, 1, 1) % 4
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(8) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_eval_is_deterministic_and_train_is_not(name: str) -> None:
    model = build(name, drop_path=0.5)
    side = max(64, model.backbone.min_size)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(images), model(images))
        first = model(images)[:1]
        assert (model(images[:1]) - first).abs().max() < 1e-5 * first.abs().max()
        model.train()
        assert not torch.equal(model(images), model(images))


def test_without_classes_the_model_returns_pooled_features() -> None:
    model = build("efficientnet_lite0", num_classes=0).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)


def test_channels_last_and_half_types() -> None:
    model = build("mobilenetv2_035").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        want = model(images)
        got = copy.deepcopy(model).to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        assert torch.allclose(got, want, atol=1e-5)
        assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 64)])
def test_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \[N, 3, H, W\], got \["):
        build("mobilenetv2_035").eval()(torch.zeros(shape))


@pytest.mark.parametrize("name", SMALL)
def test_exports_with_a_free_batch_size(name: str) -> None:
    model = build(name).eval()
    side = max(64, model.backbone.min_size)
    images = torch.randn(2, 3, side + 1, side)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    more = torch.randn(3, 3, side + 1, side)
    with torch.inference_mode():
        want = model(more)
        assert (program.module()(more) - want).abs().max() < 1e-5 * want.abs().max()


def test_traces_into_one_graph() -> None:
    model = build("tf_efficientnet_lite0").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(1, 3, 64, 65)
    with torch.no_grad():
        assert torch.allclose(compiled(images), model(images), atol=1e-5)


def test_copies_and_pickles() -> None:
    model = build("mobilenetv2_035").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(images), model(images))
