"""The two contracts of the zoo: `Backbone` (an image to feature maps, with their channels and strides declared) and
`Model` (anything `create_model` returns). Families fill them in; tasks add assemblies, such as `classifier.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from cvops.models.config import ModelConfig
from cvops.models.weights import KeyMap, Reader, WeightsReport


@dataclass(frozen=True)
class FeatureInfo:
    """Channels of the maps that `features()` returns and their strides in input pixels, finest map first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


class Backbone(nn.Module):
    """An image [N, C, H, W] to feature maps. What necks and heads may rely on:

    `feature_info` tells the channels and strides of `features(x)`; map i is [N, channels[i], H / strides[i],
    W / strides[i]], sizes rounded up, or less where a network does not pad. `forward(x)` is the last map alone.
    `min_size` is the smallest height and width in pixels that gives every map at least one. `input_keys` names the
    weights whose second dimension is the number of input channels.
    """

    feature_info: FeatureInfo
    min_size: int = 1
    input_keys: tuple[str, ...] = ()

    def features(self, x: Tensor) -> list[Tensor]:
        """All feature maps, finest first."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[-1]


class Model(nn.Module):
    """What `create_model` returns. `name` is the registered name, `config` the settings it was built with.

    `input_keys` and `class_keys` name the entries of the state_dict that depend on the number of input channels
    (dimension 1) and of classes (dimension 0): the weights loader adapts these. `readers` are, by suffix, for formats
    of files that only this family has. `weights_report` tells what was loaded.
    """

    name: str = ""
    config: ModelConfig
    key_maps: tuple[KeyMap, ...] = ()
    readers: Mapping[str, Reader] = MappingProxyType({})
    input_keys: tuple[str, ...] = ()
    class_keys: tuple[str, ...] = ()
    weights_report: WeightsReport | None = None

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides of `features()`."""
        raise NotImplementedError

    def features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps of an image batch [N, C, H, W], finest first, as `feature_info` declares them; those of
        `out_indices` only, in that order, if given (-1 is the last)."""
        raise NotImplementedError
