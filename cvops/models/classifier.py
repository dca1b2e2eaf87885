"""The assembly of an image classifier: a backbone and a classification head. Families provide the backbone and the
widths; what a detector makes of the same backbone is in the detector's file."""

from collections.abc import Sequence

from torch import Tensor

from cvops.models.config import ModelConfig
from cvops.models.head import ClassificationHead
from cvops.models.model import Backbone, FeatureInfo, Model


class ImageClassifier(Model):
    """[N, C, H, W] -> logits [N, num_classes]; `features(x)` gives the backbone's maps. Parts: `backbone`, `head`.

    Raises `ValueError` for an input that is not a batch of images with `config.in_chans` channels, or smaller than
    `backbone.min_size`.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone, head: ClassificationHead) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = head
        self.input_keys = tuple(f"backbone.{key}" for key in backbone.input_keys)
        self.class_keys = tuple(f"head.{key}" for key in head.class_keys)

    @property
    def feature_info(self) -> FeatureInfo:
        return self.backbone.feature_info

    def features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        self._check(x)
        maps = self.backbone.features(x)
        return maps if out_indices is None else [maps[i] for i in out_indices]

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.config.in_chans:
            raise ValueError(f"expected images [N, {self.config.in_chans}, H, W], got {list(x.shape)}")
        smallest = self.backbone.min_size
        if x.shape[2] < smallest or x.shape[3] < smallest:
            raise ValueError(f"expected images of at least {smallest} x {smallest} pixels, got {list(x.shape)}")
