"""Residual networks beyond what the registry's tests ask: dilation, norms, squeeze-and-excitation in each place, drops,
IC networks, checkpointing, other people's detector backbones."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peers import images, randomise
from torch import Tensor, nn

import cvops
from cvops.models import ImageClassifier, WeightsError, load_weights
from cvops.models.backbone import ResidualNet
from cvops.nn import (
    BasicBlock,
    Bottleneck,
    CascadedCrossChannelPooling,
    DropPath,
    FrozenBatchNorm2d,
    ICConv,
    IndependentComponent,
    ResidualOptions,
    ScheduledDropBlock2d,
    fuse,
    make_norm,
    set_drop_progress,
)
from cvops.ops.drop_path import DropChannel, ScheduledDropPath

SHALLOW = (1, 2, 2, 1)
MINIMAL = (1, 1, 1, 1)


def build(name: str = "resnet18", **settings: Any) -> ImageClassifier:
    torch.manual_seed(0)
    model = cvops.create_model(name, **settings)
    assert isinstance(model, ImageClassifier)
    return model


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def blocks(model: ImageClassifier) -> list[BasicBlock | Bottleneck]:
    return [m for m in model.modules() if isinstance(m, BasicBlock | Bottleneck)]


# --- dilation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output_stride", "dilated"), [(8, (False, True, True)), (16, (False, False, True))])
def test_output_stride_is_torchvision_s_dilation(output_stride: int, dilated: tuple[bool, ...]) -> None:
    torchvision = pytest.importorskip("torchvision")
    resnet = torchvision.models.resnet
    peer = randomise(resnet.ResNet(resnet.Bottleneck, SHALLOW, replace_stride_with_dilation=dilated)).eval()
    model = build("resnet50", depths=SHALLOW, output_stride=output_stride, weights=peer.state_dict()).eval()
    batch = images(1, 64, 81)
    with torch.inference_mode():
        maps = model.features(batch)
        assert relative(model(batch), peer(batch)) < 1e-4
    assert model.feature_info.strides == tuple(min(s, output_stride) for s in (2, 4, 8, 16, 32))
    assert [m.shape[2] for m in maps] == [64 // s for s in model.feature_info.strides]


@pytest.mark.parametrize(("name", "output_stride"), [("resnet18", 8), ("resnet18", 16), ("senet154", 8)])
def test_output_stride_is_timm_s(name: str, output_stride: int) -> None:
    timm = pytest.importorskip("timm")
    peer = randomise(timm.create_model(name, layers=SHALLOW, output_stride=output_stride)).eval()
    model = build(name, depths=SHALLOW, output_stride=output_stride, weights=peer.state_dict()).eval()
    batch = images(1, 64, 81)
    with torch.inference_mode():
        assert relative(model(batch), peer(batch)) < 1e-4


# --- norms and other people's backbones -------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norms_are_torchvision_s(eps: float) -> None:
    torchvision = pytest.importorskip("torchvision")
    source = randomise(torchvision.models.resnet18())
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    peer = torchvision.models.resnet18(norm_layer=lambda channels: frozen(channels, eps))
    peer.load_state_dict(source.state_dict())
    # Counters of training steps, which only the first checkpoint has, are no error.
    for state in (source.state_dict(), peer.state_dict()):
        model = build("resnet18", norm="frozen", norm_eps=eps, weights=state).train()
        assert model.weights_report is not None
        assert model.weights_report.complete
        before = {key: value.clone() for key, value in model.named_buffers()}
        batch = images(2, 64, 49)
        got = model(batch)
        assert relative(got, peer(batch)) < 1e-4
        assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 - 9_600
    got.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_group_norm_has_32_groups() -> None:
    model = build(norm="group", norm_eps=1e-3)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-3)}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(ValueError, match="norm must be 'batch', 'frozen' or 'group', got 'layer'"):
        build(norm="layer")
    with pytest.raises(WeightsError, match=r"no place in the model \(40\)"):
        build(norm="group", weights=build().state_dict())


def detectron2_key(key: str) -> str:
    key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
    key = key if key.startswith("res") else f"stem.{key}"
    key = re.sub(r"bn(\d)", r"conv\1.norm", key)
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize("stride_first", [False, True])
def test_detectron2_s_backbone(stride_first: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    peer = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, MINIMAL)
    if stride_first:  # its MSRA weights
        for layer in (peer.layer2, peer.layer3, peer.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    randomise(peer).eval()
    state = {detectron2_key(key): value for key, value in peer.state_dict().items() if "num_batches" not in key}
    model = build("resnet50", depths=MINIMAL, norm="frozen", stride_first=stride_first, weights=state).eval()
    assert model.weights_report is not None
    assert model.weights_report.publisher == "detectron2"
    batch = images(1, 64, 49)
    with torch.inference_mode():
        assert relative(model(batch), peer(batch)) < 1e-4
    headless = {key: value for key, value in state.items() if not key.startswith("stem.fc")}
    assert build("resnet50", depths=MINIMAL, num_classes=0, weights=headless).weights_report is not None


def test_whose_weights_they_are_is_told() -> None:
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    with torch.device("meta"):
        state = torchvision.models.resnet18().state_dict()
        report = load_weights(build(), state)
        assert report.publisher == "torchvision or timm"
        assert load_weights(build(), state, source="timm").publisher == "timm"
        with pytest.raises(WeightsError, match=r"create_model\('resnet50', stride_first=False\)"):
            load_weights(build("resnet50", stride_first=True), torchvision.models.resnet50().state_dict())
        with pytest.raises(WeightsError, match="nobody publishes weights of IC networks"):
            build(ic_dropout=0.05, weights=state)
        with pytest.raises(WeightsError, match="take the name with legacy_"):
            build("seresnet50", weights=timm.create_model("legacy_seresnet50").state_dict())
        with pytest.raises(WeightsError, match="take the name without legacy_"):
            build("legacy_seresnet50", weights=timm.create_model("seresnet50").state_dict())


@pytest.mark.parametrize("settings", [{}, {"norm": "frozen"}, {"stem": "3x3x3", "se": "post"}])
def test_fuse_folds_every_norm(settings: dict[str, Any]) -> None:
    model = build(depths=MINIMAL, **settings).eval()
    for key, value in model.state_dict().items():
        if "norm" in key and value.dtype == torch.float32:
            value.uniform_(0.5, 1.5)
    batch = images(1, 64, 49)
    fused = fuse(model)
    with torch.inference_mode():
        assert relative(fused(batch), model(batch)) < 1e-4
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in fused.modules())


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("place", ["standard", "pre", "post", "identity", "3x3"])
def test_squeeze_and_excitation_in_each_place(place: Any, stride: int) -> None:
    options = ResidualOptions(se=place, se_reduction=4)
    block = Bottleneck(16, 16, stride, width=8, options=options).eval()
    channels = {"3x3": 8}.get(place, 16)
    assert (block.se.reduce.in_channels, block.se.reduce.out_channels) == (channels, channels // 4)
    x = torch.randn(2, 16, 6, 5)
    places = dict.fromkeys(("standard", "pre", "post", "identity", "3x3"), nn.Identity()) | {place: block.se}
    y = places["3x3"](block.conv2(block.conv1(places["pre"](x))))
    y = places["standard"](block.conv3(y))
    want = places["post"](torch.relu(y + places["identity"](block.shortcut(x))))
    torch.testing.assert_close(block(x), want)
    assert not torch.allclose(want, torch.relu(block.conv3(block.conv2(block.conv1(x))) + block.shortcut(x)))


def test_squeeze_and_excitation_in_a_wrong_place() -> None:
    with pytest.raises(ValueError, match="se must be one of standard, pre, post, identity, 3x3, got 'before'"):
        build(se="before")
    with pytest.raises(ValueError, match="for bottleneck blocks"):
        build(se="3x3")


def test_the_input_of_a_block_stays() -> None:
    for options in (ResidualOptions(), ResidualOptions(ic_dropout=0.1), ResidualOptions(se="pre")):
        for block in (BasicBlock(8, 8, options=options), Bottleneck(8, 8, width=4, options=options)):
            x = torch.randn(2, 8, 5, 5)
            before = x.clone()
            block(x)
            assert torch.equal(x, before)


def test_cascaded_pooling_by_definition() -> None:
    layer = CascadedCrossChannelPooling(3, (6, 5, 4), kernel_size=3, stride=2, norm=lambda _: nn.Identity())
    x = torch.randn(2, 3, 7, 8)
    want = torch.relu(F.conv2d(x, layer.layers[0].conv.weight, stride=2, padding=1))
    for unit in layer.layers[1:]:
        want = torch.relu(torch.einsum("nchw,oc->nohw", want, unit.conv.weight[:, :, 0, 0]))
    torch.testing.assert_close(layer(x), want)
    assert want.shape == (2, 4, 4, 4)
    with pytest.raises(ValueError, match="at least one"):
        CascadedCrossChannelPooling(3, ())


@pytest.mark.parametrize("settings", [{}, {"ic_dropout": 0.05}])
def test_zero_init_makes_every_block_the_identity(settings: dict[str, Any]) -> None:
    model = build("resnet50", depths=SHALLOW, zero_init_residual=True, **settings).eval()
    for block in blocks(model):
        x = torch.randn(1, block.conv1.conv.in_channels, 4, 4)
        with torch.inference_mode():
            want = block.shortcut(x) if settings else torch.relu(block.shortcut(x))
            assert torch.equal(block(x), want)


# --- drops ------------------------------------------------------------------------------------------------------------


def test_drop_path_grows_linearly_and_drops_the_branch() -> None:
    model = build(drop_path=0.4)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.05 * i for i in range(1, 9)])
    block = BasicBlock(4, 4, options=ResidualOptions(drop_path=0.5)).train()
    x = torch.randn(64, 4, 5, 5)
    dropped = (block(x) == torch.relu(x)).flatten(1).all(1).sum().item()
    assert 15 < dropped < 49


def test_drop_block_is_in_the_last_two_stages_after_every_convolution_and_on_the_shortcut() -> None:
    model = build("resnet50", drop_block=0.2, drop_block_size=5)
    for stage, rate in zip(model.backbone.stages, (0, 0, 0.05, 0.2), strict=True):
        layers = [m for m in stage.modules() if isinstance(m, ScheduledDropBlock2d)]
        assert [(m.p, m.block_size) for m in layers] == ([(pytest.approx(rate), 5)] * len(stage) if rate else [])
    for block, passes in ((blocks(model)[-1], 4), (blocks(build(drop_block=0.2))[-1], 3)):
        inputs: list[Tensor] = []
        block.drop_block.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        block(torch.randn(2, block.conv1.conv.in_channels, 7, 7))
        assert len(inputs) == passes


def test_drop_progress_scales_the_rates() -> None:
    model = nn.Sequential(build(drop_block=0.3), ScheduledDropPath(0.5, layer=1, layers=1, steps=200))
    layer = blocks(model[0])[-1].drop_block
    x = torch.ones(8, 64, 16, 16)
    for progress in (0.0, 0.5, 1.0):
        set_drop_progress(model, progress)
        assert model[1].step == 200 * progress
        share = (layer.train()(x) == 0).float().mean().item()
        assert share == pytest.approx(0.3 * progress, abs=0.02)
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.5"):
        set_drop_progress(model, 1.5)


def test_drop_channel_is_before_the_last_convolution() -> None:
    for block in (
        BasicBlock(8, 8, options=ResidualOptions(drop_channel=0.5)).train(),
        Bottleneck(8, 8, width=8, options=ResidualOptions(drop_channel=0.5)).train(),
    ):
        assert isinstance(block.drop_channel, DropChannel)
        seen: list[Tensor] = []
        block.last.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        block(torch.randn(32, 8, 6, 6))
        share = (seen[0].flatten(2).abs().amax(2) == 0).float().mean().item()
        assert 0.35 < share < 0.65


@pytest.mark.parametrize("rates", [{"drop_block": 0.5}, {"drop_channel": 0.3}, {"drop_path": 0.5}, {"ic_dropout": 0.3}])
def test_drops_act_in_training_only_and_have_gradients(rates: dict[str, float]) -> None:
    model = build(num_classes=3, depths=MINIMAL, **rates).train()
    batch = images(2, 96, 96).requires_grad_()
    first = model(batch)
    assert not torch.equal(first, model(batch))
    first.sum().backward()
    assert batch.grad is not None
    assert batch.grad.abs().max() > 0
    model.eval()
    assert torch.equal(model(batch), model(batch))


# --- IC networks ------------------------------------------------------------------------------------------------------


def test_independent_component_is_norm_then_dropout() -> None:
    layer = IndependentComponent(4, 0.25).train()
    x = torch.randn(64, 4, 8, 8) * 3 + 1
    y = layer(x)
    white = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    kept = y != 0
    torch.testing.assert_close(y[kept], white[kept] / 0.75, rtol=1e-4, atol=1e-5)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_an_ic_block_has_relu_norm_dropout_before_every_convolution() -> None:
    block = Bottleneck(8, 16, 2, width=4, options=ResidualOptions(ic_dropout=0.1)).eval()
    units = [block.conv1, block.conv2, block.conv3]
    assert all(isinstance(u, ICConv) and u.ic.dropout.p == 0.1 for u in units)
    assert [u.ic.norm.num_features for u in units] == [8, 4, 4]
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
    x = torch.randn(2, 8, 5, 6)
    y = x
    for unit in units:
        y = unit.conv(unit.ic.norm(torch.relu(y)))
    shortcut = block.shortcut.conv(block.shortcut.ic.norm(x))
    torch.testing.assert_close(block(x), y + shortcut)


def test_an_ic_network_ends_with_relu_and_norm() -> None:
    model = build(ic_dropout=0.05, depths=MINIMAL).eval()
    ic = model.backbone.last[1]
    ic.norm.running_mean.fill_(2.0)
    raw: list[Tensor] = []
    model.backbone.stages[-1].register_forward_hook(lambda *args: raw.append(args[2].clone()))
    with torch.inference_mode():
        maps = model.features(images(1, 64, 64))
        torch.testing.assert_close(maps[-1], ic.norm(torch.relu(raw[0])))
        torch.testing.assert_close(model(images(1, 64, 64)), model.head(maps[-1]))
    assert raw[0].min() < 0


@pytest.mark.parametrize("settings", [{"ic_dropout": 0.05}, {"drop_block": 0.1, "drop_block_size": 3}])
def test_training_lowers_the_loss(settings: dict[str, Any]) -> None:
    model = build(num_classes=4, depths=MINIMAL, **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = torch.randn(8, 3, 48, 48) + torch.arange(8).view(8, 1, 1, 1) % 4
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), torch.arange(8) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# --- the rest ---------------------------------------------------------------------------------------------------------


def saved_bytes(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
    """The output, and how many bytes of activations it keeps for the backward pass."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(batch)
    weights = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    return out, sum(size for pointer, size in storages.items() if pointer not in weights)


