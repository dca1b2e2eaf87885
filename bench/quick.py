"""The one-minute tour: cvops against its peers on the cases marked `quick`, few rounds, a table and nothing written.

`python -m bench.quick`; the full run is `make bench`.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from bench import common, report


def main(seconds: float = 60, rounds: int = 7) -> None:
    stop = time.perf_counter() + seconds
    rows, left_out = [], 0
    for file in sorted((Path(__file__).parent / "ops").glob("bench_*.py")):
        for case in importlib.import_module(f"bench.ops.{file.stem}").CASES:
            for device in set(common.devices()) & set(case.devices) if case.quick else ():
                if time.perf_counter() > stop:
                    left_out += 1
                    continue
                print(f"\r{case!s:<70}", end="", file=sys.stderr, flush=True)
                rows.append(common.compare(case, device, common.drive_plain, rounds))
    print(f"\r{'':<70}\r", end="", file=sys.stderr)
    print(report.table(rows))
    if left_out:
        print(f"{left_out} cases left out: the {seconds:g} seconds were over")


if __name__ == "__main__":
    main()
