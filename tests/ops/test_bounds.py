"""No op reads beyond its inputs: they lie against a page that cannot be read, at their end or at their beginning.

The kernels are those that users run, on each instruction set (CVOPS_CPU_ISA), where a sanitizer has a build of its own.
A read outside kills the process, so the calls are made in another one, which says what it is about to do.
"""

import ctypes
import mmap
import os
import subprocess
import sys

import pytest
import torch

from cvops import ops
from ops.calls import CALLS

PAGE = mmap.PAGESIZE
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}

# Kernel size, stride, side and channels of depthwise convolutions: each way in which a row ends.
DEPTHWISE = [(k, s, side, c) for k in (3, 5, 7) for s in (1, 2) for side in (5, 7, 14, 19, 33) for c in (3, 9)]
DEPTHWISE += [(4, 3, 11, 5), (3, 1, 1, 1), (1, 1, 6, 20)]


def guarded(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy of a dense tensor whose last byte is the last before an unreadable page, or its first the first after."""
    size = -(-max(tensor.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (begin, begin + PAGE + size):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0) == 0, os.strerror(ctypes.get_errno())
    offset = PAGE + size - tensor.nbytes if at_end else PAGE
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def run_guarded(run, inputs, leaves: int, at_end: bool) -> None:
    """Forward, and backward if there is something to differentiate."""
    made = [guarded(t.contiguous() if t.dim() != 4 else t, at_end) for t in inputs]
    for tensor in made[:leaves]:
        tensor.requires_grad_()
    out = run(*made)
    outs = [t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad]
    if outs:
        grads = [guarded(torch.randn_like(t), at_end) for t in outs]
        torch.autograd.grad(outs, made[:leaves], grads, allow_unused=True)


def run_all(at_end: bool, dtype: torch.dtype) -> None:
    for call in CALLS:
        for name, layout in FORMATS.items():
            print(call, dtype, name, flush=True)
            inputs = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in call.inputs(dtype)]
            run_guarded(call.run, inputs, call.leaves, at_end)
    for k, stride, side, c in DEPTHWISE:
        for name, layout in FORMATS.items():
            print(f"depthwise_conv2d {k}x{k} stride {stride} on 2x{c}x{side}x{side}", dtype, name, flush=True)
            x = torch.randn(2, c, side, side).to(dtype).contiguous(memory_format=layout)
            weight, bias = torch.randn(c, 1, k, k).to(dtype), torch.randn(c).to(dtype)
            run_guarded(
                lambda x, w, b, k=k, s=stride: ops.depthwise_conv2d(x, w, b, s, k // 2), [x, weight, bias], 3, at_end
            )


def main(at_end: bool) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        run_all(at_end, dtype)
    print("done")


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "beginning"])
def test_nothing_is_read_beyond_an_input(at_end):
    code = f"from ops.test_bounds import main; main({at_end})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines() or ["nothing"]
    assert said[-1] == "done", f"ended with {done.returncode} in {said[-1]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, done.stderr[-2000:]
