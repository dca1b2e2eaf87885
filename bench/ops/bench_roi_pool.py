"""roi_pool of 1000 boxes on 2x256x200x272 (stride 4), 7x7, against torchvision."""

from bench.common import benchmarks
from bench.ops.pooling import pooling_cases

CASES = pooling_cases("roi_pool", (2, 256, 200, 272), 1 / 4)

test_roi_pool = benchmarks(CASES)
