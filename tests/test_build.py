"""The built package: what its libraries import, that it loads where CUDA cannot, one answer on every instruction set,
and the memory promises. Each check that needs a fresh process runs one."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cvops
from cvops import _library

PACKAGE = Path(cvops.__file__).parent
ROOT = PACKAGE.parent
LIBRARIES = [p for p in (PACKAGE / "_ops.so", PACKAGE / "_ops_cuda.so") if p.is_file()]


def run(code, cwd=ROOT, **env):
    """Standard output of a fresh interpreter; `cwd` comes first on its path."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not on this machine")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_libraries_import_only_the_stable_abi(library):
    listed = subprocess.run(["nm", "-D", "--undefined-only", "-C", library], capture_output=True, text=True, check=True)
    symbols = [line.split(maxsplit=1)[1] for line in listed.stdout.splitlines()]
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in symbols), "the C shim is not used: is this the library?"
    # The part before the parameters: our own functions may take a torch::stable::Tensor, which is header-only.
    foreign = [s for s in symbols if re.search(r"\b(at|c10|torch)::", s.split("(")[0])]
    assert foreign == []


def test_cuda_library_was_built_where_nvcc_is():
    """Also on machines without a GPU, unless the build was told not to."""
    if not _library.build_info()["cuda"]:
        pytest.skip("this build has no CUDA: no nvcc, a CPU-only torch, or CVOPS_CUDA=0")
    assert (PACKAGE / "_ops_cuda.so").is_file()
    report = _library.report()
    if torch.version.cuda and not os.environ.get("CVOPS_OPS_LIBRARY"):
        assert "_ops_cuda.so" in report["loaded"], report["skipped"]


def test_report_tells_what_runs():
    report = _library.report()
    assert report["torch"] == torch.__version__
    assert report["isa"] in ("scalar", "avx2", "avx512")
    assert report["loaded"]
    assert report["built_with"]["compiler"]


def test_import_survives_a_broken_cuda_library(tmp_path):
    package = tmp_path / "cvops"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("_ops_cuda.so", "__pycache__"))
    (package / "_ops_cuda.so").write_bytes(b"not a library")
    out = run("import cvops, json; print(json.dumps(cvops._library.report()))", cwd=tmp_path, PYTHONPATH="")
    report = json.loads(out)
    assert "_ops.so" in report["loaded"]
    assert "_ops_cuda.so" in report["skipped"], report
    assert report["loaded"]["_ops.so"].startswith(str(tmp_path))


def test_an_unbuilt_package_says_what_to_do(tmp_path):
    package = tmp_path / "cvops"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", "import cvops"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "CVOPS_OPS_LIBRARY": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ImportError: cvops is not built" in done.stderr
    assert "pip install -e ." in done.stderr


def test_an_unknown_isa_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", "import cvops; cvops._library.active_isa()"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CVOPS_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "CVOPS_CPU_ISA must be scalar, avx2 or avx512, got sse9" in done.stderr


BIT_EXACT = """
import hashlib, torch, cvops
from ops.boxes import random_boxes
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    a, b = random_boxes(301, dtype=dtype).requires_grad_(), random_boxes(203, dtype=dtype).requires_grad_()
    scores, ids = torch.rand(301).to(dtype), torch.randint(0, 3, (301,))
    results = []
    for metric in range(4):
        out = torch.ops.cvops.box_iou(a, b, metric, 1e-7)
        results += [out, *torch.autograd.grad(out.sin().sum(), (a, b))]
        loss = torch.ops.cvops.iou_loss(a[:203], b, metric, 1e-7)
        results += [loss, *torch.autograd.grad(loss.sin().sum(), (a, b))]
    results += [cvops.ops.batched_nms(a, scores, ids, 0.4), cvops.ops.matrix_nms(a, scores, idxs=ids)]
    results += cvops.ops.soft_nms(a, scores, idxs=ids)
    for result in results:
        digest.update(result.detach().double().numpy().tobytes())
print(cvops._library.active_isa(), digest.hexdigest())
"""


def test_box_ops_give_the_same_bits_on_every_isa():
    best = _library.active_isa()
    names = ["scalar", "avx2", "avx512"]
    names = names[: names.index(best) + 1]
    outputs = [run(BIT_EXACT, CVOPS_CPU_ISA=name).split() for name in names]
    assert [name for name, _ in outputs] == names
    assert len({digest for _, digest in outputs}) == 1
    assert outputs[0][1] != hashlib.sha256().hexdigest()


PEAK = """
import torch, cvops, sys
from pathlib import Path
torch.set_num_threads(2)
def status(field):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field)).split()[1])
def boxes(n):
    xy = torch.rand(n, 2) * 1000
    return torch.cat([xy, xy + torch.rand(n, 2) * 100], 1)
{setup}
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
{call}
print((status("VmHWM") - before) * 1024)
"""


