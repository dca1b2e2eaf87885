"""What every network has to do besides being right: features as declared, gradients everywhere, train and eval modes,
other numbers of classes and channels, memory formats and half types, checkpointing, compilation, export, input checks.
Every registered model is built on the meta device; what computes runs on the shallow ones of `shallow.py`."""

import copy
import pickle
from pathlib import Path

import onnxruntime
import pytest
import torch
from shallow import SMALL, build
from torch import Tensor

import cvops
from cvops.models import ImageClassifier

# Parameters as other people's code or papers count them.
PUBLISHED_PARAMETERS = {
    "mobilenetv2_100": 3_504_872,
    **dict(
        zip(
            (f"efficientnet_b{i}" for i in range(8)),
            (5_288_548, 7_794_184, 9_109_994, 12_233_232, 19_341_616, 30_389_784, 43_040_704, 66_347_960),
            strict=True,
        )
    ),
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "xception": 22_855_952,
    "inception_resnet_v2": 55_843_464,
    "nasnetalarge": 88_753_150,
    "nasnetamobile": 5_289_978,
    "amoebanet_d_18_208": 81_505_540,
    "amoebanet_d_18_256": 122_470_120,
    "tf_amoebanet_d_18_256": 121_911_016,
    "amoebanet_a_4_50": 5_086_898,
    "amoebanet_a_6_190": 86_718_765,
    "amoebanet_a_6_448": 468_151_184,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "legacy_seresnet50": 28_088_024,
    "legacy_seresnext50_32x4d": 27_559_896,
    "legacy_senet154": 115_088_984,
}
# Pixels that a map of a network without padding may be short of the declared size, as the backbones' docstrings say.
SHORT = {"Inception-ResNet": 4, "Xception": 3, "NASNet": 1, "AmoebaNet": 1, "SENet": 1}


def one_of_each_backbone() -> list[str]:
    """For what is slow and sees code rather than settings: of each class of backbone the model of `SMALL` with the most
    kinds of layers."""
    with torch.device("meta"):
        models = {name: build(name) for name in SMALL}
    kinds = {name: len({type(layer) for layer in model.modules()}) for name, model in models.items()}
    return list({type(models[name].backbone): name for name in sorted(SMALL, key=kinds.__getitem__)}.values())


ONE_OF_EACH_BACKBONE = one_of_each_backbone()


