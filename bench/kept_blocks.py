"""What it is worth to keep freed blocks of large outputs (csrc/cpu/fresh_memory.h).

    python -m bench.kept_blocks

Times ops with large outputs in a process that keeps blocks and in one that keeps none, each call after a call of
torchvision's that frees gigabytes, as in a training step. Prints medians.
"""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import statistics, time, torch, torchvision, cvops
x = torch.rand(32, 256, 56, 56)  # 103 MB
mask, kept = torch.ops.cvops.drop_block_mask(x, torch.tensor([1]), [7, 7], 0.1)
boxes = torch.rand(4000, 4).cumsum(1)
calls = {
    "drop_block, in place": lambda: torch.ops.cvops.drop_block_(x, mask, kept, 0.0),
    "drop_block, 103 MB": lambda: torch.ops.cvops.drop_block(x, mask, kept, 0.0),
    "box_iou, 64 MB": lambda: cvops.ops.box_iou(boxes, boxes),
}
for name, call in calls.items():
    times = []
    for _ in range(8):
        torchvision.ops.drop_block2d(x, 0.1, 7)
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    print(f"{name}: {statistics.median(times[1:]) * 1e3:.3g} ms (worst {max(times[1:]) * 1e3:.3g})")
"""


def main() -> None:
    for megabytes in ("0", "256"):
        print(f"CVOPS_CPU_CACHE_MB={megabytes}", flush=True)
        subprocess.run([sys.executable, "-c", CODE], env={**os.environ, "CVOPS_CPU_CACHE_MB": megabytes}, check=True)


if __name__ == "__main__":
    main()
