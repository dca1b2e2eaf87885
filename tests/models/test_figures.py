"""The figures that the registry publishes: multiply-adds against other people's counts and our own counter, accuracies
against the metadata of the package that states them, the picture against its data."""

import runpy
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import cvops
from cvops.models import count_macs
from cvops.ops import DeformConv2d

DOCS = Path(__file__).resolve().parents[2] / "docs"

# torch.utils.flop_counter on the peers' networks, halved, at the same sizes.
PEERS_MACS = {
    **dict(
        zip(
            (f"tf_efficientnet_b{i}" for i in range(8)),
            (385814752, 686802832, 993561872, 1827141392, 4393771024, 10266384752, 19067593536, 37745884192),
            strict=True,
        )
    ),
    "tf_efficientnet_lite0": 385_187_552,
    "tf_efficientnet_lite1": 600_185_232,
    "tf_efficientnet_lite2": 859_736_272,
    "amoebanet_d_18_208": 10_018_557_952,
    "amoebanet_d_18_256": 15_170_093_056,
    "resnet18": 1_814_073_344,
    "resnet34": 3_663_761_408,
    "resnet50": 4_089_184_256,
    "resnet101": 7_801_405_440,
    "resnet152": 11_513_626_624,
    "resnext50_32x4d": 4_230_479_872,
    "resnext101_32x8d": 16_414_015_488,
    "resnext101_64x4d": 15_460_270_080,
    "legacy_seresnet50": 3_860_488_192,
    "legacy_seresnext50_32x4d": 4_232_994_816,
    "legacy_senet154": 20_688_363_520,
    "nasnetalarge": 23_783_414_658,
    "inception_resnet_v2": 13_155_794_016,
    "xception": 8_357_403_496,
    "mobilenetv2_100": 300_774_272,
}
# Millions of multiply-adds in papers and README files, and how many digits they give there.
PUBLISHED_MACS = {
    "amoebanet_a_4_50": (555, 1),
    "amoebanet_a_6_190": (23_100, 100),
    "amoebanet_a_6_448": (104_000, 1000),
    "nasnetamobile": (564, 1),
    "nasnetalarge": (23_800, 100),
    "inception_resnet_v2": (13_200, 100),
    "mobilenetv2_035": (59, 1),
    "mobilenetv2_050": (97, 1),
    "mobilenetv2_075": (209, 1),
    "mobilenetv2_140": (582, 1),
}
# Counted here: a network of each kind, and some that nobody else has counted.
COUNTED = [
    "amoebanet_a_4_50",
    "efficientnet_b0",
    "efficientnet_b8",
    "efficientnet_lite4",
    "legacy_seresnet50",
    "mobilenetv2_110d",
    "nasnetamobile",
    "resnet18",
    "seresnet50",
    "xception",
]


@pytest.mark.parametrize("name", sorted(PEERS_MACS))
def test_multiply_adds_are_the_peers(name: str) -> None:
    assert cvops.model_info(name).macs == PEERS_MACS[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED_MACS))
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    millions, digit = PUBLISHED_MACS[name]
    assert abs(cvops.model_info(name).macs / 1e6 - millions) <= digit / 2


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_adds_are_what_the_counter_says(name: str) -> None:
    info = cvops.model_info(name)
    with torch.device("meta"):
        model = cvops.create_model(name)
    assert count_macs(model, info.preprocess.size) == info.macs
    assert model.training


def test_twins_cost_the_same() -> None:
    infos = {name: cvops.model_info(name) for name in cvops.list_models(task="classification")}
    twins = [(info, infos[name[3:]]) for name, info in infos.items() if name.startswith("tf_") and name[3:] in infos]
    twins = [(a, b) for a, b in twins if a.preprocess.size == b.preprocess.size]
    assert len(twins) == 13
    assert all(a.macs == b.macs for a, b in twins)


def test_counter_knows_our_convolutions_and_leaves_the_model_alone() -> None:
    model = cvops.create_model("mobilenetv2_035", in_chans=1, num_classes=0)
    model.backbone.stem.eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    small, wide = count_macs(model, 64), count_macs(model, (64, 128))
    assert wide == 2 * small
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    # The stem's 3x3 deformed: as many multiply-adds as the plain one, and none for the offsets, which are given.
    stem = model.backbone.stem

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = DeformConv2d(1, stem.conv.out_channels, 3, stride=2, padding=1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x, x.new_zeros(1, 18, x.shape[2] // 2, x.shape[3] // 2))

    stem.conv = Deformed()
    assert count_macs(model, 64) == small
    with torch.device("meta"):
        inception = cvops.create_model("inception_resnet_v2")
    with pytest.raises(ValueError, match="at least 75 x 75"):
        count_macs(inception, 64)


@pytest.mark.parametrize("name", cvops.list_models(task="classification"))
def test_figures_are_there_and_accuracies_have_sources(name: str) -> None:
    info = cvops.model_info(name)
    assert info.macs is not None
    published = info.accuracy
    if published is None:
        assert name.startswith(("amoebanet_a_4", "amoebanet_d", "tf_amoebanet", "efficientnet_", "mobilenetv3"))
        return
    assert 50 < published.value < 90
    assert published.url.startswith("https://")
    if published.source.startswith("torchvision"):
        theirs = {
            "mobilenetv2_100": "mobilenet_v2",
            "mobilenetv3_large_100": "mobilenet_v3_large",
            "mobilenetv3_small_100": "mobilenet_v3_small",
        }
        weights = torchvision.models.get_model_weights(theirs.get(name, name))
        assert published.source == "torchvision IMAGENET1K_V1"
        assert published.value == weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert round(info.macs / 1e9, 3) == weights.IMAGENET1K_V1.meta["_ops"]


DETECTORS = {name: cvops.model_info(name).accuracy for name in cvops.list_models(task="detection")}


@pytest.mark.parametrize("name", [name for name, published in DETECTORS.items() if published is not None])
def test_accuracies_of_detectors_have_sources(name: str) -> None:
    published = DETECTORS[name]
    assert published.metric in ("AP", "AR@1000", "VOC07")
    assert 20 < published.value < 80
    assert published.url.startswith("https://")
    if published.source.startswith("torchvision"):
        weights = torchvision.models.get_model_weights(name).COCO_V1
        assert published.source == "torchvision COCO_V1"
        assert published.value == weights.meta["_metrics"]["COCO-val2017"]["box_map"]


def test_every_detector_of_torchvision_has_its_accuracy() -> None:
    found = [name for name, published in DETECTORS.items() if published and published.source == "torchvision COCO_V1"]
    theirs = {"fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"}
    assert set(found) == theirs | {"ssd300_vgg16"}


def test_picture_shows_today_s_figures() -> None:
    with Image.open(DOCS / "zoo.png") as picture:
        drawn = picture.text["Description"]
    assert drawn == runpy.run_path(str(DOCS / "build.py"))["picture_data"](), "run `python docs/build.py`"