def side_of(model: ImageClassifier) -> int:
    return max(64, model.backbone.min_size)


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.float() - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("name", cvops.list_models(task="classification"))
def test_every_model_is_as_declared(name: str) -> None:
    info = cvops.model_info(name)
    with torch.device("meta"), torch.inference_mode():
        model = cvops.create_model(name).eval()
        smallest = model.backbone.min_size
        height, width = 96, max(65, smallest)
        maps = model.features(torch.empty(2, 3, height, width))
        assert model.head(maps[-1]).shape == (2, 1000)
        with pytest.raises(ValueError, match=f"at least {smallest} x {smallest} pixels"):
            model(torch.empty(1, 3, smallest, smallest - 1))
    count = sum(p.numel() for p in model.parameters())
    assert count == info.parameters
    assert count == PUBLISHED_PARAMETERS.get(name, PUBLISHED_PARAMETERS.get(name.removeprefix("tf_"), count))
    assert model.feature_info.strides == (2, 4, 8, 16, 32)
    # A network that pads takes any size and rounds up.
    slack = 0 if smallest == 1 else SHORT[info.family]
    for got, channels, stride in zip(maps, model.feature_info.channels, model.feature_info.strides, strict=True):
        assert got.shape[:2] == (2, channels)
        for size, whole in zip(got.shape[2:], (height, width), strict=True):
            assert 0 <= -(-whole // stride) - size <= slack


@pytest.mark.parametrize("name", SMALL)
def test_the_smallest_image_gives_one_pixel(name: str) -> None:
    model = build(name).eval()
    smallest = model.backbone.min_size
    with torch.inference_mode():
        assert model.features(torch.zeros(1, 3, smallest, smallest))[-1].shape[2:] == (1, 1)


@pytest.mark.parametrize("name", SMALL)
def test_training(name: str) -> None:
    """Gradients reach every parameter and the input; drops act; checkpointing changes none of it."""
    plain = build(name, num_classes=5, drop_path=0.2).train()
    lean = build(name, num_classes=5, drop_path=0.2, checkpointing=True).train()
    images = torch.randn(4, 3, side_of(plain), side_of(plain))
    results = []
    for model in (plain, lean):
        batch = images.clone().requires_grad_()
        torch.manual_seed(1)
        logits = model(batch)
        torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        assert batch.grad is not None
        results.append((logits.detach(), batch.grad))
    without = [key for key, p in plain.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
    (logits, grad), (lean_logits, lean_grad) = results
    assert grad.abs().max() > 0
    assert torch.equal(lean_logits, logits)
    torch.testing.assert_close(lean_grad, grad)
    for (key, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=key)
    for (key, a), b in zip(plain.named_buffers(), lean.buffers(), strict=True):
        assert torch.equal(a, b), key
    with torch.no_grad():
        assert not torch.equal(plain(images), plain(images))


@pytest.mark.parametrize("name", SMALL)
def test_evaluation(name: str) -> None:
    """The same at every call, for every sample alone, in channels_last and, nearly, in bfloat16."""
    model = build(name, drop_path=0.5).eval()
    images = torch.randn(2, 3, side_of(model), side_of(model) + 1)
    with torch.inference_mode():
        want = model(images)
        assert torch.equal(model(images), want)
        assert relative(model(images[:1]), want[:1]) < 1e-5
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert relative(last(images.to(memory_format=torch.channels_last)), want) < 1e-5
        half = last.bfloat16()(images.bfloat16())
        assert half.dtype == torch.bfloat16
        assert relative(half, want) < 0.1
        other = build(name, num_classes=0, in_chans=5).eval()
        assert other(torch.randn(2, 5, *images.shape[2:])).shape == (2, model.head.fc.in_features)
        assert set(other.input_keys) <= other.state_dict().keys()


@pytest.mark.parametrize("name", ONE_OF_EACH_BACKBONE)
def test_compiles_into_one_graph(name: str) -> None:
    torch._dynamo.reset()  # else the models count as one that is compiled again and again
    model = build(name).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(1, 3, side_of(model), side_of(model) + 1)
    with torch.no_grad():
        assert relative(compiled(images), model(images)) < 1e-5


# Those that go on to ONNX are exported on the way.
@pytest.mark.parametrize("name", [name for name in SMALL if name not in ONE_OF_EACH_BACKBONE])
def test_exports_with_a_free_batch_size(name: str) -> None:
    model = build(name).eval()
    side = side_of(model)
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(2, 3, side + 1, side),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
        more = torch.randn(3, 3, side + 1, side)
        assert relative(program.module()(more), model(more)) < 1e-5


@pytest.mark.parametrize("name", ONE_OF_EACH_BACKBONE)
def test_exports_to_onnx_with_a_free_batch_size(name: str, tmp_path: Path) -> None:
    model = build(name).eval()
    side = side_of(model)
    program = cvops.onnx.export(
        model, (torch.randn(2, 3, side + 1, side),), tmp_path / "model.onnx", dynamic_shapes=({0: "batch"},)
    )
    assert {node.domain for node in program.model.graph} == {""}
    more = torch.randn(3, 3, side + 1, side)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (ran,) = session.run(None, {"x": more.numpy()})
    with torch.inference_mode():
        assert relative(torch.from_numpy(ran), model(more)) < 1e-5


@pytest.mark.parametrize("name", [name for name in SMALL if "timm" in cvops.model_info(name).checkpoints])
def test_features_equal_timm_s(name: str) -> None:
    timm = pytest.importorskip("timm")
    from peers import TIMM_NAMES, build_ours, build_peer, images, smallest_side

    state = build_peer("timm", name).state_dict()
    with torch.device("meta"):
        extractor = timm.create_model(TIMM_NAMES.get(name, name), features_only=True).eval()
    # timm taps some networks from outside: their layers are one level further down then.
    getattr(extractor, "body", extractor).load_state_dict(state, strict=False, assign=True)
    model = build_ours("timm", name, state)
    with torch.inference_mode():
        batch = images(1, smallest_side(name), smallest_side(name) + 1)
        for got, want in zip(model.features(batch), extractor(batch), strict=True):
            assert relative(got, want) < 1e-4


def test_features_can_be_chosen() -> None:
    model = build("mobilenetv2_035").eval()
    with torch.inference_mode():
        maps = model.features(torch.ones(1, 3, 64, 64))
        chosen = model.features(torch.ones(1, 3, 64, 64), out_indices=(-1, 1))
    assert len(chosen) == 2
    assert torch.equal(chosen[0], maps[4])
    assert torch.equal(chosen[1], maps[1])


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


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 64)])
def test_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \[N, 3, H, W\], got \["):
        build("mobilenetv2_035").eval()(torch.zeros(shape))


def test_copies_and_pickles() -> None:
    model = build("mobilenetv2_035").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(images), model(images))
