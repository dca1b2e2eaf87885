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
                show(f"{case!s:<70}")
                rows.append(common.compare(case, device, common.drive_plain, rounds))
    show(f"{'':<70}\r")
    print(report.table(rows))
    if left_out:
        print(f"{left_out} cases left out: the {seconds:g} seconds were over")


def show(text: str) -> None:
    """A line on the terminal that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
