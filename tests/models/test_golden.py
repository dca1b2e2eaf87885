"""Every model against the stored float64 outputs of a public implementation, through our own weights loader."""

import gc

import golden
import pytest
import torch

import cvops
from cvops.models import load_weights

CASES = {
    "MobileNetV2_1.0": "mobilenetv2_100",
    **{f"EfficientNet-B{i}": f"tf_efficientnet_b{i}" for i in range(8)},
    **{f"EfficientNet-B{i}_torchvision": f"efficientnet_b{i}" for i in range(8)},
    **{f"EfficientNet-Lite{i}": f"tf_efficientnet_lite{i}" for i in range(3)},
    "Xception": "xception",
    "Inception-ResNet-v2": "inception_resnet_v2",
    "NASNet-A_Large_6_4032": "nasnetalarge",
    "NASNet-A_Mobile_4_1056": "nasnetamobile",
    "AmoebaNet-D_L_18_D_208": "amoebanet_d_18_208",
    "AmoebaNet-D_L_18_D_256": "amoebanet_d_18_256",
    **{f"ResNet-{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"ResNeXt-{name}": f"resnext{name}" for name in ("50_32x4d", "101_32x8d", "101_64x4d")},
    "SE-ResNet-50": "legacy_seresnet50",
    "SE-ResNeXt-50_32x4d": "legacy_seresnext50_32x4d",
    "SENet-154": "legacy_senet154",
}
# What the case's peer computes differently from the model that was published.
SETTINGS = {"NASNet-A_Large_6_4032": cvops.model_info("nasnetalarge").checkpoints["timm"]}


def test_every_stored_case_is_used() -> None:
    assert {path.name.removesuffix(".json.gz") for path in golden.FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("case_name", CASES)
def test_output_equals_the_stored_one(case_name: str) -> None:
    case = golden.load_case(case_name)
    with torch.device("meta"):
        model = cvops.create_model(CASES[case_name], **SETTINGS.get(case_name, {}))
    model = model.double().to_empty(device="cpu").eval()
    report = load_weights(model, golden.synth_state(case["manifest"], case["seed"], case["gain"]))
    assert report.complete
    with torch.inference_mode():
        logits = model(golden.synth_input(case["seed"], case["input_shape"]))
    golden.check(case["outputs"]["logits"], logits, case["seed"])
    del model
    gc.collect()
