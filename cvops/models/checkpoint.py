"""Our own checkpoints: one safetensors file with the weights and, as JSON in its metadata, the model's name and
settings, so that a file alone is enough to build the model again. Reading other people's files is in `weights.py`."""

import dataclasses
import json
import os
from pathlib import Path

import torch

from cvops.models.model import Model
from cvops.models.registry import build_from_config, create_model
from cvops.models.weights import METADATA, WeightsError, import_safetensors, read_saved


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model of the zoo to `path`, which must end in .safetensors: its weights in their dtypes, its registered
    name and its whole config. `load_model` builds it again; `create_model(name, weights=path)` takes the file too.

    Raises `TypeError` for anything but a model made by `create_model` or `load_model`, `WeightsError` if its layers are
    no longer those of its config (fused, exchanged by hand) or safetensors is not installed, and `ValueError` for
    another suffix. A file that was there is replaced only by a complete one.

    >>> cvops.save_model(cvops.create_model("mobilenetv2_035", num_classes=10), "ten.safetensors")
    >>> cvops.load_model("ten.safetensors").config.num_classes
    10
    """
    path = Path(path)
    if not isinstance(model, Model) or not model.name:
        raise TypeError(f"model must be one that create_model made, got {type(model).__name__} without a name")
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    safetensors = import_safetensors(path)
    state = model.state_dict()
    with torch.device("meta"):
        expected = build_from_config(model.name, model.config).state_dict()
    differing = [key for key in {**expected, **state} if key not in expected or key not in state]
    differing += [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if differing:
        raise WeightsError(
            f"{path}: the layers of this {model.name} are no longer those of its config ({differing[0]} and "
            f"{len(differing) - 1} more differ): save it before fusing or exchanging layers"
        )
    described = {"model": model.name, "config": dataclasses.asdict(model.config)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file(
            {key: value.contiguous() for key, value in state.items()}, partial, {METADATA: json.dumps(described)}
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_model(path: str | os.PathLike[str]) -> Model:
    """The model that `save_model` wrote to `path`: name, config and weights, in train mode, on the CPU, in float32.

    Raises `FileNotFoundError`, `UnknownModelError` for a model that this version does not have, and `WeightsError` for
    a file that `save_model` did not write, that is damaged, or that has settings which this version does not know.
    """
    saved = read_saved(path)
    if saved is None:
        raise WeightsError(
            f"{path}: not written by cvops.save_model; create_model(name, weights=...) reads other checkpoints"
        )
    return create_model(saved.model, weights=path, source="cvops", **saved.config)
