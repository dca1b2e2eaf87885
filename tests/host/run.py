"""Runs pytest on the third backend: the CUDA kernels, on the CPU, through the shim.

    python tests/host/run.py [--asan] [--cpu] [--order forward|reverse|shuffled] [-- pytest arguments]

`--cpu` runs it on the CPU kernels instead, for the sake of the sanitizers. Builds the library first. Without pytest
arguments it runs tests/ops.
"""

import argparse
import os
import sys

from host_library import ROOT, build
from shim import ORDERS, sanitizer_environment

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--asan", action="store_true", help="with the address and undefined-behaviour sanitizers")
    parser.add_argument("--cpu", action="store_true", help="on the CPU kernels, not on those of CUDA")
    parser.add_argument("--order", choices=ORDERS, default="forward", help="in which threads and blocks take turns")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()
    environment = {
        **os.environ,
        "CVOPS_OPS_LIBRARY": str(build("cpu" if arguments.cpu else "cuda", arguments.asan)),
        **({} if arguments.cpu else {"CVOPS_HOST_ORDER": arguments.order}),
        **(sanitizer_environment() if arguments.asan else {}),
    }
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "pytest", *(arguments.pytest or ["tests/ops"])], environment)
