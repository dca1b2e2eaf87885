"""Reading TensorFlow.js graph models, on small ones that are written here: layouts of weights, dtypes, pieces, and what
is wrong with a file."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cvops.models import WeightsError
from cvops.models.tfjs import read_graph_model

RANDOM = np.random.RandomState(0)


def node(name: str, op: str, *inputs: str, fused: tuple[str, ...] = ()) -> dict[str, Any]:
    texts = [base64.b64encode(text.encode()).decode() for text in fused]
    return {"name": name, "op": op, "input": list(inputs), "attr": {"fused_ops": {"list": {"s": texts}}}}


def write(folder: Path, nodes: list[dict[str, Any]], arrays: dict[str, np.ndarray], **changes: Any) -> Path:
    """A graph model with half-precision floats, in two binary files cut anywhere."""
    entries, data = [], b""
    for name, array in arrays.items():
        floating = array.dtype.kind == "f"
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "dtype": "float32" if floating else "int32"}
        if floating:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        entries.append(entry)
        data += array.astype("<f2" if floating else "<i4").tobytes()
    (folder / "a.bin").write_bytes(data[:7])
    (folder / "b.bin").write_bytes(data[7:])
    content = {
        "format": "graph-model",
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": entries}],
        **changes,
    }
    path = folder / "model.json"
    path.write_text(json.dumps(content))
    return path


ARRAYS = {
    "axis": np.array([1, 2], np.int32),
    "scope/dense/Conv2D_weights": RANDOM.randn(3, 3, 4, 6),
    "scope/dense/bias": RANDOM.randn(6),
    "scope/deep/depthwise_weights": RANDOM.randn(5, 3, 6, 2),
}
NODES = [
    node("image", "Placeholder"),
    node("dense", "_FusedConv2D", "image", "scope/dense/Conv2D_weights", "scope/dense/bias", "^x", fused=("BiasAdd",)),
    node("deep", "DepthwiseConv2dNative", "dense", "scope/deep/depthwise_weights"),
    node("mean", "Mean", "deep", "axis"),
]


def test_weights_come_in_torch_s_layout(tmp_path: Path) -> None:
    graph = read_graph_model(write(tmp_path, NODES, ARRAYS))
    assert [n.name for n in graph.nodes] == ["image", "dense", "deep", "mean"]
    assert graph.constants["axis"].tolist() == [1, 2]
    state = graph.convolutions()
    assert list(state) == ["scope/dense/Conv2D.weight", "scope/dense/Conv2D.bias", "scope/deep/depthwise.weight"]
    half = {name: torch.from_numpy(array.astype(np.float16).astype(np.float64)) for name, array in ARRAYS.items()}
    x = torch.from_numpy(RANDOM.randn(1, 7, 6, 4))  # as TensorFlow has it
    # What TensorFlow defines, written out: sums over window and channels at every place.
    kernel = half["scope/dense/Conv2D_weights"]
    windows = x.unfold(1, 3, 1).unfold(2, 3, 1)  # [1, 5, 4, 4, 3, 3]
    dense = torch.einsum("nyxcij,ijco->nyxo", windows, kernel) + half["scope/dense/bias"]
    channels_first = x.permute(0, 3, 1, 2)
    got = F.conv2d(channels_first, *(state[f"scope/dense/Conv2D.{leaf}"].double() for leaf in ("weight", "bias")))
    torch.testing.assert_close(got, dense.permute(0, 3, 1, 2))
    deep_windows = dense.unfold(1, 5, 1).unfold(2, 3, 1)  # [1, 1, 2, 6, 5, 3]
    deep = torch.einsum("nyxcij,ijcm->nyxcm", deep_windows, half["scope/deep/depthwise_weights"]).flatten(3)
    got = F.conv2d(got, state["scope/deep/depthwise.weight"].double(), groups=6)
    torch.testing.assert_close(got, deep.permute(0, 3, 1, 2))


def test_whole_numbers_are_widened_by_scale_and_least(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes([0, 128, 255]))
    entry = {"name": "v", "shape": [3], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}}
    path = tmp_path / "model.json"
    manifest = [{"paths": ["w.bin"], "weights": [entry]}]
    path.write_text(json.dumps({"modelTopology": {"node": []}, "weightsManifest": manifest}))
    values = read_graph_model(path).constants["v"]
    assert values.dtype == torch.float32
    assert values.tolist() == [-1.0, 63.0, 126.5]


def manifest(paths: list[str], **entry: Any) -> list[dict[str, Any]]:
    return [{"paths": paths, "weights": [{"name": "v", "shape": [2], "dtype": "float32", **entry}]}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "layers-model"}, "expected a graph model, got the format 'layers-model'"),
        ({"modelTopology": {}}, "its graph or list of weights is damaged"),
        ({"weightsManifest": [{"weights": []}]}, "its graph or list of weights is damaged"),
        ({"weightsManifest": manifest(["gone.bin"])}, "its file gone.bin is missing"),
        ({"weightsManifest": manifest(["../model.json"])}, "names a file outside of its folder"),
        ({"weightsManifest": manifest(["a.bin"])}, r"v of shape \[2\] ends at byte 8, but a.bin has 7"),
        ({"weightsManifest": manifest(["a.bin"], shape=[1])}, "has 7 bytes, but the weights end at byte 4"),
        ({"weightsManifest": manifest(["a.bin"], shape=[-1])}, "v of shape"),
        ({"weightsManifest": manifest(["a.bin"], dtype="complex64")}, "v is of dtype 'complex64'"),
        ({"weightsManifest": manifest(["a.bin"], shape=None)}, "its list of weights is damaged"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, NODES, ARRAYS, **changes)
    with pytest.raises(WeightsError, match=message):
        read_graph_model(path)


def test_files_that_are_no_graph_models_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with pytest.raises(FileNotFoundError):
        read_graph_model(path)
    path.write_text("{")
    with pytest.raises(WeightsError, match="not a JSON file"):
        read_graph_model(path)
    path.write_text("[1]")
    with pytest.raises(WeightsError, match=r"not a TensorFlow\.js model"):
        read_graph_model(path)


def test_weights_that_are_no_constants_are_told(tmp_path: Path) -> None:
    graph = read_graph_model(write(tmp_path, [node("c", "Conv2D", "image", "computed")], ARRAYS))
    with pytest.raises(WeightsError, match="c: expected its input 1 among the file's constants, got 'computed'"):
        graph.convolutions()
    graph = read_graph_model(write(tmp_path, [node("c", "Conv2D", "image", "axis")], ARRAYS))
    with pytest.raises(WeightsError, match=r"c: its weights must have four dimensions, got \[2\]"):
        graph.convolutions()
