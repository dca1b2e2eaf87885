"""Compiles a library that replaces the package's own in a test process, and prints its path.

    python tests/host/host_library.py [--asan] [cuda|cpu|toy]

`cuda` holds csrc/ops and csrc/cuda, compiled for the CPU through the shim, with the CUDA kernels registered for CPU
tensors; `cpu` holds csrc/ops and csrc/cpu, for the sake of `--asan` and of the AVX-512 kernels, which it has on a
machine with AVX2 too (avx512_on_host.h); `toy` the shim's own test kernels. The package loads a library in place of
its own when CVOPS_OPS_LIBRARY names it. `--asan` compiles with AddressSanitizer and, but for `cpu`,
UndefinedBehaviourSanitizer (tests/host/run.py sets the environment that those need). Only what changed is compiled
again.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "tests" / "host"
CXX = os.environ.get("CXX", "g++")
TORCH_TARGET_VERSION = re.findall(r'TORCH_TARGET_VERSION = "(\w+)"', (ROOT / "setup.py").read_text())[0]


def torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(f"torch is not installed for {sys.executable}")
    return Path(spec.origin).parent


KINDS = ("cuda", "cpu", "toy")


def lacks_avx512() -> bool:
    """Whether this machine has AVX2 and not AVX-512."""
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.is_file() else set()
    return {"avx2", "fma", "f16c"} <= flags and not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags


def write_avx512_for_avx2(folder: Path) -> None:
    """Writes a cpu/foreach_isa.h whose avx512 region is compiled for AVX2, with 64-byte vectors as it is."""
    text = (ROOT / "csrc/cpu/foreach_isa.h").read_text()
    text, count = re.subn(r'target\("avx512[^"]*"\)', 'target("avx2,fma,f16c")', text)
    if count != 1:
        raise SystemExit(f"csrc/cpu/foreach_isa.h: expected one region of AVX-512, found {count}")
    header = folder / "cpu" / "foreach_isa.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.is_file() or header.read_text() != text:
        header.write_text(text)


def ninja_file(kind: str, asan: bool, out: Path) -> tuple[str, Path]:
    torch = torch_root()
    flags = ["-std=c++20", "-g", "-O1" if asan else "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    flags += ["-fno-math-errno", "-fno-trapping-math"]  # as setup.py does
    flags += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas", f"-I{HOST}", f"-I{ROOT}/csrc"]
    flags += [f"-isystem {torch}/include", "-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    # An exception of ours must reach Python, so the sanitizers' own check of virtual tables, which needs torch's
    # run-time type information, stays off.
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"] if asan else []
    if asan and kind == "cpu":
        # Unrolled kernels three times over, of which the compiler would make more checks than it can digest: addresses
        # only, of what is not on the stack, each in a call.
        sanitize = ["-O2", "-g1", "-fsanitize=address", "-fno-sanitize-address-use-after-scope"]
        sanitize += ["--param asan-stack=0", "--param asan-instrumentation-with-call-threshold=0"]
    sanitize += ["-fno-omit-frame-pointer"] if asan else []
    avx512 = []
    if kind == "cpu" and lacks_avx512():
        avx512 = [f"-include {HOST}/avx512_on_host.h", f"-I{out}/include"]
    cuda = [f"-include {HOST}/torch_calls.h", f"-include {HOST}/cuda_on_host.h", "-DUSE_CUDA"]

    shim = [HOST / "cuda_on_host.cpp", HOST / "fiber.cpp"]
    ops = sorted((ROOT / "csrc/ops").glob("*.cpp"))
    sources = {
        "cuda": [*shim, *ops, *sorted((ROOT / "csrc/cuda").glob("*.cu"))],
        "cpu": [*ops, *sorted((ROOT / "csrc/cpu").glob("*.cpp"))],
        "toy": [*shim, HOST / "toy.cu"],
    }[kind]
    library = out / f"libcvops_{kind}.so"
    lines = [
        "ninja_required_version = 1.5",
        f"flags = {' '.join([*avx512, *flags, *sanitize])}",
        f"cuda = {' '.join(cuda)}",
        f"link = {' '.join(sanitize)} -Wl,-Bsymbolic -L{torch}/lib -ltorch_cpu -Wl,-rpath,{torch}/lib",
        f"rule cpp\n  command = {CXX} -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule cu\n  command = {CXX} -MMD -MF $out.d $flags $cuda -x c++ -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {CXX} -shared $in -o $out $link",
    ]
    objects = []
    for source in sources:
        objects.append(str(out / "objects" / f"{source.parent.name}-{source.name}.o"))
        lines.append(f"build {objects[-1]}: {source.suffix[1:]} {source}")
    lines.append(f"build {library}: link {' '.join(objects)}\ndefault {library}")
    return "\n".join(lines) + "\n", library


def build(kind: str = "cuda", asan: bool = False) -> Path:
    out = ROOT / "build" / f"host-{kind}{'-asan' if asan else ''}"
    out.mkdir(parents=True, exist_ok=True)
    if kind == "cpu" and lacks_avx512():
        write_avx512_for_avx2(out / "include")
    text, library = ninja_file(kind, asan, out)
    file = out / "build.ninja"
    if not file.is_file() or file.read_text() != text:
        file.write_text(text)
    ninja = shutil.which("ninja")
    command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    done = subprocess.run([*command, "-C", str(out), "-f", str(file), "-j", jobs], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"the host build failed ({file})")
    return library


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--asan", action="store_true", help="with the address and undefined-behaviour sanitizers")
    parser.add_argument("kind", nargs="?", choices=KINDS, default="cuda")
    arguments = parser.parse_args()
    print(build(arguments.kind, arguments.asan))
