"""Registered models with few blocks of each kind, for tests that compute: every layer of the family, little time."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import cvops
from cvops.models import ImageClassifier, inception_resnet, xception

INFOS = [cvops.model_info(name) for name in cvops.list_models(task="classification")]
# The smallest model of each family, and the TensorFlow padding of one that has both.
SMALL = [
    min((info for info in INFOS if info.family == family), key=lambda info: info.parameters).name
    for family in dict.fromkeys(info.family for info in INFOS)
] + ["tf_efficientnet_b0"]

# By settings where the family has some for that; a new family runs whole until it is listed.
SETTINGS: dict[str, dict[str, Any]] = {
    "MobileNetV2": {"depth": 0.3},
    "EfficientNet": {"depth": 0.3},
    "EfficientNet-Lite": {"depth": 0.3},
    "ResNet": {"depths": (1, 1, 1, 1)},
    "ResNeXt": {"depths": (1, 1, 1, 1)},
    "SENet": {"depths": (1, 1, 1, 1)},
    "NASNet": {"repeats": 1, "penultimate": 192, "stem_channels": 8},
    "AmoebaNet": {"repeats": 1, "filters": 16},
}
# By the table of the file where the paper has one network.
FLOWS = tuple(dict.fromkeys(xception.FLOWS))
INCEPTION = tuple(replace(stage, repeats=1) for stage in inception_resnet.TABLE)


def build(name: str, **settings: Any) -> ImageClassifier:
    """The model called `name`, made shallow, with fresh weights that are the same at every call."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xception, "FLOWS", FLOWS)
        patch.setattr(inception_resnet, "TABLE", INCEPTION)
        model = cvops.create_model(name, **SETTINGS.get(cvops.model_info(name).family, {}), **settings)
    assert isinstance(model, ImageClassifier)
    return model
