"""The shim's own tests: CUDA semantics on toy kernels, and the faults that it exists to catch, each beside its correct
twin. The kernels are in toy.cu."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HOST = Path(__file__).parent
sys.path.insert(0, str(HOST))

from host_library import build  # noqa: E402
from shim import ORDERS, Shim, sanitizer_environment  # noqa: E402


@pytest.fixture(scope="module")
def shim():
    library = build("toy")
    torch.ops.load_library(library)
    return Shim(library)


@pytest.fixture(params=ORDERS)
def order(request, shim):
    shim.set_order(request.param)
    yield request.param
    shim.set_order("forward")


@pytest.fixture(scope="module")
def toy(shim):
    return torch.ops.cvops_toy


def reversed_runs(x):
    return torch.cat([run.flip(0) for run in x.split(64)])


# --- CUDA semantics ---


@pytest.mark.parametrize("n", [1, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shared_memory_and_barrier(toy, order, n, dtype):
    x = torch.arange(n).to(dtype)
    assert torch.equal(toy.reverse(x, True), reversed_runs(x))


def test_block_reduction(toy, order):
    x = torch.randn(300)
    expected = torch.stack([run.double().sum() for run in x.split(64)])
    torch.testing.assert_close(toy.block_sums(x, False).double(), expected, rtol=1e-5, atol=1e-5)


def test_warp_operations(toy, order):
    x = torch.randn(100)
    facts = toy.warp_facts(x)
    padded = torch.cat([x, torch.zeros(28)])
    warps = padded.view(4, 32)
    positive = (warps > 0).int()
    before = (positive.cumsum(1) - positive).flatten()
    largest = warps.max(1, keepdim=True).values.expand(4, 32).flatten()
    up = torch.cat([warps[:, :3], warps[:, :-3]], 1).flatten()
    count = positive.view(2, 64).sum(1, keepdim=True).expand(2, 64).flatten()
    assert torch.equal(facts, torch.stack([before, largest, up, count], 1)[:100].float())


def test_atomics_and_dynamic_shared_memory(toy, order):
    x = torch.randint(0, 37, (1000,))
    assert torch.equal(toy.histogram(x, 37).long(), x.bincount(minlength=37))


def test_blocks_that_wait_for_earlier_tickets(toy, order):
    x = torch.randint(0, 9, (1000,), dtype=torch.int32)
    assert torch.equal(toy.prefix_sum(x, False), x.cumsum(0).int())


def test_aligned_load(toy, order):
    x = torch.arange(8.0)
    assert torch.equal(toy.load_at(x, 4), x[4:])


def test_counters(toy, shim):
    x = torch.randn(200)
    with shim.counting() as counts:
        toy.reverse(x, True)
        toy.block_sums(x, False)
        toy.block_sums(x, False)
        toy.histogram(torch.zeros(5, dtype=torch.int64), 3)
        indices, first = toy.order_of(x)
    assert counts.launches == {"reverse_kernel<scalar_t>": 1, "block_sums_kernel<kThreads>": 2, "histogram_kernel": 1}
    assert counts.syncs == 1
    assert counts.memsets == 1
    assert counts.dispatches["aten::sort"] == 1
    assert torch.equal(indices, x.sort(stable=True, descending=True).indices)
    assert first == x.argmax()
    with shim.counting() as counts:
        toy.reverse(torch.empty(0), True)
    assert counts.launches == {}, "an empty grid is no launch"


# --- Faults that must be caught ---


def test_missing_barrier_changes_the_result(toy, shim):
    x = torch.arange(1.0, 65.0)
    wrong = []
    for name in ORDERS:
        shim.set_order(name)
        if not torch.equal(toy.reverse(x, False).nan_to_num(-1), reversed_runs(x)):
            wrong.append(name)
    shim.set_order("forward")
    assert wrong, "no order showed the missing barrier"


def test_shared_memory_starts_poisoned(toy, shim):
    shim.set_order("forward")
    toy.reverse(torch.ones(64), True)
    assert toy.reverse(torch.ones(64), False)[0].isnan(), "the block before must not show through"


def test_barrier_after_early_return(toy, order):
    with pytest.raises(
        RuntimeError,
        match=r"block_sums_kernel<kThreads>, block \(1, 0, 0\).*divergent barrier.*and 35 "
        r"more waits in a warp operation|divergent barrier.*returned",
    ):
        toy.block_sums(torch.ones(100), True)
    assert toy.block_sums(torch.ones(64), True).item() == 64, "the shim must go on working after a fault"


def test_two_different_barriers(toy, order):
    with pytest.raises(
        RuntimeError, match=r"two_barriers_kernel.*__syncthreads at toy.cu:\d+.*__syncthreads at toy.cu"
    ):
        toy.two_barriers(torch.zeros(64))


def test_lanes_missing_from_a_shuffle(toy, order):
    with pytest.raises(RuntimeError, match=r"half_mask_kernel.*15 more waits in a warp operation at toy.cu"):
        toy.half_mask(torch.zeros(32))


def test_wait_that_never_ends(toy, order):
    with pytest.raises(RuntimeError, match=r"prefix_sum_kernel.*waits for another block at device.cuh"):
        toy.prefix_sum(torch.ones(100, dtype=torch.int32), True)


def test_launch_that_no_device_takes(toy):
    with pytest.raises(RuntimeError, match=r"half_mask_kernel: no device takes this launch.*2048"):
        toy.too_many_threads(torch.zeros(32))


# --- Faults that only the sanitizers see: each in a process of its own, since they end it ---


@pytest.fixture(scope="module")
def sanitized():
    library = build("toy", asan=True)

    def run(call: str) -> subprocess.CompletedProcess:
        code = (
            f"import torch\ntorch.ops.load_library({str(library)!r})\ntoy = torch.ops.cvops_toy\n{call}\nprint('end')"
        )
        environment = {**os.environ, **sanitizer_environment()}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    return run


def test_sanitizers_pass_correct_kernels(sanitized):
    done = sanitized(
        "toy.overflow(torch.zeros(64), 0); toy.load_at(torch.zeros(8), 4)\n"
        "toy.block_sums(torch.ones(500), False); toy.warp_facts(torch.ones(500))\n"
        "try:\n    toy.two_barriers(torch.zeros(64))\nexcept RuntimeError as error:\n    print(error)\n"
        "toy.block_sums(torch.ones(500), False)"
    )
    assert done.returncode == 0, done.stderr
    assert "divergent barrier" in done.stdout
    assert done.stdout.endswith("end\n")


@pytest.mark.parametrize(
    ("where", "report"),
    [
        pytest.param(1, r"toy.cu:\d+.*index 64 out of bounds for type 'float \[64\]'", id="static_shared"),
        pytest.param(2, r"(?s)heap-buffer-overflow.*WRITE of size 4.*overflow_kernel", id="dynamic_shared"),
        pytest.param(3, r"(?s)heap-buffer-overflow.*WRITE of size 4.*overflow_kernel", id="global"),
    ],
)
def test_out_of_bounds_write(sanitized, where, report):
    done = sanitized(f"toy.overflow(torch.zeros(64), {where})")
    assert done.returncode != 0
    assert re.search(report, done.stderr), done.stderr


def test_misaligned_load(sanitized):
    done = sanitized("toy.load_at(torch.zeros(8), 1)")
    assert done.returncode != 0
    assert "misaligned address" in done.stderr
