"""What only a GPU can show of every op: that it computes what the CPU does, on the stream that is current, and inside a
CUDA graph where nothing waits for the device. The rest of the op suite runs there too, by its `device` fixture."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ON_CUDA_HOST, TOLERANCE

from cvops import ops
from ops.calls import CALLS
from ops.test_qualities import assert_same_bits, flat, outputs

pytestmark = pytest.mark.skipif(ON_CUDA_HOST or not torch.cuda.is_available(), reason="there is no GPU")

# The size of their result depends on the data, so the host waits for it once.
WAITING = {"nms", "batched_nms", "multiclass_nms", "soft_nms"}
CAPTURED = [call for call in CALLS if call.name not in WAITING]


@pytest.fixture(autouse=True)
def _deterministic():
    """So that bits can be compared: the gradient of deform_conv2d's input adds atomically otherwise."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(call, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return call.inputs(dtype, requires_grad=True, device="cuda")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_equals_the_cpu(call, dtype):
    """Also the random ops: one seed draws the same mask on both."""
    on_cuda = drawn(call, dtype)
    on_cpu = [x.detach().cpu().requires_grad_(x.requires_grad) for x in on_cuda]
    found, expected = flat(call.run(*on_cuda)), flat(call.run(*on_cpu))
    if call.leaves and dtype.itemsize >= 4:
        found, expected = outputs(call, on_cuda), outputs(call, on_cpu)
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == "cuda"
        torch.testing.assert_close(a.cpu(), b, **TOLERANCE[dtype])


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_runs_on_the_current_stream(call):
    """The inputs are written late on a side stream; work on any other one would read what lay there before."""
    ready = drawn(call)
    expected = outputs(call, ready)
    late = [torch.zeros_like(x).requires_grad_(x.requires_grad) for x in ready]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # cycles, about 10 ms
        with torch.no_grad():
            for to, x in zip(late, ready, strict=True):
                to.copy_(x)
        found = outputs(call, late)
    stream.synchronize()
    assert_same_bits(found, expected)


@pytest.mark.parametrize("call", CAPTURED, ids=str)
def test_replays_in_a_cuda_graph(call):
    """Forward and backward are captured once and replayed on other inputs. A wait for the device ends a capture with an
    error, so this shows too that there is none."""
    inputs, others = drawn(call), drawn(call, seed=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # what allocates or loads at the first call
            outputs(call, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs(call, inputs)
    with torch.no_grad():
        for to, x in zip(inputs, others, strict=True):
            to.copy_(x)
    graph.replay()
    assert_same_bits(captured, outputs(call, others))


def test_every_replay_draws_another_mask():
    ones = torch.ones(64, 8, 32, 32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    ops.drop_block2d(ones, 0.3, 3)
    with torch.cuda.graph(graph):
        dropped = ops.drop_block2d(ones, 0.3, 3)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(dropped != 0)
        assert abs(masks[-1].float().mean().item() - 0.7) < 0.02
    assert not torch.equal(*masks)


CAPTURE = """
import torch
from ops.test_cuda import CALLS, WAITING, assert_same_bits, drawn, outputs
for call in CALLS:
    if call.name in WAITING:
        inputs = drawn(call)
        expected = outputs(call, inputs)
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                outputs(call, inputs)
        except RuntimeError as error:
            assert "captur" in str(error), error
        else:
            raise AssertionError(f"{call} was captured")
        assert_same_bits(outputs(call, inputs), expected)
"""


def test_ops_that_wait_say_so_under_capture():
    """An error, not a wrong answer, and the op is fit for use afterwards. In a process of its own, since a capture that
    failed leaves torch's random generator unusable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CAPTURE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
