"""The examples in the docstrings of cvops.metrics, run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

import cvops.metrics

MODULES = sorted(module.name for module in pkgutil.iter_modules(cvops.metrics.__path__, "cvops.metrics."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
