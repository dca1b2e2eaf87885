"""ps_roi_align of 1000 boxes on 2x490x50x68 (stride 16), 7x7, against torchvision."""

from bench.common import benchmarks
from bench.ops.pooling import pooling_cases

CASES = pooling_cases("ps_roi_align", (2, 490, 50, 68), 1 / 16, 2)

test_ps_roi_align = benchmarks(CASES)
