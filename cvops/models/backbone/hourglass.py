"""The stacked hourglass network of CornerNet and both CenterNets: a stem, hourglasses of residual blocks one after the
other, and what leads from each to the next. The families add their heads to every stack's map."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import BasicBlock, ConvNormAct

STEM_CHANNELS = 128  # of the 7x7 convolution
CHANNELS = (256, 256, 384, 384, 384, 512)  # of Hourglass-104 and -52 at each of their sizes, finest first
BLOCKS = (2, 2, 2, 2, 2, 4)


class Hourglass(nn.Module):
    """Down and up again, with a skip at each size (Newell et al. 2016, arXiv:1603.06937, figure 3), as CornerNet has it
    (Law and Deng 2018, arXiv:1808.01244, section 3.5): residual blocks of two 3x3 convolutions that stride instead of
    max pooling, nearest neighbours upwards. [N, channels[0], H, W] -> the same shape; any H and W.

    channels, blocks: width and number of residual blocks at each size, finest first; two sizes or more.

    Parts: `skip`, `down`, `inner` (the smaller hourglass, or the blocks at the smallest size), `up`.

    >>> Hourglass((8, 8, 16), (1, 1, 2))(torch.zeros(1, 8, 9, 12)).shape
    torch.Size([1, 8, 9, 12])
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != len(blocks) or len(channels) < 2:
            raise ValueError(f"channels and blocks must be of the same two sizes or more, got {channels} and {blocks}")
        (width, inner), (count, inner_count) = channels[:2], blocks[:2]
        self.skip = nn.Sequential(*(BasicBlock(width, width) for _ in range(count)))
        self.down = nn.Sequential(
            BasicBlock(width, inner, stride=2), *(BasicBlock(inner, inner) for _ in range(count - 1))
        )
        self.inner = (
            Hourglass(channels[1:], blocks[1:])
            if len(channels) > 2
            else nn.Sequential(*(BasicBlock(inner, inner) for _ in range(inner_count)))
        )
        self.up = nn.Sequential(*(BasicBlock(inner, inner) for _ in range(count - 1)), BasicBlock(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        skip: Tensor = self.skip(x)
        y = self.up(self.inner(self.down(x)))
        return skip + F.interpolate(y, skip.shape[-2:], mode="nearest")


class HourglassNet(Backbone):
    """[N, in_chans, H, W] -> one map of `out_channels` at stride 4 for each of the `stacks`; losses are put on all of
    them, detections come from the last. H and W are free; multiples of 4 * 2 ** (len(channels) - 1) keep pixels of
    all sizes aligned.

    Parts: `stem` (7x7 convolution and residual block, both strided); of each stack `hourglasses` and `outputs` (3x3
    convolution); between two `from_input`, `from_output` (1x1 convolutions whose sum goes on) and `between` (residual
    block).

    >>> net = HourglassNet(stacks=2, channels=(16, 24), blocks=(1, 1), stem_channels=8, out_channels=32)
    >>> [list(m.shape) for m in net.features(torch.zeros(1, 3, 64, 48))]
    [[1, 32, 16, 12], [1, 32, 16, 12]]
    """

    input_keys = ("stem.0.conv.weight",)

    def __init__(
        self,
        in_chans: int = 3,
        *,
        stacks: int = 2,
        channels: Sequence[int] = CHANNELS,
        blocks: Sequence[int] = BLOCKS,
        stem_channels: int = STEM_CHANNELS,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        if stacks < 1:
            raise ValueError(f"stacks must be 1 or more, got {stacks}")
        width = channels[0]
        self.feature_info = FeatureInfo((out_channels,) * stacks, (4,) * stacks)
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, stem_channels, 7, 2), BasicBlock(stem_channels, width, stride=2)
        )
        self.hourglasses = nn.ModuleList(Hourglass(channels, blocks) for _ in range(stacks))
        self.outputs = nn.ModuleList(ConvNormAct(width, out_channels, 3) for _ in range(stacks))
        gaps = range(stacks - 1)
        self.from_input = nn.ModuleList(ConvNormAct(width, width, act=None) for _ in gaps)
        self.from_output = nn.ModuleList(ConvNormAct(out_channels, width, act=None) for _ in gaps)
        self.between = nn.ModuleList(BasicBlock(width, width) for _ in gaps)

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps: list[Tensor] = []
        for i, (hourglass, output) in enumerate(zip(self.hourglasses, self.outputs, strict=True)):
            maps.append(output(hourglass(x)))
            if i < len(self.between):
                x = self.between[i](torch.relu(self.from_input[i](x) + self.from_output[i](maps[-1])))
        return maps


def authors_hourglass(stacks: int, blocks: Sequence[int]) -> dict[str, str]:
    """The names that the authors of CornerNet, and those of both CenterNets after them, give to the layers of
    `backbone`."""
    paths = {"pre.0.conv": "backbone.stem.0.conv", "pre.0.bn": "backbone.stem.0.norm"}
    paths |= authors_block("pre.1", "backbone.stem.1")
    for i in range(stacks):
        paths |= dict(_authors_stack(f"kps.{i}", f"backbone.hourglasses.{i}", blocks))
        paths |= {f"cnvs.{i}.conv": f"backbone.outputs.{i}.conv", f"cnvs.{i}.bn": f"backbone.outputs.{i}.norm"}
    for i in range(stacks - 1):
        paths |= authors_block(f"inters.{i}", f"backbone.between.{i}")
        for theirs, ours in (("inters_", "from_input"), ("cnvs_", "from_output")):
            paths |= {f"{theirs}.{i}.0": f"backbone.{ours}.{i}.conv", f"{theirs}.{i}.1": f"backbone.{ours}.{i}.norm"}
    return paths


def mmdet_hourglass(stacks: int, blocks: Sequence[int]) -> dict[str, str]:
    """mmdetection's names of the same layers."""
    parts = {"pre.0.": "stem.0.", "pre.1.": "stem.1.0.", "kps.": "hourglass_modules.", "cnvs.": "out_convs."}
    parts |= {"inters.": "inters.", "inters_.": "conv1x1s.", "cnvs_.": "remap_convs."}
    paths = {}
    for theirs, ours in authors_hourglass(stacks, blocks).items():
        part = next(part for part in parts if theirs.startswith(part))
        rest = theirs.removeprefix(part).replace("skip.", "downsample.")
        if part.endswith("_."):  # a convolution and its norm by number
            rest = rest.removesuffix("0") + "conv" if rest.endswith(".0") else rest.removesuffix("1") + "bn"
        paths[f"backbone.{parts[part]}{rest}"] = ours
    return paths


def authors_block(theirs: str, ours: str) -> dict[str, str]:
    """Their residual block."""
    paths = {f"{theirs}.skip.0": f"{ours}.shortcut.conv", f"{theirs}.skip.1": f"{ours}.shortcut.norm"}
    for i in (1, 2):
        paths |= {f"{theirs}.conv{i}": f"{ours}.conv{i}.conv", f"{theirs}.bn{i}": f"{ours}.conv{i}.norm"}
    return paths


def _authors_stack(theirs: str, ours: str, blocks: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Of one hourglass: what is to its sides is numbered 1 (up), 1 and 3 (low), what is inside it is `low2`."""
    for part, name in (("up1", "skip"), ("low1", "down"), ("low3", "up")):
        for i in range(blocks[0]):
            yield from authors_block(f"{theirs}.{part}.{i}", f"{ours}.{name}.{i}").items()
    if len(blocks) > 2:
        yield from _authors_stack(f"{theirs}.low2", f"{ours}.inner", blocks[1:])
    else:
        for i in range(blocks[1]):
            yield from authors_block(f"{theirs}.low2.{i}", f"{ours}.inner.{i}").items()
