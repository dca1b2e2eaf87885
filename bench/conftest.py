"""pytest-benchmark as the driver of bench/common.py, and the report at the end of a run.

`pytest bench/ops --benchmark-enable` times; without that option every case runs once, agreement check included.
pytest-benchmark's own setup hook runs the peers before each round of cvops, which is what makes rounds alternate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import common, report

torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU, for both sides: the figures are about float32

ROWS: list[common.Row] = []


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    listed = parent.session.isinitpath(file_path)  # a file named on the command line is collected by pytest itself
    if not listed and file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture
def contest(benchmark) -> Callable[[common.Case, str], common.Row]:
    def run(case: common.Case, device: str) -> common.Row:
        def drive(run_cvops: common.Call, run_peers: common.Call, rounds: int) -> None:
            benchmark.group = case.op
            benchmark.pedantic(run_cvops, setup=run_peers, rounds=rounds, iterations=1)

        row = common.compare(case, device, drive, common.ROUNDS if benchmark.enabled else 1)
        benchmark.extra_info.update(asdict(row))
        if benchmark.enabled:
            ROWS.append(row)
            report.save([row])  # a run that is ended early keeps what it has timed
        return row

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.write_line("\n" + report.table(ROWS))
        disturbed = sum(row.disturbed for row in ROWS)
        if disturbed:
            terminalreporter.write_line(
                f"{disturbed} rows marked ? were disturbed by other load; run again when quiet."
            )
        results = report.results_file()
        terminalreporter.write_line(f"\nwritten: {results}, {report.plot(results)}")
