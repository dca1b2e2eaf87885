"""What can be said about the CUDA kernels without a GPU, as markdown for docs/benchmarks.md.

    python bench/cuda_report.py [--arch 90]

Per kernel, from ptxas: registers, spills, static shared memory, and from the PTX the widest load and store. Per op
call, from the host shim (tests/host): kernel launches, torch sorts, memsets and waits for the device. Ends with an
error if a kernel spills. Timings on a GPU are made by bench/ops.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from host_library import TORCH_TARGET_VERSION, build, torch_root  # noqa: E402

# As in setup.py.
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"]
BITS = {"8": 8, "16": 16, "32": 32, "64": 64}


@dataclass
class Kernel:
    """One compiled instance of a kernel."""

    name: str  # without template arguments
    arguments: str
    registers: int
    spilled: int
    shared: int
    load: int  # widest, in bytes
    store: int


def nvcc() -> Path:
    found = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", Path(found).resolve().parent.parent if found else None]
    for home in homes:
        if home and (Path(home) / "bin" / "nvcc").is_file() and (Path(home) / "include" / "cuda_runtime.h").is_file():
            return Path(home) / "bin" / "nvcc"
    raise SystemExit("no CUDA toolkit was found; set CUDA_HOME")


def demangled(names: list[str]) -> list[str]:
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )


def widest(ptx: str, instruction: str) -> int:
    """Widest access of an entry, in bytes: ld.global.v4.f32 is 16."""
    accesses = re.findall(rf"\b{instruction}\.(?:volatile\.)?global(?:\.nc)?(?:\.v(\d))?\.[busf](\d+)", ptx)
    return max((int(count or 1) * BITS[bits] // 8 for count, bits in accesses), default=0)


def compile_kernels(source: Path, arch: str) -> Iterator[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        torch = torch_root()
        command = [str(nvcc()), *FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-arch=sm_{arch}"]
        command += ["-Xptxas", "-v", "--keep", f"--keep-dir={folder}", f"-I{ROOT}/csrc", f"-I{torch}/include"]
        command += ["-Xcompiler=-fPIC", "-c", str(source), "-o", f"{folder}/object.o"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        ptx = next(Path(folder).glob("*.ptx")).read_text()
    bodies = {m[1]: m[0] for m in re.finditer(r"\.entry (\w+)\(.*?^\}", ptx, re.S | re.M)}
    reports = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)",
        done.stderr,
        re.S,
    )
    for report, full in zip(reports, demangled([r[0] for r in reports]), strict=False):
        mangled, stores, loads, registers, rest = report
        match = re.search(r"(\w+_kernel)(?:<(.*?)>)?\(", full)
        name, arguments = (match[1], match[2] or "") if match else (full, "")
        shared = re.search(r"(\d+) bytes smem", rest)
        body = bodies.get(mangled, "")
        yield Kernel(
            name,
            arguments,
            int(registers),
            int(stores) + int(loads),
            int(shared[1]) if shared else 0,
            widest(body, "ld"),
            widest(body, "st"),
        )


def span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def kernel_table(arch: str) -> bool:
    """Prints the table; False if a kernel spills."""
    print(f"### Kernels, sm_{arch}\n")
    print("| kernel | instances | registers, float | registers, double | spills | shared memory | load | store |")
    print("|---|---|---|---|---|---|---|---|")
    spills = False
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        groups: dict[str, list[Kernel]] = defaultdict(list)
        for kernel in compile_kernels(source, arch):
            groups[kernel.name].append(kernel)
        for name, kernels in sorted(groups.items()):
            double = [k.registers for k in kernels if "double" in k.arguments]
            single = [k.registers for k in kernels if "double" not in k.arguments]
            spilled = sum(k.spilled for k in kernels)
            spills |= spilled > 0
            print(
                f"| `{name}` | {len(kernels)} | {span(single) if single else ''} | {span(double) if double else ''} | "
                f"{spilled or 'none'} | {span([k.shared for k in kernels])} B | {span([k.load for k in kernels])} B | "
                f"{span([k.store for k in kernels])} B |"
            )
    print()
    return not spills


def op_cases() -> dict[str, Callable[[], object]]:
    """One call per op, on inputs that need no copy: float32, contiguous."""
    import torch

    import cvops.ops as ops

    n = 300
    torch.manual_seed(0)
    corners = torch.rand(n, 4) * 100
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    others, scores, idxs = boxes.flip(0).contiguous(), torch.rand(n), torch.randint(0, 7, (n,))
    batch = (boxes.expand(4, n, 4).contiguous(), scores.expand(4, n).contiguous())
    call = torch.ops.cvops
    grad, matrix_grad = torch.ones(n), torch.ones(n, n)
    logits, labels, rows = torch.randn(n, 80), torch.zeros(n, 80), torch.randn(n, 80, 1)
    classes, total = torch.randint(0, 80, (n,)), torch.ones(())
    sigmoid, softmax = (None, None, 0.25, 2.0, None), (None, 1.0, 2.0, -100)
    rois = torch.cat([torch.zeros(n, 1), boxes / 10], 1)
    pooled, positions = torch.randn(n, 8, 2, 2), torch.randn(n, 2, 2, 2)
    indices, mapping = torch.zeros(n, 8, 2, 2, dtype=torch.int32), torch.zeros(n, 2, 2, 2, dtype=torch.int32)
    bins, size = (1.0, 2, 2), (2, 8, 14, 14)
    levels = ([1.0, 0.5], 2, 2, 2, False, 224, 4)
    maps, taps, geometry = torch.randn(2, 8, 14, 14), torch.randn(8, 1, 3, 3), ([1, 1], [1, 1, 1, 1], [1, 1])
    deformed, kernels, offsets = torch.randn(2, 8, 14, 14), torch.randn(8, 8, 3, 3), torch.randn(2, 18, 14, 14)
    once, deform = ([1, 1], [1, 1], [1, 1], 1, 1), call.deform_conv2d_backward
    seed = torch.tensor([1])
    paste = torch.rand(n, 14, 14), boxes / 10
    pixels = call.heatmap_peaks(maps, 20, 3)
    mask, kept = call.drop_block_mask(maps, seed, [7, 7], 0.1)
    return {
        "box_iou, any metric": lambda: call.box_iou(boxes, others, 1, 0.0),
        "box_iou_backward": lambda: call.box_iou_backward(matrix_grad, boxes, others, 1, 0.0),
        "iou_loss, any metric": lambda: call.iou_loss(boxes, others, 1, 1e-7),
        "iou_loss_backward": lambda: call.iou_loss_backward(grad, boxes, others, 1, 1e-7),
        "sigmoid_focal_loss": lambda: call.sigmoid_focal_loss(logits, labels, *sigmoid, False),
        "sigmoid_focal_loss, sum": lambda: call.sigmoid_focal_loss(logits, classes, *sigmoid, True),
        "sigmoid_focal_loss_backward": lambda: call.sigmoid_focal_loss_backward(total, logits, labels, *sigmoid),
        "gaussian_focal_loss, sum": lambda: call.gaussian_focal_loss(logits, labels, 2.0, 4.0, True),
        "gaussian_focal_loss_backward": lambda: call.gaussian_focal_loss_backward(total, logits, labels, 2.0, 4.0),
        "softmax_focal_loss, sum": lambda: call.softmax_focal_loss(rows, classes[:, None], *softmax, True),
        "softmax_focal_loss_backward": lambda: call.softmax_focal_loss_backward(
            total, rows, classes[:, None], *softmax
        ),
        "match_boxes": lambda: ops.match_boxes(boxes, others, 0.4, 0.5, allow_low_quality=True),
        "heatmap_peaks": lambda: call.heatmap_peaks(maps, 20, 3),
        "heatmap_peaks_backward": lambda: call.heatmap_peaks_backward(pixels[0], *pixels[1:], 8, 14, 14),
        "mask_paste": lambda: call.mask_paste(*paste, 14, 14),
        "mask_paste_binary": lambda: call.mask_paste_binary(*paste, 14, 14, 0.5),
        "mask_paste_backward": lambda: call.mask_paste_backward(*paste, 7, 7),
        "nms": lambda: ops.nms(boxes, scores, 0.5),
        "batched_nms": lambda: ops.batched_nms(boxes, scores, idxs, 0.5),
        "nms_padded": lambda: ops.nms_padded(boxes, scores, 0.5, 100),
        "batched_nms_padded, 4 images": lambda: ops.batched_nms_padded(*batch, None, 0.5, 100),
        "soft_nms": lambda: ops.soft_nms(boxes, scores),
        "matrix_nms": lambda: ops.matrix_nms(boxes, scores),
        "depthwise_conv2d, any activation": lambda: call.depthwise_conv2d(maps, taps, None, *geometry, 1),
        "depthwise_conv2d_backward, all three": lambda: call.depthwise_conv2d_backward(maps, maps, taps, *geometry, 7),
        "fold_batch_norm": lambda: call.fold_batch_norm(taps, *taps.new_ones(5, 8).unbind(), 1e-5),
        "frozen_batch_norm, and its backward": lambda: call.frozen_batch_norm(
            maps, *maps.new_ones(4, 8).unbind(), 1e-5
        ),
        "batch_norm_act_": lambda: call.batch_norm_act_(maps.clone(), *maps.new_ones(4, 8).unbind(), 1e-5, 2),
        "deform_conv2d, per chunk": lambda: call.deform_conv2d(deformed, kernels, offsets, None, None, *once),
        "deform_conv2d_backward, all, per chunk": lambda: deform(
            deformed, deformed, kernels, offsets, None, *once, 7, False
        ),
        "drop_block_mask": lambda: call.drop_block_mask(maps, seed, [7, 7], 0.1),
        "drop_block, and its backward": lambda: call.drop_block(maps, mask, kept, 1e-6),
        "drop_path, and its backward": lambda: call.drop_path(maps, seed, 1, 0.1, 1.0),
        "corner_pool, any direction": lambda: call.corner_pool(maps, 2),
        "corner_pool_backward": lambda: call.corner_pool_backward(maps, maps, 2),
        "corner_pool_gather": lambda: call.corner_pool_gather(maps, maps, 2),
        "roi_align": lambda: call.roi_align(maps, rois, *bins, 2, False),
        "roi_align_backward": lambda: call.roi_align_backward(pooled, rois, *bins, *size, 2, False),
        "multiscale_roi_align, 2 levels": lambda: call.multiscale_roi_align([maps, maps], rois, *levels),
        "multiscale_roi_align_backward, 2 levels": lambda: call.multiscale_roi_align_backward(
            pooled, rois, *levels, 2, [14, 7], [14, 7]
        ),
        "roi_pool": lambda: call.roi_pool(maps, rois, *bins),
        "roi_pool_backward": lambda: call.roi_pool_backward(pooled, rois, indices, *bins, *size),
        "ps_roi_align": lambda: call.ps_roi_align(maps, rois, *bins, 2),
        "ps_roi_align_backward": lambda: call.ps_roi_align_backward(positions, rois, mapping, *bins, 2, *size),
        "ps_roi_pool": lambda: call.ps_roi_pool(maps, rois, *bins),
        "ps_roi_pool_backward": lambda: call.ps_roi_pool_backward(positions, rois, mapping, *bins, *size),
    }


def call_table() -> None:
    library = build()
    os.environ["CVOPS_OPS_LIBRARY"] = str(library)
    from shim import Shim

    shim = Shim(library)
    print("### Calls\n")
    print("| op | kernel launches | torch sorts | memsets | waits for the device |")
    print("|---|---|---|---|---|")
    for name, call in op_cases().items():
        call()
        with shim.counting() as counts:
            call()
        launches = sum(counts.launches.values())
        print(f"| {name} | {launches} | {counts.dispatches.get('aten::sort', 0)} | {counts.memsets} | {counts.syncs} |")
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="90", help="compute capability to compile for, as in sm_90")
    arguments = parser.parse_args()
    call_table()
    if not kernel_table(arguments.arch):
        raise SystemExit("a kernel spills registers")
