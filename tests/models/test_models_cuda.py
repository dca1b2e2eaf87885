"""Every family of models on a GPU: equal to the CPU in float64, where neither the order of a sum nor TF32 can blur a
difference, and a training step under autocast."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detection import test_detector_contract as contract
from models import shallow
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

# torch's kernels multiply float64 by a float32 1/6 on CUDA, which a network amplifies.
EXACT = {
    "hardswish": lambda x, inplace=False: x * F.relu6(x + 3) / 6,
    "hardsigmoid": lambda x, inplace=False: F.relu6(x + 3) / 6,
}


@pytest.fixture(autouse=True)
def _exact_activations(monkeypatch):
    for name, function in EXACT.items():
        monkeypatch.setattr(F, name, function)


CLOSE = {"rtol": 1e-6, "atol": 1e-7}
RANDOM_SAMPLES = ("fasterrcnn", "rfcn", "rpn")  # drawn by the generator of the device


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", shallow.SMALL)
def test_classifiers_equal_the_cpu(name, memory_format):
    on_cpu = shallow.build(name).double().eval().to(memory_format=memory_format)
    on_cuda = copy.deepcopy(on_cpu).cuda()
    images = torch.rand(2, 3, 128, 128, dtype=torch.float64).to(memory_format=memory_format)
    with torch.no_grad():
        torch.testing.assert_close(on_cuda(images.cuda()).cpu(), on_cpu(images), **CLOSE)
    for model in (on_cpu, on_cuda):  # batch statistics, but nothing random
        model.train()
        for layer in model.modules():
            if "drop" in type(layer).__name__.lower():
                layer.eval()
    on_cpu(images).square().sum().backward()
    on_cuda(images.cuda()).square().sum().backward()
    for (key, a), b in zip(on_cuda.named_parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-5, atol=1e-7, msg=lambda text, k=key: f"{k}: {text}")


@pytest.mark.parametrize("name", contract.NAMES)
def test_detectors_equal_the_cpu(name):
    """The maps of the network, relative to their size, and the losses. Detections of random weights have scores of
    exactly 1, which tie, so of those only how many there are."""
    on_cpu = copy.deepcopy(contract.build(name)).double().eval()
    on_cuda = copy.deepcopy(on_cpu).cuda()
    images = [image.double() for image in contract.IMAGES]
    targets = [{**t, "boxes": t["boxes"].double()} for t in contract.targets_of(name)]
    with torch.no_grad():
        batch = on_cpu.config.transform(images, None, on_cpu.config.num_classes)
        raw, cuda_raw = tree_leaves(on_cpu.network(batch.pixels)), tree_leaves(on_cuda.network(batch.pixels.cuda()))
        losses, results = on_cpu(images, targets)
        there = [image.cuda() for image in images], [{key: t[key].cuda() for key in t} for t in targets]
        cuda_losses, cuda_results = on_cuda(*there)
    assert len(raw) == len(cuda_raw)
    for expected, found in zip(raw, cuda_raw, strict=True):
        if isinstance(expected, torch.Tensor) and expected.is_floating_point():
            assert (found.cpu() - expected).norm() <= 1e-9 * expected.norm()
    assert cuda_losses.keys() == losses.keys()
    if not name.startswith(RANDOM_SAMPLES):
        for key, loss in losses.items():
            torch.testing.assert_close(cuda_losses[key].cpu(), loss, **CLOSE)
    for found, expected in zip(cuda_results, results, strict=True):
        assert all(value.is_cuda for value in found.values())
        assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("name", contract.NAMES)
def test_detectors_train(name):
    model = copy.deepcopy(contract.build(name)).float().cuda().train()
    images = [image.cuda() for image in contract.IMAGES]
    targets = [{key: t[key].cuda() for key in t} for t in contract.targets_of(name)]
    with torch.autocast("cuda", torch.bfloat16):
        losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
