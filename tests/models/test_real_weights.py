"""Trained weights on real photographs, where their packages are installed: all the way from a file to a class name."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import cvops
from cvops.data import imagenet_classes, load_image, preprocess
from cvops.models import find_weights

PACKAGED = [name for name in cvops.list_models() if cvops.model_info(name).weights_package is not None]
CATS = {"Egyptian cat", "tiger cat", "tabby"}


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize(("picture", "names"), [("chelsea.png", CATS), ("coffee.png", {"espresso"})])
def test_photographs_are_recognised(name: str, picture: str, names: set[str]) -> None:
    skimage = find_spec("skimage")
    if skimage is None or skimage.origin is None:
        pytest.skip("scikit-image is not installed")
    if find_spec(str(cvops.model_info(name).weights_package).replace("-", "_")) is None:
        pytest.skip(f"{cvops.model_info(name).weights_package} is not installed")
    model = cvops.create_model(name, weights=find_weights(name)).eval()
    spec = cvops.model_info(name).preprocess
    image = preprocess(load_image(Path(skimage.origin).parent / "data" / picture), spec)
    with torch.inference_mode():
        best = int(model(image[None])[0].argmax())
    assert imagenet_classes()[best] in names
