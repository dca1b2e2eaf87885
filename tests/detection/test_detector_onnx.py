"""Detectors from end to end in other runtimes: a batch in, detections out, equal to eager's, at the size of the export
and at another size and batch. Small variants; the parts and ops are those of the large ones.

What is measured here is published: docs/zoo.md shows docs/exports.json, which
`CVOPS_WRITE_EXPORTS=1 pytest tests/detection/test_detector_onnx.py` writes."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

import cvops
from cvops.models.detector import Detector

FILE = Path(__file__).resolve().parents[2] / "docs" / "exports.json"
PYRAMID = {"backbone": "resnet18", "norm": None, "channels": 32}
EXPORTED: dict[str, dict[str, Any]] = {
    "retinanet_resnet50_fpn": {**PYRAMID, "head_convs": 1},
    "fcos_resnet50_fpn_exp": {**PYRAMID, "head_convs": 1},
    "ssdlite320_mobilenetv2": {"backbone": "mobilenetv2_035"},
    "efficientdet_d0": {},
    "yolov4_quarter": {"depths": (1, 1, 1, 1, 1), "candidates": 200},
    # OpenVINO reads no deformable convolutions from ONNX, so this is the CenterNet without.
    "centernet_mobilenetv3": {"widths": (16, 16, 16)},
    "fasterrcnn_resnet50_fpn": {**PYRAMID, "rpn": {"candidates": 100, "proposals": 50}},
}


class Detect(nn.Module):
    """The part of a detector that is exported."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.detect(pixels))


def build(name: str) -> Detector:
    """With scores that differ from place to place: as they start, signals die out on the way, and all scores tie."""
    torch.manual_seed(0)
    model = cvops.create_model(name, num_classes=4, max_detections=20, **EXPORTED[name])
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.9  # nearly the statistics of one batch; all of them would blow up what hardly varies
    with torch.no_grad():
        model.detect(torch.rand(8, 3, 256, 256))
    for key, parameter in model.named_parameters():
        if key in model.class_keys:
            nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return model.eval()


def bounds(apart: list[float]) -> list[float]:
    """What to publish: three times what was measured, since machines round in other ways, to one digit; 0 if nothing
    differs."""
    if not any(apart):
        return [0.0, 0.0]
    least = [3 * max(difference, 1e-7) for difference in apart]
    digits = [10.0 ** math.floor(math.log10(value)) for value in least]
    return [float(f"{math.ceil(v / digit) * digit:.0e}") for v, digit in zip(least, digits, strict=True)]


@pytest.mark.parametrize("name", EXPORTED)
def test_other_runtimes_give_the_detections(name: str, tmp_path: Path) -> None:
    model = build(name)
    # A map of one pixel is a fixed size to torch.export. So sides are above the largest stride, and SSDLite's stay
    # within 257 to 512, where its last map is one pixel.
    unit = max(64, model.config.transform.divisor)
    sizes = ((5, 6), (7, 5)) if unit == 64 else ((2, 3), (3, 2))
    first, other = (torch.rand(3 - i, 3, h * unit, w * unit) for i, (h, w) in enumerate(sizes, start=1))
    sides = {i: unit * torch.export.Dim(f"side{i}", min=2, max=64) for i in (2, 3)}
    file = tmp_path / "detector.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1, max=8), **sides},)
    with torch.no_grad():
        program = torch.export.export(Detect(model), (first,), dynamic_shapes=shapes)
    cvops.onnx.export(program, (first,), file)
    captured = program.module()
    session = onnxruntime.InferenceSession(file)
    # Not bfloat16, which it takes on processors that have it.
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    runtimes: dict[str, Callable[[np.ndarray], Sequence[np.ndarray]]] = {
        "torch.export": lambda given: [output.detach().numpy() for output in captured(torch.from_numpy(given))],
        "ONNX Runtime": lambda given: session.run(None, {session.get_inputs()[0].name: given}),
        "OpenVINO": lambda given: list(compiled(given).values()),
    }
    apart = {runtime: [0.0, 0.0] for runtime in runtimes}
    for pixels in (first, other):
        with torch.inference_mode():
            wanted = model.detect(pixels)
        assert wanted.counts.min() > 0
        for runtime, run in runtimes.items():
            boxes, scores, labels, counts = run(pixels.numpy())
            np.testing.assert_array_equal(counts, wanted.counts)
            np.testing.assert_array_equal(labels, wanted.labels)
            np.testing.assert_allclose(scores, wanted.scores, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(boxes, wanted.boxes, rtol=1e-4, atol=1e-2)  # pixels
            found = np.abs(boxes - wanted.boxes.numpy()).max(), np.abs(scores - wanted.scores.numpy()).max()
            apart[runtime] = [max(pair) for pair in zip(apart[runtime], map(float, found), strict=True)]
    publish(name, apart)


def publish(name: str, apart: dict[str, list[float]]) -> None:
    """Checks that docs/exports.json states bounds that hold, or writes them."""
    published = json.loads(FILE.read_text())
    settings = json.loads(json.dumps(EXPORTED[name]))  # tuples are lists there
    if os.environ.get("CVOPS_WRITE_EXPORTS"):
        published[name] = {"settings": settings, **{runtime: bounds(pair) for runtime, pair in apart.items()}}
        ordered = {key: published[key] for key in EXPORTED if key in published}
        FILE.write_text(json.dumps(ordered, indent=1) + "\n")
    row = published[name]
    assert row["settings"] == settings
    for runtime, pair in apart.items():
        assert all(a <= b for a, b in zip(pair, row[runtime], strict=True)), f"{runtime}: {pair}, published {row}"


def test_the_table_has_these_models() -> None:
    assert list(json.loads(FILE.read_text())) == list(EXPORTED)
