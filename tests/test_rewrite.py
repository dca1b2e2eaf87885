"""cvops.accelerate: other people's models, rewritten in place, give the same outputs, train, copy, save and go back."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import cvops

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def spread(model):
    """Random statistics and scales, so that folding has something to get wrong."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return model.eval()


def unet():
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("mobilenet_v2", encoder_weights=None)


def efficientdet():
    effdet = pytest.importorskip("effdet")
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = (128, 128)
    return effdet.EfficientDet(config, pretrained_backbone=False)


MODELS = {
    "timm mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100"), 64, 17),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), 64, 16),
    "timm tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), 65, 16),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto"), 64, 12),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), 64, 17),
    "torchvision mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), 64, 11),
    "smp Unet": (unet, 64, 17),
    "effdet D0": (efficientdet, 128, 16 + 3 * 8 * 1 + 6),
}


def tensors(out):
    return [out] if isinstance(out, torch.Tensor) else [t for part in out for t in tensors(part)]


def assert_same(ours, theirs):
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_agree_and_everything_can_be_taken_back(name):
    make, size, depthwise = MODELS[name]
    model = spread(make())
    x = torch.rand(2, 3, size, size)
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        plain = cvops.accelerate(model)
        assert sum(change.layer.startswith("Conv2d") for change in plain.changes) >= depthwise
        assert_same(model(x), expected)
        assert list(model.state_dict()) == keys
        plain.restore()
        folded = cvops.accelerate(model, fold_batch_norm=True)
        assert_same(model(x), expected)
        folded.restore()
        folded.restore()
        for ours, theirs in zip(tensors(model(x)), tensors(expected), strict=True):
            assert torch.equal(ours, theirs)
    assert list(model.state_dict()) == keys
    assert not any(type(module).__module__ == "cvops.rewrite" for module in model.modules())


def test_batch_norms_are_really_folded():
    model = spread(torchvision.models.mobilenet_v2())
    report = cvops.accelerate(model, fold_batch_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(change.done.startswith("fused into") for change in report.changes) == 17
    assert sum(change.layer == "BatchNorm2d" for change in report.changes) == 52
    assert report.left == []
    with profile(activities=[ProfilerActivity.CPU]) as record, torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    counts = {event.key: event.count for event in record.key_averages()}
    assert counts["cvops::depthwise_conv2d"] == 17
    assert "aten::batch_norm" not in counts
    assert counts["aten::hardtanh_" if "aten::hardtanh_" in counts else "aten::hardtanh"] == 18


def test_training_step_agrees_and_parameters_stay_the_same_objects():
    model = timm.create_model("mobilenetv2_035", num_classes=5).double()  # batch statistics amplify rounding
    theirs = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    cvops.accelerate(model)
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    x = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    for m in (model, theirs):
        m(x).square().sum().backward()
    for (name, ours), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-6, atol=1e-8, msg=name)


def test_batch_norm_in_training_mode_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    report = cvops.accelerate(model, fold_batch_norm=True)
    assert report.changes == []
    assert isinstance(model[1], nn.BatchNorm2d)


def test_frozen_batch_norm_folds_in_training_mode():
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    frozen.running_var.fill_(3.0), frozen.bias.fill_(0.5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), frozen).train()
    x = torch.rand(1, 3, 8, 8)
    expected = model(x)
    cvops.accelerate(model, fold_batch_norm=True)
    torch.testing.assert_close(model(x), expected)
    assert isinstance(model[1], nn.Identity)


class Residual(nn.Module):
    """A dense and a depthwise convolution before frozen norms, and a norm that follows none."""

    def __init__(self, frozen):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), frozen(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), frozen(6)
        self.norm3 = frozen(6)
        for norm in (self.norm1, self.norm2, self.norm3):
            for value, entry in zip((1.2, 0.3, 0.2, 0.7), norm.buffers(), strict=True):
                entry.copy_(torch.linspace(0.5, 1.5, 6) * value)

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.norm3(y + 1)


FROZEN = {"torchvision": torchvision.ops.FrozenBatchNorm2d, "timm": timm.layers.FrozenBatchNormAct2d}


