"""Whole models are timed with the heap of a process that has been at work for a while.

glibc gives the top of the heap back to the system when more of it is free than twice the largest block that was ever
freed, 64 MB at most. In a fresh process this makes a model's maps fault in page by page in every call, for whichever
of two equal models happens to have its maps at the top. One large block, freed, ends most of that, as any large tensor
does sooner or later.
"""

import ctypes

import pytest


@pytest.fixture(scope="session", autouse=True)
def heap_at_work() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc((32 << 20) - (64 << 10))  # just below what glibc always maps on its own
    assert block
    libc.free(block)
