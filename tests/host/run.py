"""Runs pytest on the third backend: the CUDA kernels, on the CPU, through the shim.

    python tests/host/run.py [--asan] [--order forward|reverse|shuffled] [-- pytest arguments]

Builds the library first. Without pytest arguments it runs tests/ops.
"""

import argparse
import os
import sys

from host_library import ROOT, build
from shim import ORDERS, sanitizer_environment

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--asan", action="store_true", help="with the address and undefined-behaviour sanitizers")
    parser.add_argument("--order", choices=ORDERS, default="forward", help="in which threads and blocks take turns")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()
    environment = {
        **os.environ,
        "CVOPS_OPS_LIBRARY": str(build(asan=arguments.asan)),
        "CVOPS_HOST_ORDER": arguments.order,
        **(sanitizer_environment() if arguments.asan else {}),
    }
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "pytest", *(arguments.pytest or ["tests/ops"])], environment)
