"""Loads the op libraries into torch's dispatcher and tells what was loaded; nothing else knows where they lie.

``_ops.so`` (CPU) is required. ``_ops_cuda.so`` is loaded if this torch has CUDA of the same major version; a failure
there is remembered for ``cvops doctor`` and never stops the import. The environment variable ``CVOPS_OPS_LIBRARY``
names another library to load instead of both: the tests run the CUDA kernels on the CPU that way.
"""

import importlib.util
import os
import platform
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent
_loaded: dict[str, str] = {}
_skipped: dict[str, str] = {}


def _load(path: Path) -> None:
    torch.ops.load_library(path)
    _loaded[path.name] = str(path)


def load() -> None:
    """Load the op libraries once. Raises ImportError, with what to do, if the CPU library is missing or unfit."""
    if _loaded:
        return
    other = os.environ.get("CVOPS_OPS_LIBRARY")
    if other:
        _load(Path(other))
        return
    cpu = _FOLDER / "_ops.so"
    if not cpu.is_file():
        raise ImportError(
            f"cvops is not built: {cpu} does not exist. In the source folder run `pip install -e .` "
            "(torch >= 2.11 and a C++ compiler are needed)."
        )
    try:
        _load(cpu)
    except OSError as error:
        raise ImportError(
            f"{cpu} does not load into torch {torch.__version__} (torch >= 2.11 is needed): {error.__cause__ or error}"
        ) from error
    cuda = _FOLDER / "_ops_cuda.so"
    if not cuda.is_file():
        _skipped[cuda.name] = "not built (no nvcc at build time, or CVOPS_CUDA=0)"
    elif torch.version.cuda is None:
        _skipped[cuda.name] = f"torch {torch.__version__} has no CUDA"
    else:
        built = build_info().get("cuda", "")
        if built.split(".")[0] != torch.version.cuda.split(".")[0]:
            _skipped[cuda.name] = f"built for CUDA {built}, torch has CUDA {torch.version.cuda}"
            return
        try:
            _load(cuda)
        except OSError as error:
            _skipped[cuda.name] = str(error.__cause__ or error)


def build_info() -> dict[str, str]:
    """Versions that the package was built with: torch, cuda, cuda_archs, compiler. Empty if ``_host`` is missing."""
    if importlib.util.find_spec("cvops._host") is None:
        return {}
    from cvops import _host

    return dict(_host.build_info())


def active_isa() -> str:
    """Instruction set of the CPU kernels: 'avx512', 'avx2' or 'scalar'; ``CVOPS_CPU_ISA`` caps it."""
    from cvops import _host

    return str(_host.active_isa())


def report() -> dict[str, object]:
    """What ``cvops doctor`` prints: versions, libraries loaded and skipped (with the reason), ISA, threads, GPUs."""
    import cvops

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cvops": cvops.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "built_with": build_info(),
        "loaded": dict(_loaded),
        "skipped": dict(_skipped),
        "isa": active_isa(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
