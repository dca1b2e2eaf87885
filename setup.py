"""Build of cvops: two op libraries on the LibTorch stable ABI and one pybind11 module, compiled by ninja.

    cvops/_ops.so        csrc/ops + csrc/cpu    schemas, argument checks, CPU kernels; loads on any torch
    cvops/_ops_cuda.so   csrc/cuda              CUDA kernels, static cudart; built wherever nvcc is found, GPU or not
    cvops/_host.*.so     csrc/host              pybind11: build and CPU facts, numpy-side engines; no torch

Environment: CVOPS_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"), MAX_JOBS, DEBUG=1, CVOPS_WERROR=1.
Torch is looked up, not imported, so metadata never needs it and a build-isolated `pip install .` finds the torch of
the environment it installs into. Floor: torch 2.11 (torch::stable::parallel_for, mutable_data_ptr, TORCH_BOX).
Sources are globbed: a new op adds no line here.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_FLOOR = (2, 11)  # from_blob with a deleter (csrc/cpu/fresh_memory.cpp)
TORCH_TARGET_VERSION = "0x020b000000000000"
DEFAULT_ARCHS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"  # Turing to Blackwell
NO_TORCH = """
cvops builds against torch, and no torch >= 2.11 was found for {python}.
Install it first, then build again:
    pip install "torch>=2.11"
    pip install .
