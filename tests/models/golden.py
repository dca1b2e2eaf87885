"""Reference outputs of public implementations, kept in `tests/data/golden`: float64 numbers for weights and inputs that
follow from a rule, so that a model is checked without its peer. Here is the rule; the cases are in the files.

A file: `manifest` ([key, shape, dtype] in the peer's names), `seed`, `gain`, `input_shape`, `outputs` ({name: shape,
absmax, samples}). Each tensor is drawn by a generator seeded with the CRC of "seed:key"."""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).resolve().parent.parent / "data"
FOLDER = DATA / "golden"


def load_case(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    with gzip.open(folder / f"{name}.json.gz", "rt") as file:
        case: dict[str, Any] = json.load(file)
    return case


def generator(text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(text.encode()))


def synth_tensor(key: str, shape: tuple[int, ...], seed: int, gain: float = 1.0) -> Tensor:
    """One entry of a state_dict, float64: He-scaled normals for weights, 0.5..1.5 for running variances, 0.6..1.4 for
    other multipliers, small normals for biases and running means."""
    draw = generator(f"{seed}:{key}")
    if len(shape) >= 2:
        values = draw.standard_normal(shape)
        values *= math.sqrt(2 / math.prod(shape[1:])) * 0.9 * gain
    elif key.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif not shape or key.endswith(("weight", "weights", "scale", "gamma")):
        values = draw.uniform(0.6, 1.4, shape)
    else:
        values = 0.1 * draw.standard_normal(shape)
    return torch.from_numpy(np.asarray(values))


def synth_state(manifest: list[list[Any]], seed: int, gain: float | dict[str, float] = 1.0) -> dict[str, Tensor]:
    """The peer's state_dict, without integer counters and without entries that are computed or shared. A dictionary of
    gains is by prefix of the key: the longest counts, 1 where there is none."""

    def gain_of(key: str) -> float:
        if not isinstance(gain, dict):
            return gain
        return gain[max(filter(key.startswith, gain), key=len)] if any(map(key.startswith, gain)) else 1.0

    return {
        key: synth_tensor(key, tuple(shape), seed, gain_of(key))
        for key, shape, dtype, *mark in manifest
        if dtype == "float32" and not mark
    }


def synth_input(seed: int, shape: list[int]) -> Tensor:
    return torch.from_numpy(generator(f"{seed}:input:{list(shape)}").uniform(-1, 1, tuple(shape)))


def check(record: dict[str, Any], got: Tensor, seed: int, rtol: float = 1e-6) -> None:
    """Compares the stored samples of an output; the allowance is `rtol * (|value| + 1 % of the largest value)`."""
    assert list(got.shape) == record["shape"]
    flat = got.detach().double().reshape(-1).numpy()
    if flat.size > 128:
        flat = flat[generator(f"{seed}:{record['name']}").randint(0, flat.size, 128)]
    want = np.asarray(record["samples"])
    excess = np.abs(flat - want) - rtol * (np.abs(want) + 0.01 * record["absmax"])
    assert excess.max() <= 0, f"{record['name']}: {(excess > 0).sum()} of {want.size} samples differ"