@pytest.mark.parametrize("peer", FROZEN)
def test_convolutions_scale_their_weights_for_frozen_norms(peer):
    torch.manual_seed(0)
    model = Residual(FROZEN[peer]).double()
    theirs = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    report = cvops.accelerate(model)
    norm = FROZEN[peer].__name__
    assert {(change.name, change.layer, change.done) for change in report.changes} == {
        ("conv2", "Conv2d", "runs on cvops"),
        ("norm1", norm, "scales the weights of conv1"),
        ("norm2", norm, "scales the weights of conv2"),
        ("norm3", norm, "runs on cvops"),
    }
    assert list(model.state_dict()) == keys
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    x = torch.rand(2, 4, 8, 9, dtype=torch.float64)
    for _ in range(2):
        out, expected = model(x), theirs(x)
        torch.testing.assert_close(out, expected)
        for m, y in ((model, out), (theirs, expected)):
            m.zero_grad()
            y.square().sum().backward()
        for (name, ours), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, other.grad, msg=name)
        with torch.no_grad():  # the scaled weights are not from yesterday
            for m in (model, theirs):
                m.conv1.weight.mul_(1.5)
                m.norm1.running_var.mul_(2)
    with profile(activities=[ProfilerActivity.CPU]) as record, torch.no_grad():
        model(x)
    counts = {event.key: event.count for event in record.key_averages()}
    assert counts["cvops::fold_batch_norm"] == 2
    assert counts["cvops::frozen_batch_norm"] == 1
    for copied in (copy.deepcopy(model), reloaded(model)):
        assert copied.conv1.frozen_norm is copied.norm1
        assert torch.equal(copied(x), model(x))
    report.restore()
    assert torch.equal(model(x), theirs(x))
    assert "frozen_norm" not in vars(model.conv1)


@pytest.mark.parametrize("peer", FROZEN)
def test_frozen_norms_that_an_earlier_call_joined_can_be_folded(peer):
    model = Residual(FROZEN[peer])
    x = torch.rand(2, 4, 8, 9)
    expected = model(x)
    joined = cvops.accelerate(model)
    folded = cvops.accelerate(model, fold_batch_norm=True)
    assert [(change.name, change.done) for change in folded.changes if "folded" in change.done] == [
        ("norm1", "folded into conv1"),
        ("norm2", "folded into conv2"),
    ]
    torch.testing.assert_close(model(x), expected)
    assert not any(hasattr(layer, "frozen_norm") for layer in model.modules())
    folded.restore()
    assert model.conv1.frozen_norm is model.norm1
    torch.testing.assert_close(model(x), expected)
    joined.restore()
    assert torch.equal(model(x), expected)


def reloaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_hooks_and_compilers_see_frozen_norms_as_layers_of_their_own():
    model = Residual(torchvision.ops.FrozenBatchNorm2d)
    x = torch.rand(2, 4, 8, 9)
    raw, expected = model.conv1(x), model(x)
    cvops.accelerate(model)
    assert not torch.allclose(model.conv1(x), raw)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    assert not any("fold" in str(node.target) for node in exported.graph.nodes)
    seen = []
    handle = model.norm1.register_forward_hook(lambda layer, given, out: seen.append(given[0]))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(seen[0], raw)
    handle.remove()
    handle = model.conv1.register_forward_hook(lambda layer, given, out: seen.append(out))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(seen[1], raw)


def test_nobody_sums_the_gradient_of_a_shift_made_of_constants():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), torchvision.ops.FrozenBatchNorm2d(4))
    cvops.accelerate(model)
    convolution = model[0](torch.rand(1, 3, 5, 5)).grad_fn
    assert [function is not None for function, _ in convolution.next_functions] == [False, True, False]


def test_a_convolution_parted_from_its_frozen_norm_leaves_the_norm_to_it():
    """As a replica of nn.DataParallel, whose partner stays on the first device."""
    model = Residual(torchvision.ops.FrozenBatchNorm2d)
    x = torch.rand(2, 4, 8, 9)
    raw, normed = model.conv1(x), model.norm1(model.conv1(x))
    cvops.accelerate(model)
    conv, norm = copy.copy(model.conv1), copy.copy(model.norm1)
    vars(conv)["frozen_norm"] = copy.deepcopy(model.norm1).to("meta")
    vars(norm)["frozen_conv"] = copy.deepcopy(model.conv1).to("meta")
    assert torch.equal(conv(x), raw)
    torch.testing.assert_close(norm(raw), normed)


