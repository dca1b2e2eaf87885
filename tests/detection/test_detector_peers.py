"""Detectors against torchvision's with the peer's random weights: parameters, detections of two images of unequal
sizes, losses. The weights go through `create_model(weights=...)`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cvops
from cvops.models.detection import ImageTransform, ProposalSettings

torchvision = pytest.importorskip("torchvision")


@dataclass(frozen=True)
class Peer:
    """`spread`: the layers that put out scores and box codes, and the deviation their outputs get, so that thousands of
    candidates differ. `losses`: our names of the peer's."""

    spread: dict[str, float]
    losses: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    peer_settings: dict[str, Any] = field(default_factory=dict)
    first_label: int = 0  # the peer's number of our label 0
    any_size: bool = True
    tolerance: float = 1e-9  # of boxes, pixels


DENSE_LOSSES = {"classification": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centerness"}
DENSE = Peer({"head.classification_head.cls_logits": 1.0, "head.regression_head.bbox_reg": 0.5}, DENSE_LOSSES)
# The peer draws anchors and proposals by its own random numbers, so both have to take all of them.
ALL = {"samples": 10**6, "positives": 1.0}
REGION = Peer(
    {
        "rpn.head.cls_logits": 1.0,
        "rpn.head.bbox_pred": 0.3,
        "roi_heads.box_predictor.cls_score": 1.0,
        "roi_heads.box_predictor.bbox_pred": 0.5,
    },
    {
        "loss_objectness": "objectness",
        "loss_rpn_box_reg": "proposals",
        "loss_classifier": "classes",
        "loss_box_reg": "boxes",
    },
    settings={"rpn": ProposalSettings(**ALL), **ALL},
    peer_settings={
        "rpn_batch_size_per_image": 10**6,
        "rpn_positive_fraction": 1.0,
        "box_batch_size_per_image": 10**6,
        "box_positive_fraction": 1.0,
    },
    first_label=1,
)
SINGLE_SHOT = Peer(
    {f"head.classification_head.module_list.{i}": 1.0 for i in range(6)}
    | {f"head.regression_head.module_list.{i}": 0.5 for i in range(6)},
    DENSE_LOSSES,
    first_label=1,
    any_size=False,
    tolerance=1e-5,  # its default boxes are float32
)
PEERS = {
    "ssd300_vgg16": SINGLE_SHOT,
    "fasterrcnn_resnet50_fpn": REGION,
    "retinanet_resnet50_fpn": DENSE,
    "retinanet_resnet50_fpn_v2": DENSE,
    "fcos_resnet50_fpn": DENSE,
}

SIZE = (96, 160)


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output.flatten()))
    yield seen
    hook.remove()


def build_peer(name: str) -> nn.Module:
    torch.manual_seed(0)
    peer = getattr(torchvision.models.detection, name)(
        weights=None,
        weights_backbone=None,
        **({"min_size": SIZE[0], "max_size": SIZE[1]} if PEERS[name].any_size else {}),
        **PEERS[name].peer_settings,
    )
    for layer in peer.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    peer.eval()
    for path, deviation in PEERS[name].spread.items():
        layer = peer.get_submodule(path)
        with outputs_of(layer) as seen, torch.no_grad():
            peer([torch.rand(3, 96, 150)])
            layer.weight.mul_(deviation / torch.cat(seen).std())
            layer.bias.normal_(std=0.1)
    return peer


@pytest.mark.parametrize("name", PEERS)
def test_detector_equals_torchvision_s(name: str) -> None:
    peer = build_peer(name)
    case = PEERS[name]
    settings = {"norm": "batch", "transform": ImageTransform(size=SIZE), **case.settings} if case.any_size else {}
    ours = cvops.create_model(name, weights=peer.state_dict(), **settings)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    ours, peer = ours.double().eval(), peer.double()
    images = [torch.rand(3, 96, 150).double(), torch.rand(3, 96, 120).double()]
    with torch.inference_mode():
        for found, wanted in zip(ours(images), peer(images), strict=True):
            assert len(wanted["boxes"]) >= 50
            assert torch.equal(found["labels"] + case.first_label, wanted["labels"])
            for key in ("boxes", "scores"):
                torch.testing.assert_close(found[key], wanted[key], rtol=1e-9, atol=case.tolerance)

    targets = [
        {"boxes": torch.tensor([[10.0, 10, 60, 50], [20, 30, 90, 90]]).double(), "labels": torch.tensor([3, 7])},
        {"boxes": torch.tensor([[5.0, 5, 110, 90]]).double(), "labels": torch.tensor([1])},
    ]
    theirs = [{**target, "labels": target["labels"] + case.first_label} for target in targets]
    losses, wanted = ours.train()(images, targets), peer.train()(images, theirs)
    assert {case.losses[key] for key in wanted} == set(losses)
    for key, value in wanted.items():
        # The peer has float32 among its counts and labels.
        torch.testing.assert_close(losses[case.losses[key]], value.double(), rtol=1e-6, atol=0)


def test_published_weights_run_with_the_norms_they_were_trained_with() -> None:
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=frozen,
        returned_layers=[2, 3, 4],
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
    )
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    model = cvops.create_model("retinanet_resnet50_fpn", weights=state, strict=False)
    assert model.config.norm_eps == 0.0
    assert any("norm_eps" in line for line in model.weights_report.settings)
