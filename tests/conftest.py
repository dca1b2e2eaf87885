"""Fixtures of the whole suite: where ops run (`device`), and the one tolerance table per dtype.

The op suite runs on three backends. `cpu` and, where there is a GPU, `cuda` are parameters of `device`. The third, the
CUDA kernels compiled for the host (tests/host), is a library that replaces the CPU kernels for a whole process
(CVOPS_OPS_LIBRARY), so there the same tests run with device `cpu`; CVOPS_HOST_ORDER tells such a process. Each
instruction set is a process of its own too (CVOPS_CPU_ISA).
"""

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic mode asks for on a GPU

ON_CUDA_HOST = "CVOPS_HOST_ORDER" in os.environ
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and not ON_CUDA_HOST else [])]

# Inputs that hypothesis generates for one op family: fewer where every CUDA thread is a fiber.
EXAMPLES = 100 if ON_CUDA_HOST else 500

# Relative and absolute tolerance of one op against its reference in the same dtype (docs/numerics.md).
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def on_cuda_host():
    return ON_CUDA_HOST


@pytest.fixture
def torchvision():
    """The peer; absent from the second environment, which checks binary compatibility with another torch."""
    return pytest.importorskip("torchvision")
