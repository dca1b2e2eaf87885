"""The shim as seen from Python: counters of a loaded library, thread order, and the environment of a sanitizer run."""

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from host_library import CXX

ORDERS = ("forward", "reverse", "shuffled")


@dataclass
class Counts:
    """What a stretch of code did: launches by kernel, dispatcher calls by ATen op, waits for the device, memsets."""

    launches: dict[str, int] = field(default_factory=dict)
    dispatches: dict[str, int] = field(default_factory=dict)
    syncs: int = 0
    memsets: int = 0


class Shim:
    """A library built by host_library.py, already loaded or not; loading it twice gives the same one."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_on_host_counts.restype = ctypes.c_char_p
        self._library.cuda_on_host_set_order.argtypes = [ctypes.c_char_p]

    def set_order(self, order: str) -> None:
        if self._library.cuda_on_host_set_order(order.encode()) != 0:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Yields counts that are filled in when the block ends."""
        counts = Counts()
        self._library.cuda_on_host_reset()
        yield counts
        counts.__dict__.update(json.loads(self._library.cuda_on_host_counts()))


def sanitizer_environment() -> dict[str, str]:
    """What a process needs before it can load a sanitized library: the runtimes come first, then torch's own C++."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    found = [subprocess.check_output([CXX, f"-print-file-name={name}"], text=True).strip() for name in names]
    return {
        "LD_PRELOAD": ":".join(found),
        # Python and torch keep memory until they end; the fibers have stacks of their own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:" + os.environ.get("ASAN_OPTIONS", ""),
        "UBSAN_OPTIONS": "print_stacktrace=1:" + os.environ.get("UBSAN_OPTIONS", ""),
    }
