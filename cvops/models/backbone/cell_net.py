"""The network of NASNet and AmoebaNet: a strided stem, two reduction cells, and three stages of normal cells with a
reduction cell in front of the last two. Which cells, and how others name the layers, is in the family files."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import Norm, Padding, recompute
from cvops.nn.cells import CellSpec, SearchedCell
from cvops.nn.conv import ConvNormAct
from cvops.ops.drop_path import ScheduledDropPath

SCHEDULE_STEPS = 1_000_000  # resolution of the progress that `set_drop_progress` takes


def cells_of(repeats: int) -> Iterator[tuple[int | None, int | None, str]]:
    """(stage, index of the normal cell in it, our module path) of every cell, in order: what key maps iterate over. The
    stage is None for the two stem cells, the index for reduction cells."""
    for i in range(2):
        yield None, None, f"backbone.stem_cells.{i}"
    for stage in range(3):
        if stage > 0:
            yield stage, None, f"backbone.stages.{stage}.0"
        for j in range(repeats):
            yield stage, j, f"backbone.stages.{stage}.{j + (stage > 0)}"


class CellNet(Backbone):
    """[N, in_chans, H, W] -> maps at strides 2, 4, 8, 16 and 32 (of the stem and of the last cell of each resolution,
    rectified as the next cell takes them).

    Parts: `stem`, `stem_cells`, `stages` (the reduction cell of a stage is its first). Every cell takes the outputs of
    the two before it. The stem does not pad unless `stem_padding` is 1, so maps are up to one pixel smaller.

    stem_channels, stem_filters, filters: widths of the stem, of its two reduction cells, and of the first stage; each
        stage doubles it.
    repeats: normal cells of each stage.
    stem_reads_raw: the first cell takes the stem as it is for its previous input, instead of through a convolution.
    skip_reduction: the cell after a reduction cell takes for its previous input what the reduction cell took.
    rectify_image, rectify_last: a ReLU in front of the stem (torchgpipe), and one after the last cell.
    drop_path: final rate of ScheduledDropPath in the last cell; it grows linearly over the cells, and with the progress
        of training that `cvops.nn.set_drop_progress` tells (1, all of it, until told).
    checkpointing: recompute each cell in the backward pass.

    >>> spec = CellSpec((((0, "sep_3x3"), (1, "none")),), concat=(1, 2))
    >>> reduction = CellSpec((((0, "max_3x3"), (1, "sep_3x3")),), concat=(2,))
    >>> net = CellNet(3, 8, (4, 8), 16, 2, spec, reduction)
    >>> [list(f.shape) for f in net.features(torch.zeros(1, 3, 65, 65))]
    [[1, 8, 32, 32], [1, 4, 16, 16], [1, 32, 8, 8], [1, 64, 4, 4], [1, 128, 2, 2]]
    """

    input_keys = ("stem.conv.weight",)
    min_size = 3

    def __init__(
        self,
        in_chans: int,
        stem_channels: int,
        stem_filters: tuple[int, int],
        filters: int,
        repeats: int,
        normal: CellSpec,
        reduction: CellSpec,
        *,
        stem_padding: int = 0,
        stem_reads_raw: bool = True,
        skip_reduction: bool = False,
        rectify_image: bool = False,
        rectify_last: bool = True,
        padding: Padding = "same",
        norm: Norm = nn.BatchNorm2d,
        counts_padding: bool = False,
        mean_for_max: bool = False,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.rectify_image, self.rectify_last = rectify_image, rectify_last
        self.skip_reduction, self.checkpointing = skip_reduction, checkpointing
        self.stem = ConvNormAct(in_chans, stem_channels, 3, 2, padding=stem_padding, norm=norm, act=None)
        cells = 2 + 3 * repeats + 2
        # Channels and stride of the two inputs of the next cell.
        current, previous, count = (stem_channels, 2), (None if stem_reads_raw else stem_channels, 2), 0

        def make(spec: CellSpec, channels: int, stride: int = 1) -> SearchedCell:
            nonlocal count
            count += 1
            drop = None
            if drop_path > 0:
                drop = ScheduledDropPath(drop_path, count, cells, SCHEDULE_STEPS)
                drop.step = SCHEDULE_STEPS
            return SearchedCell(
                spec,
                current[0],
                previous[0],
                channels,
                stride,
                previous_stride=current[1] // previous[1],
                padding=padding,
                norm=norm,
                counts_padding=counts_padding,
                mean_for_max=mean_for_max,
                drop_path=drop,
            )

        self.stem_cells, self.stages = nn.ModuleList(), nn.ModuleList()
        channels = [stem_channels]
        for width in stem_filters:
            cell = make(reduction, width, 2)
            self.stem_cells.append(cell)
            current, previous = (cell.out_channels, current[1] * 2), current
            channels.append(cell.out_channels)
        del channels[2:]  # the second is at the first stage's resolution
        for i in range(3):
            stage = nn.ModuleList()
            width = filters * 2**i
            if i > 0:
                cell = make(reduction, width, 2)
                stage.append(cell)
                reduced = (cell.out_channels, current[1] * 2)
                current, previous = reduced, previous if skip_reduction else current
            for _ in range(repeats):
                cell = make(normal, width)
                stage.append(cell)
                current, previous = (cell.out_channels, current[1]), current
            self.stages.append(stage)
            channels.append(current[0])
        self.feature_info = FeatureInfo(channels=tuple(channels), strides=(2, 4, 8, 16, 32))

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(F.relu(x) if self.rectify_image else x)
        maps = [x]
        previous = x
        first, second = self.stem_cells
        x, previous = self._run(first, x, previous), x
        maps.append(F.relu(x))
        x, previous = self._run(second, x, previous), x
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            for j, cell in enumerate(stage):
                y = self._run(cell, x, previous)
                reduces = i > 0 and j == 0
                x, previous = y, previous if reduces and self.skip_reduction else x
            last = i == len(self.stages) - 1
            maps.append(x if last and not self.rectify_last else F.relu(x))
        return maps

    def _run(self, cell: nn.Module, x: Tensor, previous: Tensor) -> Tensor:
        y: Tensor = recompute(cell, x, previous) if self.checkpointing else cell(x, previous)
        return y