def test_frozen_norms_of_other_dtypes():
    model = Residual(torchvision.ops.FrozenBatchNorm2d)
    theirs = copy.deepcopy(model)
    cvops.accelerate(model)
    x = torch.rand(2, 4, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        ours, other = model(x), theirs(x)
    assert ours.dtype == other.dtype == torch.float32
    torch.testing.assert_close(ours, other, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(model.bfloat16()(x.bfloat16()), theirs(x).bfloat16(), rtol=5e-2, atol=5e-2)


class Shared(nn.Module):
    """A convolution whose result is read twice, one that is used twice, and a forward that cannot be traced."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.norm, self.kind = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), kind

    def forward(self, x):
        if self.kind == "read twice":
            y = self.conv(x)
            return self.norm(y) + y
        if self.kind == "used twice":
            return self.norm(self.conv(self.conv(x)))
        return self.norm(self.conv(x)) if x.sum() > -1 else x


@pytest.mark.parametrize("kind", ["read twice", "used twice", "control flow"])
def test_what_cannot_be_folded_stays(kind):
    model = spread(nn.Sequential(Shared(kind)))
    x = torch.rand(1, 4, 5, 5)
    expected = model(x)
    report = cvops.accelerate(model, fold_batch_norm=True)
    assert report.changes == []
    assert torch.equal(model(x), expected)
    if kind == "control flow":
        assert "cannot be traced" in report.left[0].done


def test_hooks_copies_and_pickles_stay():
    model = timm.create_model("mobilenetv2_035").eval()
    seen = []
    model.blocks[0][0].conv_dw.register_forward_hook(lambda *a: seen.append(1))
    cvops.accelerate(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert seen == [1]
        assert torch.equal(copy.deepcopy(model)(x), expected)
        model.blocks[0][0].conv_dw._forward_hooks.clear()
        loaded = reloaded(model)
        assert torch.equal(loaded(x), expected)
    assert type(loaded.blocks[0][0].conv_dw).__module__ == "cvops.rewrite"


def test_subclasses_with_code_of_their_own_are_left_alone():
    class Custom(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Custom(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect", padding=1))
    report = cvops.accelerate(model)
    assert report.changes == []
    assert [change.done for change in report.left] == ["padding_mode='reflect'"]
    assert "left as they are" in str(report)


LAYERS = {
    "RoIAlign": (lambda: torchvision.ops.RoIAlign(3, 0.5, 2, True), "rois"),
    "RoIPool": (lambda: torchvision.ops.RoIPool(3, 0.5), "rois"),
    "PSRoIAlign": (lambda: torchvision.ops.PSRoIAlign(3, 0.5, 2), "rois"),
    "PSRoIPool": (lambda: torchvision.ops.PSRoIPool(3, 0.5), "rois"),
    "MultiScaleRoIAlign": (lambda: torchvision.ops.MultiScaleRoIAlign(["a", "b"], 3, 2), "levels"),
    "DeformConv2d": (lambda: torchvision.ops.DeformConv2d(18, 4, 3, padding=1), "offsets"),
}


def layer_inputs(kind):
    torch.manual_seed(1)
    x = torch.rand(2, 18, 12, 16)
    corner = torch.rand(5, 2) * 10
    boxes = torch.cat([corner, corner + torch.rand(5, 2) * 12 + 1], 1)
    if kind == "offsets":
        return x, torch.randn(2, 18, 12, 16), torch.rand(2, 9, 12, 16)
    if kind == "levels":
        return {"a": x, "unused": x, "b": torch.rand(2, 18, 6, 8)}, [boxes[:3] * 4, boxes[3:] * 30], [(48, 64)] * 2
    return x, torch.cat([torch.randint(0, 2, (5, 1)).float(), boxes], 1)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torchvision(name):
    make, kind = LAYERS[name]
    layer = make()
    expected = layer(*layer_inputs(kind))
    report = cvops.accelerate(nn.ModuleList([layer]))
    assert [change.layer for change in report.changes] == [name]
    with profile(activities=[ProfilerActivity.CPU]) as record:
        out = layer(*layer_inputs(kind))
    assert any(event.key.startswith("cvops::") for event in record.key_averages())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


RANDOM = {
    "torchvision StochasticDepth": (lambda: torchvision.ops.StochasticDepth(0.3, "row"), (4000, 2)),
    "torchvision DropBlock2d": (lambda: torchvision.ops.DropBlock2d(0.1, 5), (16, 8, 32, 32)),
    "torchvision DropBlock3d": (lambda: torchvision.ops.DropBlock3d(0.1, 3), (8, 4, 16, 16, 16)),
    "timm DropPath": (lambda: timm.layers.DropPath(0.3), (4000, 2)),
    "timm DropBlock2d": (lambda: timm.layers.DropBlock2d(0.1, 5, couple_channels=False), (16, 8, 32, 32)),
    "timm DropBlock2d coupled": (lambda: timm.layers.DropBlock2d(0.1, 5), (200, 3, 32, 32)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_layers_drop_the_share_that_was_asked(name):
    make, shape = RANDOM[name]
    layer = make()
    report = cvops.accelerate(nn.Sequential(layer))
    assert len(report.changes) == 1
    out = layer(torch.ones(shape))
    rate = layer.p if hasattr(layer, "p") else layer.drop_prob
    assert (out == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    if "coupled" in name:
        assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(layer.eval()(torch.ones(shape)), torch.ones(shape))


def test_errors():
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got dict"):
        cvops.accelerate({})
