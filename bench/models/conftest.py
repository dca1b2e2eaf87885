"""Whole models are timed with a heap that keeps what it got from the system.

By default, glibc gives the top of the heap back when it is free, and a model's next maps fault in page by page: 1,000
to 4,000 faults and 4 to 12 ms in each ResNet-50 inference, more for whichever of two models happens to have its maps
at the top. That chance is of the size of the differences that are to be measured. Users gain as much as the bench by
setting the environment variable MALLOC_TRIM_THRESHOLD_.
"""

import ctypes

import pytest

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@pytest.fixture(scope="session", autouse=True)
def steady_heap() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other systems are left as they are
    if mallopt is not None:
        assert mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1
        assert mallopt(M_MMAP_MAX, 0) == 1
