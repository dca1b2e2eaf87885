"""Detectors against float64 outputs of public implementations, stored in `tests/data/golden_detection` (the rule of the
weights is in `tests/models/golden.py`): what the network puts out, and detections where the peer decodes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from detection.yolov4_golden import yolov4_outputs
from models import golden
from torch import Tensor

import cvops
from cvops.models import load_weights
from cvops.models.detection import flatten_map
from cvops.models.detection.images import MSRA_INPUT
from cvops.models.detector import Detector

FOLDER = golden.DATA / "golden_detection"
Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    """`outputs` brings what our network makes of pixels to the stored names and layout. `variants` are settings for the
    file's variants."""

    model: str
    outputs: Callable[[Detector, Tensor], Outputs]
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    first_label: int = 0  # the peer's number of our label 0


def synth_boxes(seed: int, count: int, height: int, width: int) -> Tensor:
    """Boxes [count, 4] inside the image that the files' region heads were given."""
    u = golden.generator(f"{seed}:boxes:{count}").uniform(0, 1, (count, 4))
    w, h = (0.08 + 0.5 * u[:, 2]) * width, (0.08 + 0.5 * u[:, 3]) * height
    x, y = u[:, 0] * (width - w), u[:, 1] * (height - h)
    return torch.from_numpy(np.stack([x, y, x + w, y + h], 1))


def dense_outputs(model: Detector, pixels: Tensor) -> Outputs:
    """Of RetinaNet and FCOS in torchvision's names."""
    maps = model.backbone.features(pixels)
    raw = model.network(pixels)
    outputs = {f"feature.{i}": m for i, m in enumerate(model.neck([maps[i] for i in model.levels]))}
    rows = {"cls_logits": (raw.classes, model.config.num_classes), "bbox_regression": (raw.codes, 4)}
    if raw.quality is not None:
        rows["bbox_ctrness"] = (raw.quality, 1)
    for name, (levels, values) in rows.items():
        outputs |= {f"{name}.{i}": flatten_map(m, values) for i, m in enumerate(levels)}
    return outputs


def region_outputs(model: Detector, pixels: Tensor) -> Outputs:
    """Of Faster R-CNN in torchvision's names; its class 0 is the background."""
    raw = model.network(pixels)
    boxes = synth_boxes(0, 24, *pixels.shape[2:])
    rois = torch.cat([boxes.new_zeros(24, 1), boxes], 1)
    outputs = {"roi.pooled": model.head.pool(raw.maps, rois)}
    # The codes of the background, which the head leaves out, are stored too.
    hook = model.head.boxes.register_forward_hook(lambda _, given, out: outputs.update({"roi.bbox_deltas": out}))
    outputs["roi.class_logits"] = model.regions(raw, rois).classes
    hook.remove()
    for i, m in enumerate(raw.maps):
        outputs |= {
            f"feature.{i}": m,
            f"rpn.objectness.{i}": raw.rpn.classes[i],
            f"rpn.bbox_deltas.{i}": raw.rpn.codes[i],
        }
    return outputs


def proposal_outputs(prefix: str, model: Detector, pixels: Tensor) -> Outputs:
    """Of RPN: detectron2's names of levels, and features; mmdetection's numbers."""
    maps = model.backbone.features(pixels)
    raw = model.network(pixels)
    if prefix == "":
        kinds = {"rpn.cls": raw.classes, "rpn.bbox": raw.codes}
    else:
        pyramid = model.neck([maps[i] for i in model.config.levels])
        kinds = {"feature": pyramid, "rpn.objectness": raw.classes, "rpn.bbox_deltas": raw.codes}
    first = 2 if prefix else 0
    return {f"{kind}.{prefix}{i + first}": m for kind, levels in kinds.items() for i, m in enumerate(levels)}


