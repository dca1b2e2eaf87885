"""EfficientDet against effdet's with the peer's random weights: parameters, raw outputs at two input sizes, detections
and losses of two images of unequal sizes. The weights go through `create_model(weights=...)`."""

import pytest
import torch
from torch import nn

import cvops
from cvops.models.detection import ImageTransform
from cvops.models.detector import Detector

effdet = pytest.importorskip("effdet")

WIDE = (128, 256)


def build_peer(name: str, size: tuple[int, int]) -> nn.Module:
    """The pyramid's sizes are fixed in it."""
    config = effdet.get_efficientdet_config(name)
    config.image_size = size
    return effdet.EfficientDet(config, pretrained_backbone=False)


def random_peer(name: str) -> nn.Module:
    """Norms, fusion weights and outputs that do not stand at their start, so that thousands of candidates differ."""
    torch.manual_seed(0)
    peer = build_peer(name, WIDE)
    for layer in peer.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    for key, value in peer.named_parameters():
        if key.endswith("edge_weights"):
            nn.init.uniform_(value, -0.2, 1.0)
    peer.eval()
    with torch.no_grad():
        maps = peer(torch.rand(1, 3, *WIDE) * 4 - 2)
        for net, levels, deviation in zip((peer.class_net, peer.box_net), maps, (1.0, 0.4), strict=True):
            spread = torch.cat([x.flatten() for x in levels]).std()
            net.predict.conv_pw.weight.mul_(deviation / spread)
            net.predict.conv_pw.bias.normal_(std=0.1)
    return peer


@pytest.fixture(scope="module", params=["tf_efficientdet_d0", "efficientdet_d0"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Detector]:
    """The peer and our model with its weights, in float64."""
    peer = random_peer(request.param)
    transform = ImageTransform("letterbox", WIDE, divisor=128)
    ours = cvops.create_model(request.param, weights=peer.state_dict(), transform=transform)
    return peer.double(), ours.double().eval()


def test_outputs_equal_effdet_s_at_two_sizes(pair: tuple[nn.Module, Detector]) -> None:
    peer, ours = pair
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    other = build_peer(ours.name, (256, 128)).double().eval()
    other.load_state_dict(peer.state_dict())
    for net, size in ((peer, WIDE), (other, (256, 128))):
        pixels = torch.rand(2, 3, *size).double() * 4 - 2
        with torch.inference_mode():
            raw, (classes, codes) = ours.network(pixels), net(pixels)
        for found, wanted in zip([*raw.classes, *raw.codes], [*classes, *codes], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_detections_and_losses_equal_effdet_s(pair: tuple[nn.Module, Detector]) -> None:
    peer, ours = pair
    images = [torch.rand(3, 64, 96).double(), torch.rand(3, 128, 120).double()]
    targets = [
        {"boxes": torch.tensor([[10.3, 5, 41, 50], [20, 30, 90, 61.5]]).double(), "labels": torch.tensor([3, 89])},
        {"boxes": torch.zeros(0, 4).double(), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    with torch.inference_mode():
        losses, results = ours(images, targets)
        batch = ours.config.transform(images)
        wanted = effdet.DetBenchTrain(peer).eval()(
            batch.pixels,
            {
                "bbox": torch.stack([(targets[0]["boxes"] * 2)[:, [1, 0, 3, 2]], torch.zeros(2, 4).double()]).float(),
                "cls": torch.tensor([[4.0, 90], [-1, -1]]),  # from 1 on; -1 is padding
                "img_scale": torch.tensor([0.5, 1.0]),
                "img_size": torch.tensor([[96.0, 64], [120, 128]]),
            },
        )
    # The peer has float32 anchors, boxes and losses.
    torch.testing.assert_close(losses["classes"].float(), wanted["class_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["boxes"].float(), 50 * wanted["box_loss"], rtol=1e-5, atol=0)
    for found, theirs in zip(results, wanted["detections"], strict=True):
        assert len(found["boxes"]) == len(theirs) == 100
        scores = theirs[:, 4]
        torch.testing.assert_close(found["scores"].float(), scores, rtol=0, atol=1e-6)
        # The peer's last sort is of float32 scores and unstable: which of two equal ones comes first, or is the last of
        # the hundred, differs by processor.
        _, group, count = scores.unique(return_inverse=True, return_counts=True)
        ranked = (count[group] == 1) & (scores > scores[-1])
        assert ranked.sum() >= 90
        assert (found["labels"] + 1)[ranked].tolist() == theirs[ranked, 5].tolist()
        torch.testing.assert_close(found["boxes"][ranked].float(), theirs[ranked, :4], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["efficientdet_d1", "tf_efficientdet_d7x"])
def test_larger_sizes_have_effdet_s_entries(name: str) -> None:
    with torch.device("meta"):
        peer, ours = build_peer(name, (256, 256)), cvops.create_model(name)
    report = cvops.models.load_weights(ours, peer.state_dict())
    assert report.complete
    assert sum(p.numel() for p in peer.parameters()) == cvops.model_info(name).parameters
