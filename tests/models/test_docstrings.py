"""The examples in the docstrings of models, layers and data, run as they stand."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import cvops
import cvops.data
import cvops.models
import cvops.nn


def modules() -> Iterator[str]:
    for package in (cvops.models, cvops.nn, cvops.data):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield found.name


@pytest.mark.parametrize("name", list(modules()))
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (451, 300)).save("cat.png")
    module = importlib.import_module(name)
    names = {**vars(module), "cvops": cvops, "torch": torch, "timm": timm}
    result = doctest.testmod(module, globs={**vars(cvops.models), **vars(cvops.data), **names})
    assert result.failed == 0
