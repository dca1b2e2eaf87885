"""The assembly that all detectors share: one call contract around a network, its losses and its postprocessing. What
they are is in `dense_detector.py`, `roi_detector.py` and the family files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cvops.models.config import Accuracy, ModelConfig
from cvops.models.detection import Detections, ImageBatch, ImageTransform, Target, suppress
from cvops.models.detection.images import DEFAULT_INPUT
from cvops.models.model import Backbone, FeatureInfo, Model
from cvops.models.registry import Variant, backbone_modules, create_backbone
from cvops.models.weights import NpmWeights, PackagedWeights
from cvops.nn import NormName

Losses = dict[str, Tensor]
Result = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(ModelConfig):
    """Settings of every detector. `num_classes` counts kinds of objects, never background; labels are 0 to
    num_classes - 1.

    transform: how images become the network's batch.
    score_threshold, iou_threshold, max_detections: detections score more than the first; of those of a class that
        overlap by more than the second the best stays; so many are kept of an image.
    """

    num_classes: int = 80
    transform: ImageTransform = DEFAULT_INPUT
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes == 0:
            raise ValueError("num_classes must be 1 or more for a detector, got 0")
        for name in ("score_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections must be 1 or more, got {self.max_detections}")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(DetectorConfig):
    """Settings of the detectors whose backbone is a classification model of the zoo.

    backbone: its name. norm, norm_eps: the normalisation in it, None for its own.
    stride_first: bottlenecks stride in their first convolution (MSRA's weights, and detectron2's).
    """

    backbone: str = "resnet50"
    norm: NormName | None = "frozen"
    norm_eps: float = 1e-5
    stride_first: bool = False

    @property
    def backbone_settings(self) -> dict[str, Any]:
        """Settings of the classification model that differ from its own."""
        settings: dict[str, Any] = {}
        if self.norm is not None:
            settings |= {"norm": self.norm, "norm_eps": self.norm_eps}
        return settings | ({"stride_first": True} if self.stride_first else {})

    def build_backbone(self) -> Backbone:
        """The backbone, with fresh weights."""
        return create_backbone(self.backbone, in_chans=self.in_chans, **self.backbone_settings)

    def backbone_modules(self, publisher: str, prefix: str) -> dict[str, str]:
        """How `publisher` names its layers below `prefix`, as key maps have it."""
        return backbone_modules(self.backbone, publisher, prefix, **self.backbone_settings)


def detector_variant(
    config: DetectorConfig,
    parameters: int,
    *,
    packaged: PackagedWeights | NpmWeights | None = None,
    accuracy: Accuracy | None = None,
) -> Variant:
    """A registered detector, which does its own preprocessing."""
    return Variant(config, config.transform, parameters, packaged=packaged, accuracy=accuracy)


Raw = TypeVar("Raw")


class Detector(Model, Generic[Raw]):
    """Images to losses and detections.

    `model(images, targets)`: images are a batch [B, C, H, W] or a sequence of [C, H, W] of any sizes, RGB in 0..1;
    targets one mapping for each with `boxes` [M, 4] (x1, y1, x2, y2 in pixels) and `labels` [M]. It gives

    - in train mode the losses, {name: scalar};
    - in eval mode without targets the detections, a list with {`boxes` [K, 4] in pixels of the image, `scores` [K],
      `labels` [K]} of each image, by descending score;
    - in eval mode with targets (losses, detections), from one pass of the network.

    `detect(pixels)` is the same from a batch that is ready, tensor in and fixed-size tensors out: what is exported.

    A family fills in `network`, `losses` and `postprocess`, and sets `backbone` and `head`. Raises `ValueError` for
    images and targets that do not fit, naming the image and the box.
    """

    backbone: Backbone
    config: DetectorConfig

    def network(self, pixels: Tensor) -> Raw:
        """A batch [B, C, H, W] to whatever losses and postprocessing need of it, in tensors."""
        raise NotImplementedError

    def losses(self, raw: Raw, batch: ImageBatch) -> Losses:
        """The losses of a batch with targets."""
        raise NotImplementedError

    def postprocess(self, raw: Raw, image: tuple[int, int], sizes: Tensor) -> Detections:
        """Detections in pixels of the batch, whose height and width are `image`; `sizes` [B, 2] are the images' own."""
        raise NotImplementedError

    @property
    def input_keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"backbone.{key}" for key in self.backbone.input_keys)

    @property
    def class_keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"head.{key}" for key in self.get_submodule("head").class_keys)  # type: ignore[union-attr]

    @property
    def feature_info(self) -> FeatureInfo:
        return self.backbone.feature_info

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        """NMS within each class by the thresholds of the config: boxes [B, N, 4], scores [B, N], labels [B, N]."""
        config = self.config
        return suppress(
            boxes,
            scores,
            labels,
            score_threshold=config.score_threshold,
            iou_threshold=config.iou_threshold,
            max_detections=config.max_detections,
        )

    def features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        maps = self.backbone.features(x)
        return maps if out_indices is None else [maps[i] for i in out_indices]

    def detect(self, pixels: Tensor, sizes: Tensor | None = None) -> Detections:
        """Detections in a batch [B, C, H, W] that is resized and normalised; `sizes` [B, 2] are the images' heights and
        widths without the padding, None for the whole batch."""
        height, width = pixels.shape[-2:]
        if sizes is None:
            sizes = torch.stack(
                [pixels.new_full((pixels.shape[0],), side, dtype=torch.int64) for side in (height, width)], 1
            )
        return self.postprocess(self.network(pixels), (height, width), sizes)

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> Losses | list[Result] | tuple[Losses, list[Result]]:
        if self.training and targets is None:
            raise ValueError("targets are needed in train mode, one for each image; model.eval() detects without")
        batch = self.config.transform(images, targets, self.config.num_classes)
        raw = self.network(batch.pixels)
        if self.training:
            return self.losses(raw, batch)
        results = as_results(self.postprocess(raw, batch.shape, batch.sizes), batch)
        return results if targets is None else (self.losses(raw, batch), results)


def as_results(detections: Detections, batch: ImageBatch) -> list[Result]:
    """Detections of a batch as one dictionary for each image, in its own pixels."""
    boxes = batch.to_image(detections.boxes)
    return [
        {"boxes": boxes[i, :k], "scores": detections.scores[i, :k], "labels": detections.labels[i, :k]}
        for i, k in enumerate(detections.counts.tolist())
    ]
