"""What every op promises beside its values: bits that do not depend on threads, concurrent calls, use after fork,
deterministic mode, forward mode, and that no public op is left out of these tests."""

import copy
import inspect
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ON_CUDA_HOST
from torch.autograd import forward_ad

from cvops import ops
from ops.calls import CALLS

DIFFERENTIABLE = [call for call in CALLS if call.leaves]


def flat(out):
    return list(out) if isinstance(out, tuple | list) else [out]


def outputs(call, inputs, gradients=True):
    """Results and, where there are any, gradients."""
    results = flat(call.run(*inputs))
    if call.leaves and gradients:
        total = sum(out.sin().sum() for out in results if out.is_floating_point() and out.requires_grad)
        results += torch.autograd.grad(total, inputs[: call.leaves])
    return [out.detach() for out in results]


def assert_same_bits(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_every_public_function_has_a_call():
    functions = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    without_kernel = {"box_area", "box_convert", "giou_loss"}  # tensor arithmetic, and an alias
    assert functions - without_kernel == {call.name for call in CALLS}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_threads_do_not_change_bits(call):
    if ON_CUDA_HOST and call.name == "deform_conv2d":
        pytest.skip("its CUDA side multiplies with torch's own product, which on the host depends on the threads")
    inputs = call.inputs(requires_grad=True)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(outputs(call, inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same_bits(found[0], other)


@pytest.mark.skipif(ON_CUDA_HOST, reason="the shim runs one kernel at a time")
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_concurrent_calls_from_python_threads(call, device):
    """Four threads, each with inputs of its own, ten times each: no shared scratch memory."""
    inputs = [call.inputs(requires_grad=True, device=device) for _ in range(4)]
    failures = []

    def work(own, answer):
        try:
            for _ in range(10):
                assert_same_bits(outputs(call, own), answer)
        except BaseException as error:
            failures.append(error)

    torch.use_deterministic_algorithms(device == "cuda")  # deform_conv2d adds atomically otherwise
    try:
        expected = [outputs(call, own) for own in inputs]
        threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.use_deterministic_algorithms(False)
    assert failures == []


# torch refuses to differentiate in a fork of a process whose engine has a thread for a GPU.
FORK_GRADIENTS = not torch.cuda.is_available()


def _child(queue, names):
    torch.set_num_threads(1)  # as DataLoader does in its workers
    torch.manual_seed(5)
    for call in CALLS:
        if call.name in names:
            found = outputs(call, call.inputs(requires_grad=True), FORK_GRADIENTS)
            queue.put((call.name, [t.double().tolist() for t in found]))


def compare_with_a_fork():
    names = [call.name for call in CALLS]
    torch.manual_seed(5)
    expected = {call.name: outputs(call, call.inputs(requires_grad=True), FORK_GRADIENTS) for call in CALLS}
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue, names))
    process.start()
    try:
        found = dict(queue.get(timeout=60) for _ in names)
    finally:
        process.join(10)
        process.kill()
    for name, values in expected.items():
        assert [t.double().tolist() for t in values] == found[name], name


@pytest.mark.skipif(ON_CUDA_HOST, reason="the shim's fibers belong to the process that made them")
def test_fork_after_use():
    """A forked worker, as DataLoader makes them, computes what its parent does, after the parent used its threads. In a
    fresh process: torch itself refuses to differentiate in a fork once its engine has threads for other devices, which
    any test before this one may have started."""
    code = "from ops.test_qualities import compare_with_a_fork; compare_with_a_fork()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_deterministic_mode_is_accepted_and_repeats(call, device):
    inputs = call.inputs(requires_grad=True, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = outputs(call, inputs), outputs(call, copy.copy(inputs))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(first, second)


@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=str)
def test_forward_mode_is_the_transpose_of_reverse_mode(call, device):
    """<u, J v> = <J^T u, v>, by torch.func and by dual numbers."""
    inputs = call.inputs(torch.float64, device=device)
    leaves, rest = inputs[: call.leaves], inputs[call.leaves :]

    def run(*args):
        return tuple(out for out in flat(call.run(*args, *rest)) if out.is_floating_point())

    tangents = tuple(torch.randn_like(x) for x in leaves)
    primal, pushed = torch.func.jvp(run, tuple(leaves), tangents)
    cotangents = tuple(torch.randn_like(x) for x in primal)
    pulled = torch.func.vjp(run, *leaves)[1](cotangents)
    left = sum((u * v).sum() for u, v in zip(cotangents, pushed, strict=True))
    right = sum((u * v).sum() for u, v in zip(pulled, tangents, strict=True))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    with forward_ad.dual_level():
        dual = run(*(forward_ad.make_dual(x, t) for x, t in zip(leaves, tangents, strict=True)))
        for out, expected in zip(dual, pushed, strict=True):
            torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected)
