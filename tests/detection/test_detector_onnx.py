"""Detectors from end to end in other runtimes: a batch in, detections out, equal to eager's, at the size of the export
and at another size and batch. Small variants; the parts and ops are those of the large ones."""

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

PYRAMID = {"backbone": "mobilenetv2_035", "norm": None, "channels": 32}
EXPORTED: dict[str, dict[str, Any]] = {
    "fcos_resnet50_fpn_exp": {**PYRAMID, "head_convs": 1},
    "fasterrcnn_mobilenetv2_fpn": {**PYRAMID, "rpn": {"candidates": 100, "proposals": 50}},
    # OpenVINO reads no deformable convolutions from ONNX, so this is the CenterNet without.
    "centernet_mobilenetv3": {"transform": {"size": (128, 128)}, "widths": (16, 16, 16)},
    "ssdlite320_mobilenetv2": {"backbone": "mobilenetv2_035"},
    "yolov4_quarter": {"depths": (1, 1, 1, 1, 1), "transform": {"size": (128, 128)}, "candidates": 200},
}


class Detect(nn.Module):
    """The part of a detector that is exported."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.detect(pixels))


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_and_openvino_give_the_detections(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cvops.create_model(name, num_classes=4, max_detections=20, **EXPORTED[name]).eval()
    if name.startswith("yolov4"):  # Darknet's initial values let a signal die out, and all scores tie
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, 0.0 if layer.bias is None else 3.0)
    transform = model.config.transform
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=8)}
    if transform.resize == "shortest":
        first, other = torch.rand(2, 3, 128, 160), torch.rand(1, 3, 96, 192)
        shape |= {i: transform.divisor * torch.export.Dim(f"side{i}", min=2, max=64) for i in (2, 3)}
    else:
        first, other = torch.rand(2, 3, *transform.size), torch.rand(3, 3, *transform.size)
    file = tmp_path / "detector.onnx"
    cvops.onnx.export(Detect(model), (first,), file, dynamic_shapes=(shape,))
    session = onnxruntime.InferenceSession(file)
    compiled = openvino.Core().compile_model(file, "CPU")
    for pixels in (first, other):
        with torch.inference_mode():
            wanted = model.detect(pixels)
        assert wanted.counts.min() > 0
        given = pixels.numpy()
        for outputs in (session.run(None, {session.get_inputs()[0].name: given}), list(compiled(given).values())):
            boxes, scores, labels, counts = outputs
            np.testing.assert_array_equal(counts, wanted.counts)
            np.testing.assert_array_equal(labels, wanted.labels)
            np.testing.assert_allclose(scores, wanted.scores, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(boxes, wanted.boxes, rtol=1e-4, atol=1e-2)  # pixels
