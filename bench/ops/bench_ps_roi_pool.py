"""ps_roi_pool of 1000 boxes on 2x490x50x68 (stride 16), 7x7, against torchvision."""

import torch

from bench.common import benchmarks
from bench.ops.bench_roi_align import CLOSE
from bench.ops.pooling import pooling_cases


def inside(a: tuple[torch.Tensor], b: tuple[torch.Tensor]) -> None:
    """Away from the last rows and columns: in bins that reach them torchvision's gradient is not that of its forward
    (docs/numerics.md)."""
    CLOSE(a[0][..., :-16, :-16], b[0][..., :-16, :-16])


CASES = pooling_cases("ps_roi_pool", (2, 490, 50, 68), 1 / 16, agree=inside)

test_ps_roi_pool = benchmarks(CASES)
