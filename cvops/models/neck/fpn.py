"""Feature pyramid network: the neck of RetinaNet, FCOS, Faster R-CNN and those after them."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cvops.nn import make_activation

Extra = Literal["none", "pool", "p5", "c5"]


class FeaturePyramid(nn.Module):
    """Feature pyramid network (Lin et al. 2017, arXiv:1612.03144): maps of a backbone, finest first, to maps of
    `out_channels` channels of the same sizes, and coarser ones.

    Parts: `lateral` (1x1 on each map), `output` (3x3 on each sum of the lateral map and the coarser one, upsampled by
    nearest neighbours), `extra`.

    extra: `pool`, one more level by taking every second pixel of the last (Faster R-CNN); `p5` or `c5`, two more
        levels by strided 3x3 convolutions (RetinaNet), the first on the last output or on the backbone's last map.

    >>> maps = [torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)]
    >>> [list(p.shape) for p in FeaturePyramid((8, 16), 4, extra="p5")(maps)]
    [[1, 4, 16, 16], [1, 4, 8, 8], [1, 4, 4, 4], [1, 4, 2, 2]]
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, extra: Extra = "none") -> None:
        super().__init__()
        if extra not in ("none", "pool", "p5", "c5"):
            raise ValueError(f"extra must be 'none', 'pool', 'p5' or 'c5', got {extra!r}")
        self.out_channels = out_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        self.pool = extra == "pool"
        self.from_input = extra == "c5"
        self.extra = nn.ModuleList()
        if extra in ("p5", "c5"):
            first = in_channels[-1] if extra == "c5" else out_channels
            self.extra.append(nn.Conv2d(first, out_channels, 3, 2, padding=1))
            self.extra.append(nn.Conv2d(out_channels, out_channels, 3, 2, padding=1))
        self.act = make_activation("relu", inplace=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], merged[i].shape[-2:], mode="nearest")
        out = [output(x) for output, x in zip(self.output, merged, strict=True)]
        if self.pool:
            out.append(out[-1][:, :, ::2, ::2])
        for i, layer in enumerate(self.extra):
            source = maps[-1] if i == 0 and self.from_input else out[-1]
            out.append(layer(source if i == 0 else self.act(source)))
        return out


def torchvision_fpn(levels: int, extra: Extra) -> dict[str, str]:
    """torchvision's names: `backbone.fpn.inner_blocks.0.0`, one deeper than the convolution."""
    paths = {}
    for i in range(levels):
        for nested in (".0", ""):  # checkpoints from before torchvision 0.13 are not nested
            paths[f"backbone.fpn.inner_blocks.{i}{nested}"] = f"neck.lateral.{i}"
            paths[f"backbone.fpn.layer_blocks.{i}{nested}"] = f"neck.output.{i}"
    if extra in ("p5", "c5"):
        paths |= {f"backbone.fpn.extra_blocks.p{6 + i}": f"neck.extra.{i}" for i in range(2)}
    return paths


def detectron2_fpn(first: int, last: int) -> dict[str, str]:
    """detectron2's names for levels P`first` to P`last`."""
    paths = {}
    for i, level in enumerate(range(first, last + 1)):
        paths[f"backbone.fpn_lateral{level}"] = f"neck.lateral.{i}"
        paths[f"backbone.fpn_output{level}"] = f"neck.output.{i}"
    return paths


def mmdet_fpn(levels: int, extra: Extra) -> dict[str, str]:
    """mmdetection's names; its extra levels are further outputs."""
    paths = {}
    for i in range(levels):
        paths[f"neck.lateral_convs.{i}.conv"] = f"neck.lateral.{i}"
        paths[f"neck.fpn_convs.{i}.conv"] = f"neck.output.{i}"
    if extra in ("p5", "c5"):
        paths |= {f"neck.fpn_convs.{levels + i}.conv": f"neck.extra.{i}" for i in range(2)}
    return paths