def position_sensitive_outputs(model: Detector, pixels: Tensor) -> Outputs:
    """Of R-FCN."""
    third = model.backbone.features(pixels)[model.levels[0]]
    raw = model.network(pixels)
    boxes = synth_boxes(0, 24, *pixels.shape[2:])
    regions = model.regions(raw, torch.cat([boxes.new_zeros(24, 1), boxes], 1))
    return {
        "base_feat": third,
        "rpn_cls_score": model.rpn.objectness(model.rpn.conv(third)),
        "rpn_bbox_pred": raw.rpn.codes[0],
        "cls_map": raw.maps[0],
        "bbox_map": raw.maps[1],
        "cls_score": regions.classes,
        "bbox_pred": regions.codes[:, 0],
    }


def point_outputs(model: Detector, pixels: Tensor) -> Outputs:
    """Of CenterNet; with two hourglasses the outputs of each."""
    raw = model.network(pixels)
    prefixes = [""] if len(raw.heat) == 1 else [f"stack{i}." for i in range(len(raw.heat))]
    return {
        f"{prefix}{name}": maps[i]
        for i, prefix in enumerate(prefixes)
        for name, maps in (("hm", raw.heat), ("wh", raw.boxes), ("reg", raw.offsets))
    }


def single_shot_outputs(model: Detector, pixels: Tensor) -> Outputs:
    """Of SSD in torchvision's names."""
    maps = model.backbone.features(pixels)
    raw = model.network(pixels)
    outputs = {f"feature.{i}": m for i, m in enumerate(model.neck([maps[i] for i in model.config.levels]))}
    outputs["bbox_regression"] = torch.cat([flatten_map(m, 4) for m in raw.codes], 1)
    outputs["cls_logits"] = torch.cat([flatten_map(m, model.config.num_classes + 1) for m in raw.classes], 1)
    return outputs


def lite_outputs(model: Detector, pixels: Tensor) -> Outputs:
    """Of SSDLite in mmdetection's names."""
    raw = model.network(pixels)
    kinds = {"cls": raw.classes, "bbox": raw.codes}
    return {f"{kind}.{i}": m for kind, levels in kinds.items() for i, m in enumerate(levels)}


def level_outputs(names: tuple[str, str], model: Detector, pixels: Tensor) -> Outputs:
    """Of EfficientDet, whose maps are stored as they are: class logits and box codes of each level."""
    raw = model.network(pixels)
    return {
        f"{name}.{i}": m for name, maps in zip(names, (raw.classes, raw.codes), strict=True) for i, m in enumerate(maps)
    }


def corner_outputs(kinds: tuple[str, ...], model: Detector, pixels: Tensor) -> Outputs:
    """Of CornerNet and CenterNet with key point triplets: the maps of the last stack."""
    outputs = {}
    for kind, maps in zip(kinds, model.network(pixels).last, strict=True):
        outputs |= {f"{kind}_heat": maps.heat, f"{kind}_regr": maps.offsets}
        if maps.tags is not None:
            outputs[f"{kind}_tag"] = maps.tags
    return outputs


