"""TensorFlow.js graph models: a JSON file with the graph and a list of its constants, and binary files with their
values. Read here are the constants and, in torch's layout, the weights of convolutions; the graph is not run. Which of
our layers they belong to is in the family files."""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvops.models.weights import WeightsError

_DTYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint16": "<u2", "uint8": "u1", "bool": "?"}
_CONVOLUTIONS = ("Conv2D", "_FusedConv2D")
_DEPTHWISE = ("DepthwiseConv2dNative", "FusedDepthwiseConv2dNative")


@dataclass(frozen=True)
class Node:
    """An operation of the graph: its name and kind, the names of its inputs, what is fused into it ("BiasAdd", ...)."""

    name: str
    op: str
    inputs: tuple[str, ...]
    fused: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphModel:
    """The nodes in the file's order, and the constants by name."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]

    def convolutions(self) -> dict[str, Tensor]:
        """`name.weight` [out, in, h, w] and, where it has one, `name.bias` [out] of every convolution, in the order of
        the graph; depthwise weights are [channels * multiplier, 1, h, w]. The name is that of the constant with the
        weights, less "weights" at its end. Raises `WeightsError` for a convolution whose weights are no constant."""
        state: dict[str, Tensor] = {}
        for node in self.nodes:
            if node.op not in _CONVOLUTIONS + _DEPTHWISE:
                continue
            weight = self._constant(node, 1)
            if weight.ndim != 4:
                raise WeightsError(f"{node.name}: its weights must have four dimensions, got {list(weight.shape)}")
            name = re.sub(r"[_/]weights$", "", node.inputs[1])
            if node.op in _CONVOLUTIONS:
                weight = weight.permute(3, 2, 0, 1)  # from h, w, in, out
            else:
                height, width, channels, multiplier = weight.shape
                weight = weight.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
            state[f"{name}.weight"] = weight.contiguous()
            if "BiasAdd" in node.fused:
                state[f"{name}.bias"] = self._constant(node, 2)
        return state

    def _constant(self, node: Node, index: int) -> Tensor:
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self.constants:
            raise WeightsError(f"{node.name}: expected its input {index} among the file's constants, got {name!r}")
        return self.constants[name]


def read_graph_model(path: Path) -> GraphModel:
    """A graph model from its JSON file; the binary files are beside it. Weights that were stored as float16, uint16 or
    uint8 are widened to what they were.

    Raises `FileNotFoundError`, or `WeightsError` that says what is wrong with which file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict) or not {"modelTopology", "weightsManifest"} <= content.keys():
        raise WeightsError(f"{path}: not a TensorFlow.js model, it has no 'modelTopology' and 'weightsManifest'")
    if content.get("format", "graph-model") != "graph-model":
        raise WeightsError(f"{path}: expected a graph model, got the format {content['format']!r}")
    try:
        nodes = tuple(_node(entry) for entry in content["modelTopology"]["node"])
        groups = [(tuple(group["paths"]), tuple(group["weights"])) for group in content["weightsManifest"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: its graph or list of weights is damaged ({error!r})") from error
    constants: dict[str, Tensor] = {}
    for files, entries in groups:
        constants.update(_read_group(path, files, entries))
    return GraphModel(nodes, constants)


def _node(entry: Mapping[str, Any]) -> Node:
    fused = entry.get("attr", {}).get("fused_ops", {}).get("list", {}).get("s", ())
    # Control inputs start with ^; outputs but the first end in a colon and their number.
    inputs = tuple(name for name in entry.get("input", ()) if not name.startswith("^"))
    return Node(entry["name"], entry["op"], inputs, tuple(base64.b64decode(text).decode() for text in fused))


def _read_group(path: Path, files: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The constants of one group, whose values follow one another through all its files."""
    data = b""
    folder = path.parent.resolve()
    for file in files:
        shard = (folder / file).resolve()
        if folder not in shard.parents:
            raise WeightsError(f"{path}: it names a file outside of its folder, {file}")
        if not shard.is_file():
            raise WeightsError(f"{path}: its file {file} is missing")
        data += shard.read_bytes()
    constants, start = {}, 0
    for entry in entries:
        try:
            name, shape = str(entry["name"]), [int(side) for side in entry["shape"]]
            stored = entry.get("quantization", {})
            kind = stored.get("dtype", entry["dtype"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{path}: its list of weights is damaged ({error!r})") from error
        if kind not in _DTYPES:
            raise WeightsError(f"{path}: {name} is of dtype {kind!r}, expected one of {', '.join(_DTYPES)}")
        dtype, count = np.dtype(_DTYPES[kind]), math.prod(shape)
        end = start + count * dtype.itemsize
        if min(shape, default=0) < 0 or end > len(data):
            raise WeightsError(
                f"{path}: {name} of shape {shape} ends at byte {end}, but {', '.join(files)} has {len(data)}"
            )
        values = torch.from_numpy(np.frombuffer(data, dtype, count, start).reshape(shape).astype(_widened(dtype)))
        if "scale" in stored:
            values = values.float() * float(stored["scale"]) + float(stored.get("min", 0.0))
        constants[name] = values
        start = end
    if start != len(data):
        raise WeightsError(f"{path}: {', '.join(files)} has {len(data)} bytes, but the weights end at byte {start}")
    return constants


def _widened(dtype: np.dtype[Any]) -> type:
    """The dtype that torch computes in, of one in a file."""
    return np.float32 if dtype.kind == "f" else np.bool_ if dtype.kind == "b" else np.int32