If your front end builds in an environment of its own (uv, conda-build), use --no-build-isolation.
"""


class Torch:
    """The torch installation to build against, read from its files without importing it."""

    def __init__(self) -> None:
        places = dict.fromkeys([*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")])
        found = [Path(p) / "torch" for p in places if p and (Path(p) / "torch" / "version.py").is_file()]
        if not found:
            raise SystemExit(NO_TORCH.format(python=sys.executable))
        self.root = found[0]
        text = (self.root / "version.py").read_text()
        self.version = re.search(r"^__version__\s*(?::.*)?=\s*['\"](.+?)['\"]", text, re.M).group(1)
        cuda = re.search(r"^cuda\s*(?::.*?)?=\s*['\"](.+?)['\"]", text, re.M)
        self.cuda = cuda.group(1) if cuda else None
        if tuple(int(x) for x in re.findall(r"\d+", self.version)[:2]) < TORCH_FLOOR:
            raise SystemExit(NO_TORCH.format(python=sys.executable) + f"Found torch {self.version}.")


class CudaToolkit:
    """nvcc, its headers and static runtime. The nvcc on PATH may be a link or a script outside the toolkit, so a home
    counts only if the headers are there too (torch's own guess does not ask, and then fails to link)."""

    def __init__(self) -> None:
        nvcc = shutil.which("nvcc")
        homes = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parent.parent if nvcc else None, "/usr/local/cuda"]
        complete = ("bin/nvcc", "include/cuda_runtime.h")
        self.home = next((Path(h) for h in homes if h and all((Path(h) / f).is_file() for f in complete)), None)

    def archs(self) -> list[str]:
        """-gencode flags for TORCH_CUDA_ARCH_LIST, or for every default architecture this nvcc knows."""
        listed = subprocess.run([self.home / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True)
        known = set(re.findall(r"compute_(\d+)", listed.stdout))
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
        flags = []
        for arch in re.split(r"[;\s]+", (asked or DEFAULT_ARCHS).strip()):
            number = re.sub(r"\D", "", arch.replace("+PTX", ""))
            if number not in known:
                if asked:
                    raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {arch}; {self.home}/bin/nvcc knows {sorted(known)}")
                continue
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if arch.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags

    def static_cudart(self) -> Path:
        places = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
        for folder in places:
            if (self.home / folder / "libcudart_static.a").is_file():
                return self.home / folder / "libcudart_static.a"
        raise SystemExit(f"libcudart_static.a is in none of {places} of {self.home}")


def want_cuda(torch: Torch, toolkit: CudaToolkit) -> bool:
    wish = os.environ.get("CVOPS_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"CVOPS_CUDA must be auto, 0 or 1, got {wish!r}")
    missing = "no nvcc was found" if toolkit.home is None else "this torch has no CUDA" if torch.cuda is None else None
    if wish == "1" and missing:
        raise SystemExit(f"CVOPS_CUDA=1, but {missing} (CUDA_HOME, nvcc on PATH and /usr/local/cuda were tried)")
    if wish == "auto" and missing:
        print(f"cvops: CPU only, {missing}")
    return wish != "0" and missing is None


def ninja_file(torch: Torch, toolkit: CudaToolkit | None, out: Path) -> tuple[str, dict[str, Path]]:
    """The whole build as a ninja file, and the library that each extension name stands for."""
    debug = os.environ.get("DEBUG") == "1"
    werror = ["-Werror"] if os.environ.get("CVOPS_WERROR") == "1" else []
    includes = [f"-I{ROOT}/csrc", f"-isystem {torch.root}/include"]
    defines = ["-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    warnings = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas", *werror]
    optimise = ["-O0", "-g"] if debug else ["-O3"]
    # The floating-point results are part of the contract (docs/numerics.md): no contraction, no fast-math, no -march.
    # errno and trapping semantics are not observable here, and giving them up lets sqrt and compares vectorise.
    numerics = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", *optimise, *numerics, *warnings]
    libraries: dict[str, Path] = {}
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {out}",
        f"cxx = {os.environ.get('CXX', 'c++')}",
        "rule cxx\n  command = $cxx -MMD -MF $out.d $flags -c $in -o $out\n  description = compile $in\n"
        "  depfile = $out.d\n  deps = gcc",
        "rule link\n  command = $cxx -shared $in -o $out $flags\n  description = link $out",
    ]

    def library(name: str, file: str, sources: list[Path], rule: str, flags: list[str], link: list[str]) -> None:
        objects = []
        for source in sources:
            objects.append(out / name / source.parent.name / (source.name + ".o"))
            lines.append(f"build {objects[-1]}: {rule} {source}\n  flags = {' '.join(flags)}")
        libraries[f"cvops.{name}"] = out / file
        depends = f" | {out / '_ops.so'}" if name == "_ops_cuda" else ""
        joined = " ".join(map(str, objects))
        lines.append(f"build {out / file}: link {joined}{depends}\n  flags = {' '.join(link)}")

    torch_link = [f"-L{torch.root}/lib", "-ltorch_cpu", "-Wl,--as-needed", "-Wl,--no-undefined"]
    cpu = sorted((ROOT / "csrc/ops").glob("*.cpp")) + sorted((ROOT / "csrc/cpu").glob("*.cpp"))
    # _ops_cuda.so finds the _ops.so that is already loaded by this name, wherever the package was copied to.
    soname = ["-Wl,-soname,cvops_ops.so"]
    library("_ops", "_ops.so", cpu, "cxx", [*common, *defines, *includes], [*torch_link, *soname])

    if toolkit is not None:
        cuda = sorted((ROOT / "csrc/cuda").glob("*.cu"))
        lines.append(
            f"nvcc = {toolkit.home}/bin/nvcc\n"
            "rule nvcc\n  command = $nvcc -MD -MF $out.d $flags -c $in -o $out\n  description = compile $in\n"
            "  depfile = $out.d\n  deps = gcc"
        )
        host = ",".join(["-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"])
        flags = [
            "-std=c++20",
            "-O3",
            "-fmad=false",
            "--expt-relaxed-constexpr",
            "--threads=1",
            f"-Xcompiler={host}",
            *defines,
        ]
        flags += ["-DUSE_CUDA", f"-I{ROOT}/csrc", f"-I{torch.root}/include", f"-I{toolkit.home}/include"]
        flags += toolkit.archs() + (["--Werror=all-warnings"] if werror else [])
        link = [str(out / "_ops.so"), f"-L{torch.root}/lib", "-ltorch_cuda", "-ltorch_cpu"]
        link += [str(toolkit.static_cudart()), "-lrt", "-lpthread", "-ldl", "-Wl,--exclude-libs,ALL"]
        library("_ops_cuda", "_ops_cuda.so", cuda, "nvcc", flags, link)

    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    facts = {
        "TORCH_VERSION": torch.version,
        "CUDA_VERSION": torch.cuda if toolkit is not None else "",
        "CUDA_ARCHS": os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS) if toolkit is not None else "",
    }
    host_flags = [*common, f"-I{ROOT}/csrc", f"-isystem {pybind11.get_include()}"]
    host_flags += [f"-isystem {sysconfig.get_path('include')}"]
    host_flags += [f"'-DCVOPS_BUILD_{key}=\"{value}\"'" for key, value in facts.items()]
    host = [*sorted((ROOT / "csrc/host").glob("*.cpp")), ROOT / "csrc/cpu/isa.cpp"]
    library("_host", f"_host{suffix}", host, "cxx", [*host_flags, "-pthread"], ["-pthread"])
    return "\n".join(lines) + "\n", libraries


class NinjaBuild(build_ext):
    """Compiles everything with one ninja call, then puts each library where setuptools expects it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.torch = Torch()
        toolkit = CudaToolkit()
        self.toolkit = toolkit if want_cuda(self.torch, toolkit) else None
        names = ["cvops._ops", *(["cvops._ops_cuda"] if self.toolkit else []), "cvops._host"]
        self.extensions = [Extension(name, sources=[]) for name in names]

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] in ("_ops", "_ops_cuda"):
            return fullname.replace(".", "/") + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        tag = f"{platform.machine()}-py{sys.version_info.major}{sys.version_info.minor}-torch{self.torch.version}"
        out = ROOT / "build" / tag
        out.mkdir(parents=True, exist_ok=True)
        text, libraries = ninja_file(self.torch, self.toolkit, out)
        file = out / "build.ninja"
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        ninja = shutil.which("ninja")
        command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
        subprocess.run([*command, "-f", str(file), "-j", jobs], check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # A new inode, so that a process that has the old library loaded keeps it.
            target.unlink(missing_ok=True)
            shutil.copy2(libraries[extension.name], target)

    def get_outputs(self) -> list[str]:
        return [self.get_ext_fullpath(extension.name) for extension in self.extensions]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("cvops._ops", sources=[])], cmdclass={"build_ext": NinjaBuild})
