"""What describes a model before it is built: its settings, the preprocessing its weights expect, its paper, and the
accuracy that was published. Plain frozen data; the registry of names is in `registry.py`, the networks are in the
family files."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)  # of the networks that came out of TensorFlow: -1..1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings that every model has; a family derives its own frozen dataclass from it.

    `num_classes` 0 leaves the classifier out, so that the model returns pooled features."""

    num_classes: int = 1000
    in_chans: int = 3

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {self.num_classes}")
        if self.in_chans < 1:
            raise ValueError(f"in_chans must be 1 or more, got {self.in_chans}")


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes the network's input: short side to `resize` pixels, centre crop of `size` x `size`
    pixels, values from 0..1 to (value - mean) / std, channel by channel."""

    size: int
    resize: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __str__(self) -> str:
        return f"{self.size} x {self.size}"

    @property
    def crop(self) -> float:
        """Share of the resized short side that the crop keeps, e.g. 0.875 for 224 of 256."""
        return self.size / self.resize


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy of one network, in per cent, at the variant's size (`size` pixels where that differs).
    `source` says who published it, for which weights if there are several, `url` where. `metric`:

    - `top-1` on the 50,000 validation images of ImageNet-1k, one crop;
    - `AP`, the mean over IoU 0.50 to 0.95, on COCO val2017 unless `source` names another part;
    - `AR@1000`, average recall of 1,000 proposals on COCO val2017; `VOC07`, mean AP50 on the test images of VOC 2007.
    """

    value: float
    source: str
    url: str
    size: int | None = None
    metric: Literal["top-1", "AP", "AR@1000", "VOC07"] = "top-1"

    def __str__(self) -> str:
        metric = f" {self.metric}" if self.metric not in ("top-1", "AP") else ""
        size = f" at {self.size} px" if self.size is not None else ""
        return f"{self.value:.1f}{metric} {self.source}{size}"


def coco_by_torchvision(ap: float) -> Accuracy:
    """What torchvision publishes for its COCO weights of a detector: their `meta`, and this page."""
    page = "https://docs.pytorch.org/vision/stable/models.html"
    url = f"{page}#table-of-all-available-object-detection-weights"
    return Accuracy(ap, "torchvision COCO_V1", url, metric="AP")


def by_torchvision(top1: float) -> Accuracy:
    """What torchvision publishes for the first weights it released of a network: its `weights.meta`, and this page."""
    url = "https://docs.pytorch.org/vision/stable/models.html#table-of-all-available-classification-weights"
    return Accuracy(top1, "torchvision IMAGENET1K_V1", url)


def by_timm(top1: float, tag: str, size: int | None = None) -> Accuracy:
    """What timm measured for its weights "<name>.<tag>", at one revision of its table of results."""
    revision = "0173a139a2c66db3a41ebfe1d8ac4fb02483642e"
    url = f"https://github.com/huggingface/pytorch-image-models/blob/{revision}/results/results-imagenet.csv"
    return Accuracy(top1, f"timm {tag}", url, size)


@dataclass(frozen=True)
class Paper:
    """Where a family was published."""

    title: str
    authors: str
    year: int
    url: str

    def __str__(self) -> str:
        return f"{self.authors} {self.year}, {self.title}, {self.url}"


C = TypeVar("C")


def override(config: C, **changes: Any) -> C:
    """`config` with some fields changed; a `TypeError` names the field that does not exist and those that do. A mapping
    for a field that is a dataclass changes some of its fields; a tuple of mappings for a tuple of such makes them anew.

    >>> override(ModelConfig(), num_classes=10).num_classes
    10
    """
    fields = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in changes:
        if name not in fields:
            raise TypeError(
                f"{type(config).__name__} has no setting {name!r}{did_you_mean(name, fields)}; "
                f"it has {', '.join(fields)}"
            )
        old, new = getattr(config, name), changes[name]
        if dataclasses.is_dataclass(old) and not isinstance(old, type) and isinstance(new, Mapping):
            changes[name] = override(old, **new)
        elif isinstance(new, tuple) and new and all(isinstance(part, Mapping) for part in new) and old:
            changes[name] = tuple(type(old[0])(**part) for part in new)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ", did you mean A, B?" for the known words closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f", did you mean {', '.join(close)}?" if close else ""
