"""Every example in the docstrings of the ops runs, every public op has one, and the generated pages are up to date,
and the tests that docs/complaints.md names exist."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

import cvops

MODULES = sorted(m.name for m in pkgutil.iter_modules(cvops.ops.__path__, "cvops.ops."))
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("module", ["cvops", *MODULES])
def test_examples_run(module):
    options = {"extraglobs": {"torch": torch}, "optionflags": doctest.NORMALIZE_WHITESPACE}
    failed, _ = doctest.testmod(importlib.import_module(module), **options)
    assert failed == 0


@pytest.mark.parametrize("name", cvops.ops.__all__)
def test_public_ops_are_documented(name):
    thing = getattr(cvops.ops, name)
    assert thing.__doc__, f"{name} has no docstring"
    if inspect.isfunction(thing):
        assert ">>>" in thing.__doc__, f"{name} has no example"


@pytest.mark.parametrize("page", ["ops.md", "zoo.md"])
def test_pages_are_up_to_date(page):
    build = runpy.run_path(str(DOCS / "build.py"))["PAGES"][page]
    assert (DOCS / page).read_text() == build(), "run `python docs/build.py`"


def test_complaints_name_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", (DOCS / "complaints.md").read_text())
    assert len(named) > 40
    for file, name in named:
        scope = ast.parse((DOCS.parent / file).read_text()).body
        for part in name.split("::"):
            found = [node for node in scope if getattr(node, "name", None) == part]
            assert found, f"{file} has no {name}"
            scope = found[0].body
