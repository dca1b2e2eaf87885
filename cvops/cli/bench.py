"""`cvops bench`: runs the op comparison of a source checkout. The benchmarks themselves are in its `bench/ops`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import typer

import cvops
from cvops.cli.errors import UserError


def bench(context: typer.Context) -> None:
    """Time the ops against their peers; further arguments go to pytest, e.g. `cvops bench -k nms`."""
    root = find_checkout()
    missing = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the benchmarks need {', '.join(missing)}: pip install 'cvops[bench]'")
    command = [sys.executable, "-m", "pytest", "bench/ops", "--benchmark-enable", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)


def find_checkout() -> Path:
    """The folder that holds `bench/ops`: the working directory, or where this package was imported from."""
    places = [Path.cwd(), Path(cvops.__file__).resolve().parent.parent]
    for place in places:
        if (place / "bench" / "ops").is_dir():
            return place
    tried = " and ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(f"no bench/ops in {tried}: the benchmarks are in the source checkout, run the command there")
