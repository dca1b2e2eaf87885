"""Whole models are timed with the heap of a process that keeps what it freed."""

import pytest

from bench.common import keep_heap


@pytest.fixture(scope="session", autouse=True)
def heap_that_keeps_blocks() -> None:
    keep_heap()