def test_checkpointing_saves_memory_and_changes_nothing_else() -> None:
    settings = {"depths": (2, 2, 2, 2), "drop_path": 0.3, "drop_block": 0.2, "num_classes": 5}
    plain = build("resnet50", **settings).train()
    lean = build("resnet50", checkpointing=True, **settings).train()
    batch = images(2, 64, 64)
    results = []
    for model in (plain, lean):
        torch.manual_seed(1)
        out, size = saved_bytes(model, batch)
        out.square().sum().backward()
        results.append((out, size, {key: p.grad for key, p in model.named_parameters()}, dict(model.named_buffers())))
    (out, size, grads, buffers), (lean_out, lean_size, lean_grads, lean_buffers) = results
    assert lean_size < 0.4 * size
    assert torch.equal(out, lean_out)
    for key, grad in grads.items():
        torch.testing.assert_close(lean_grads[key], grad, rtol=1e-4, atol=1e-4 * grad.abs().max().item())
    for key, value in buffers.items():
        assert torch.equal(lean_buffers[key], value), key
    assert {m.momentum for m in lean.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_images_can_be_too_small() -> None:
    assert build().eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 1000)
    model = build("legacy_seresnet50", depths=(1, 1, 1, 1)).eval()
    assert model(torch.zeros(1, 3, 3, 3)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"at least 3 x 3 pixels, got \[1, 3, 64, 2\]"):
        model(torch.zeros(1, 3, 64, 2))


