"""Deep layer aggregation (Yu et al. 2018, arXiv:1707.06484): stages that are trees of residual blocks, whose nodes are
joined at every level. The aggregation up to one fine map is `neck/upsampling.py`."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct

DLA34_DEPTHS = (1, 1, 1, 2, 2, 1)  # levels of each stage's tree; of the first two stages, convolutions
DLA34_CHANNELS = (16, 32, 64, 128, 256, 512)


class TreeBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that comes from outside. [N, C, H, W] -> [N, C', H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, 3, stride)
        self.conv2 = ConvNormAct(out_channels, out_channels, 3, act=None)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + shortcut)


class Tree(nn.Module):
    """A hierarchical aggregation of `2 ** depth` blocks (figure 3 of the paper): the outputs of both halves and of all
    that came before are joined by a 1x1 convolution, `root`. [N, C, H, W] -> [N, C', H / stride, W / stride].

    depth: 1 for two blocks. joins_input: the root takes the tree's (pooled) input too. extra: channels that it takes
    from trees around this one.

    Parts: `first`, `second` (blocks, or trees), `root` at depth 1, `project` where the width changes. As in the
    authors' code a deeper tree has a `project` too, that nothing uses; it is here for the sake of their checkpoints.

    >>> Tree(8, 16, depth=2, stride=2)(torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 16, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        stride: int = 1,
        *,
        joins_input: bool = False,
        extra: int = 0,
    ) -> None:
        super().__init__()
        extra += in_channels if joins_input else 0
        self.depth, self.joins_input = depth, joins_input
        self.pool = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.project = ConvNormAct(in_channels, out_channels, act=None)
        self.first: nn.Module
        self.second: nn.Module
        if depth == 1:
            self.first = TreeBlock(in_channels, out_channels, stride)
            self.second = TreeBlock(out_channels, out_channels)
            self.root = ConvNormAct(2 * out_channels + extra, out_channels)
        else:
            self.first = Tree(in_channels, out_channels, depth - 1, stride)
            self.second = Tree(out_channels, out_channels, depth - 1, extra=extra + out_channels)

    def forward(self, x: Tensor, before: Sequence[Tensor] = ()) -> Tensor:
        pooled = self.pool(x)
        before = [*before, pooled] if self.joins_input else [*before]
        if self.depth > 1:
            first = self.first(x)
            deep: Tensor = self.second(first, [*before, first])
            return deep
        first = self.first(x, self.project(pooled))
        second = self.second(first, first)
        joined: Tensor = self.root(torch.cat([second, first, *before], 1))
        return joined


class DLANet(Backbone):
    """[N, in_chans, H, W] -> maps at strides 1, 2, 4, 8, 16 and 32.

    Parts: `stem` (7x7 convolution), `stages` (two convolutions, then trees). H and W are multiples of 32.

    >>> net = DLANet(channels=(8, 8, 16, 16, 24, 32))
    >>> [list(m.shape) for m in net.features(torch.zeros(1, 3, 64, 32))][2:4]
    [[1, 16, 16, 8], [1, 16, 8, 4]]
    """

    input_keys = ("stem.conv.weight",)
    min_size = 32

    def __init__(
        self, in_chans: int = 3, *, channels: Sequence[int] = DLA34_CHANNELS, depths: Sequence[int] = DLA34_DEPTHS
    ) -> None:
        super().__init__()
        if len(channels) != 6 or len(depths) != 6:
            raise ValueError(f"channels and depths must be of six stages, got {channels} and {depths}")
        self.stem = ConvNormAct(in_chans, channels[0], 7)
        self.stages = nn.ModuleList()
        width = channels[0]
        for i, (depth, out) in enumerate(zip(depths, channels, strict=True)):
            stride = 1 if i == 0 else 2
            if i < 2:
                steps = (stride, *[1] * (depth - 1))
                units = [ConvNormAct(width if j == 0 else out, out, 3, step) for j, step in enumerate(steps)]
                self.stages.append(nn.Sequential(*units))
            else:
                self.stages.append(Tree(width, out, depth, stride, joins_input=i > 2))
            width = out
        self.feature_info = FeatureInfo(tuple(channels), (1, 2, 4, 8, 16, 32))

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def authors_dla(theirs: str, ours: str, depths: Sequence[int] = DLA34_DEPTHS) -> dict[str, str]:
    """Names of the layers in the authors' code, below `theirs`: `base_layer`, `level0` to `level5`."""
    paths = _unit(f"{theirs}base_layer", f"{ours}stem")
    for i, depth in enumerate(depths):
        if i < 2:
            for j in range(depth):
                paths |= _unit(f"{theirs}level{i}", f"{ours}stages.{i}.{j}", 3 * j)
        else:
            paths |= dict(_tree(f"{theirs}level{i}", f"{ours}stages.{i}", depth))
    return paths


def _unit(theirs: str, ours: str, first: int = 0) -> dict[str, str]:
    """A convolution and its norm, numbered in a sequence."""
    return {f"{theirs}.{first}": f"{ours}.conv", f"{theirs}.{first + 1}": f"{ours}.norm"}


def _tree(theirs: str, ours: str, depth: int) -> Iterator[tuple[str, str]]:
    yield from _unit(f"{theirs}.project", f"{ours}.project").items()
    for number, half in enumerate(("first", "second"), start=1):
        if depth > 1:
            yield from _tree(f"{theirs}.tree{number}", f"{ours}.{half}", depth - 1)
            continue
        for i in (1, 2):
            yield f"{theirs}.tree{number}.conv{i}", f"{ours}.{half}.conv{i}.conv"
            yield f"{theirs}.tree{number}.bn{i}", f"{ours}.{half}.conv{i}.norm"
    if depth == 1:
        yield f"{theirs}.root.conv", f"{ours}.root.conv"
        yield f"{theirs}.root.bn", f"{ours}.root.norm"