def peak_bytes(setup, call):
    return int(run(PEAK.format(setup=setup, call=call)))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
class TestMemory:
    def test_box_iou_peaks_at_its_output(self):
        for name in ("box_iou", "generalized_box_iou"):
            setup = f"a, b = boxes(4000), boxes(4000); cvops.ops.{name}(a[:9], b)"
            peak = peak_bytes(setup, f"out = cvops.ops.{name}(a, b)")
            assert 0.9 * 4 * 4000**2 < peak <= 1.1 * 4 * 4000**2

    def test_box_iou_backward_adds_no_matrix(self):
        setup = """
a, b = boxes(4000).requires_grad_(), boxes(4000)
torch.autograd.grad(cvops.ops.box_iou(a[:9], b), a, torch.ones(9, 4000))  # what the engine loads on first use
out = cvops.ops.box_iou(a, b)
g = torch.ones_like(out)
"""
        assert peak_bytes(setup, "torch.autograd.grad(out, a, g)") < 0.1 * 4 * 4000**2

    def test_deterministic_roi_align_backward_needs_no_more(self):
        setup = """
x = torch.rand(2, 64, 200, 272, requires_grad=True)
rois = torch.cat([torch.arange(500)[:, None] % 2, boxes(500) / 4], 1)
torch.use_deterministic_algorithms(True)
torch.autograd.grad(cvops.ops.roi_align(x[:, :, :20, :20], rois[:2] / 20, 7).sum(), x)
out = cvops.ops.roi_align(x, rois, 7, 1.0, 2, True)
g = torch.ones_like(out)
"""
        gradient = 4 * 2 * 64 * 200 * 272
        peak = peak_bytes(setup, "grad, = torch.autograd.grad(out, x, g)")
        assert 0.9 * gradient < peak < 1.3 * gradient

    def test_nms_of_100k_boxes(self):
        setup = "a, s = boxes(100_000), torch.rand(100_000); cvops.ops.nms(a[:9], s[:9], 0.5)"
        assert peak_bytes(setup, "cvops.ops.nms(a, s, 0.5)") <= 200e6


BLOCKS = """
import os, threading
import torch, cvops
x = torch.rand(4, 64, 128, 128)  # 16 MB
def call():
    return torch.ops.cvops.drop_block(x, mask, kept, 0.0)
mask, kept = torch.ops.cvops.drop_block_mask(x, torch.tensor([1]), [3, 3], 0.5)
first = call()
expected = first.clone()
place = first.data_ptr()
del first
"""


class TestKeptBlocks:
    """csrc/cpu/fresh_memory.cpp: large outputs come from blocks that freed ones left."""

    def test_a_freed_output_serves_the_next_call(self):
        run(
            BLOCKS
            + """
second = call()
assert second.data_ptr() == place and torch.equal(second, expected)
third = call()  # the block is taken now
assert third.data_ptr() != place and torch.equal(third, expected) and torch.equal(second, expected)
view = second[1:]
del second
assert torch.equal(call()[1:], view), "a view keeps its block"
"""
        )

    def test_none_is_kept_on_request_or_beyond_the_limit(self):
        rss = """
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) // 1024
del expected
before = resident()
outs = [call() for _ in range(8)]
grown = resident() - before
del outs
left = resident() - before
print(grown, left)
"""
        for megabytes, most in (("0", 4), ("40", 40)):
            grown, left = map(int, run(BLOCKS + rss, CVOPS_CPU_CACHE_MB=megabytes).split())
            assert grown > 100
            assert left <= most, f"{left} MB are left of {grown}"

    def test_the_system_may_take_all_but_the_last(self):
        """Marking costs as much as writing a part of the block, which the next call would pay for."""
        lazy = """
def megabytes():
    fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if ":" in line[:20])
    return [int(fields[name].split()[0]) // 1024 for name in ("Rss", "LazyFree")]
for _ in range(3):
    call()
print(*megabytes())
outs = [call() for _ in range(16)]
del outs
print(*megabytes())
"""
        rss, hot, rss_after, cold = map(int, run(BLOCKS + lazy).split())
        assert hot == 0
        spared = rss_after - cold - (rss - 16)  # whether or not the system has taken some of what it may
        assert abs(spared - 128) < 8, f"{spared} MB are spared"
        assert cold <= 16 * 16 - 128

    def test_threads_and_forks_share_them(self):
        run(
            BLOCKS
            + """
wrong = []
def work():
    for _ in range(20):
        if not torch.equal(call(), expected):
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
assert not wrong
torch.set_num_threads(1)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(call(), expected) else 1)
assert os.waitpid(child, 0)[1] == 0 and torch.equal(call(), expected)
"""
        )