def test_channels_last_and_bfloat16() -> None:
    model = build("legacy_seresnext50_32x4d", depths=(1, 1, 1, 1)).eval()
    batch = images(2, 64, 49)
    with torch.inference_mode():
        want = model(batch)
        maps = model.to(memory_format=torch.channels_last).features(batch.to(memory_format=torch.channels_last))
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
        assert relative(model(batch.to(memory_format=torch.channels_last)), want) < 1e-4
        half = model.bfloat16()(batch.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), want) < 0.1


def test_a_training_step_traces_into_one_graph() -> None:
    model = build(num_classes=3, depths=MINIMAL, drop_path=0.2, drop_block=0.2, checkpointing=True).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = images(2, 64, 64)
    compiled(batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_backbone_alone_needs_only_a_config() -> None:
    config = cvops.model_info("resnet18").config
    net = ResidualNet(config).eval()  # type: ignore[arg-type]
    assert [m.shape[1] for m in net.features(images(1, 32, 32))] == [64, 64, 128, 256, 512]
    assert make_norm("batch", 1e-3, 0.01)(8).momentum == 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_stride": 4}, "output_stride must be one of 8, 16, 32, got 4"),
        ({"block": "wide"}, "block must be one of 'basic', 'bottleneck', got 'wide'"),
        ({"pool": "mean"}, "pool must be one of"),
        ({"stem": "5x5"}, "stem must be one of"),
        ({"groups": 32}, "groups and group_width are for bottleneck blocks"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"drop_channel": -0.5}, "drop_channel must be in"),
        ({"ic_dropout": 2}, "ic_dropout must be in"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