CASES = {
    "CenterNet_ResNet-18-DCN": Case("centernet_resnet18_dcn", point_outputs),
    "CenterNet_DLA-34_DCN": Case("centernet_dla34", point_outputs),
    "CenterNet_Hourglass-104": Case("centernet_hourglass104", point_outputs),
    "SSD300-VGG16": Case("ssd300_vgg16", single_shot_outputs, first_label=1),
    "SSDLite320-MobileNetV2": Case("ssdlite320_mobilenetv2", lite_outputs),
    "CornerNet_Hourglass-104": Case("cornernet_hourglass104", partial(corner_outputs, ("tl", "br"))),
    "CenterNet-104_keypoint_triplets": Case(
        "centernet_triplets_hourglass104", partial(corner_outputs, ("tl", "br", "ct"))
    ),
    "YOLOv4_CSPDarknet53+SPP+PANet": Case("yolov4", yolov4_outputs),
    **{
        f"EfficientDet-{size.upper()}": Case(
            f"tf_efficientdet_{size}", partial(level_outputs, ("class", "box")), first_label=1
        )
        for size in ("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d7x")
    },
    "R-FCN_R101": Case("rfcn_resnet101", position_sensitive_outputs, {"norm": "batch"}),
    "RPN_R50-FPN": Case("rpn_resnet50_fpn", partial(proposal_outputs, ""), {"norm": "batch"}),
    "RPN_R50-FPN_detectron2": Case(
        "rpn_resnet50_fpn",
        partial(proposal_outputs, "p"),
        {"stride_first": True, "transform": MSRA_INPUT, "rpn": {"min_size": 0.0}},
    ),
    "Faster_R-CNN_R50-FPN": Case(
        "fasterrcnn_resnet50_fpn",
        region_outputs,
        {"norm": "batch"},
        {"frozen_bn_eps0": {"norm": "frozen", "norm_eps": 0.0}},
        first_label=1,
    ),
    "RetinaNet_R50-FPN": Case(
        "retinanet_resnet50_fpn",
        dense_outputs,
        {"norm": "batch"},
        {"frozen_bn_eps0": {"norm": "frozen", "norm_eps": 0.0}},
    ),
    "FCOS_R50-FPN": Case(
        "fcos_resnet50_fpn", dense_outputs, {"norm": "batch"}, {"frozen_bn": {"norm": "frozen", "norm_eps": 1e-5}}
    ),
}


def build(case: Case, stored: dict[str, Any], variant: str | None) -> Detector:
    settings = {**case.settings, **(case.variants[variant] if variant else {})}
    model = cvops.create_model(case.model, **settings).double().eval()
    state = golden.synth_state(stored["manifest"], stored["seed"], stored["gain"])
    assert load_weights(model, state).complete
    return model


def test_every_stored_case_is_used() -> None:
    assert {path.name.removesuffix(".json.gz") for path in FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_detections_equal_the_stored_ones(name: str) -> None:
    stored, case = golden.load_case(name, FOLDER), CASES[name]
    assert set(stored.get("variants", ())) == set(case.variants)
    pixels = golden.synth_input(stored["seed"], stored["input_shape"])
    for variant in (None, *case.variants):
        records = dict((stored["variants"][variant] if variant else stored)["outputs"])
        for record in ("boxes_record", "scores_record"):  # all decoded boxes, where the peer gives them before NMS
            if record in stored.get("detections", ()):
                records[stored["detections"][record]["name"]] = stored["detections"][record]
        model = build(case, stored, variant)
        with torch.inference_mode():
            outputs = case.outputs(model, pixels)
        assert set(outputs) == set(records)
        for key, record in records.items():
            golden.check(record, outputs[key], stored["seed"])
        if variant is None and "boxes" in stored.get("detections", ()):
            check_detections(case, stored, model)


def check_detections(case: Case, stored: dict[str, Any], model: Detector) -> None:
    wanted = stored["detections"]
    names = {
        "score_thresh": "score_threshold",
        "nms_thresh": "iou_threshold",
        "detections_per_img": "max_detections",
        "post_nms_topk": "max_detections",
        "max_det_per_image": "max_detections",
    }
    transform = replace(model.config.transform, resize="none")
    limits = {ours: wanted[theirs] for theirs, ours in names.items() if theirs in wanted}
    model.config = replace(model.config, transform=transform, **limits)
    image = golden.synth_input(stored["seed"], stored["input_shape"])[0]
    if wanted["image"] == "synth_image":
        image = (image + 1) / 2
    else:  # the one that the network sees as synth_input
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (transform.mean, transform.std))
        image = image * std + mean
        image = image.flip(0) if transform.bgr else image
    with torch.inference_mode():
        [found] = model([image])
    scores = torch.tensor(wanted["scores"], dtype=torch.float64)
    if "scores_are" in wanted:
        assert wanted["scores_are"] == "objectness logits"
        scores = scores.sigmoid()
    else:
        assert (found["labels"] + case.first_label).tolist() == wanted["labels"]
    torch.testing.assert_close(found["scores"], scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["boxes"], torch.tensor(wanted["boxes"]).double(), rtol=0, atol=1e-4)
