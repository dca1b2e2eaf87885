"""Whole models are timed with the heap of a process that keeps what it freed.

glibc gives freed memory back to the system: blocks of 32 MB or more at once, and the top of the heap when more of it is
free than it likes. The maps of a model are then faulted in page by page in the next call, of whichever of two equal
models has bad luck; a training step of a detector can have none or hundreds of thousands of faults. Here nothing is
given back, as with allocators that keep their blocks, so that there are hardly any after the first rounds.
"""

import ctypes

import pytest

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@pytest.fixture(scope="session", autouse=True)
def heap_that_keeps_blocks() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # another C library, with habits of its own
    assert mallopt(M_TRIM_THRESHOLD, -1) == 1  # never
    assert mallopt(M_MMAP_MAX, 0) == 1  # no blocks outside of the heap
