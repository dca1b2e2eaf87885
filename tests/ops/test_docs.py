"""Every example in the docstrings of the ops runs, every public op has one, and docs/ops.md is what they say."""

import doctest
import importlib
import inspect
import pkgutil
import runpy
from pathlib import Path

import pytest

import cvops

MODULES = sorted(m.name for m in pkgutil.iter_modules(cvops.ops.__path__, "cvops.ops."))
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("module", ["cvops", *MODULES])
def test_examples_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("name", cvops.ops.__all__)
def test_public_ops_are_documented(name):
    thing = getattr(cvops.ops, name)
    assert thing.__doc__, f"{name} has no docstring"
    if inspect.isfunction(thing):
        assert ">>>" in thing.__doc__, f"{name} has no example"


def test_ops_page_is_up_to_date():
    build = runpy.run_path(str(DOCS / "build_ops.py"))["build"]
    assert (DOCS / "ops.md").read_text() == build(), "run `python docs/build_ops.py`"
