"""Darknet's files: `.weights`, numbers without names, and `.cfg`, which says what they belong to. A model that can be
read from them says in which order its layers are there (`darknet_layout`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from cvops.models.weights import WeightsError
from cvops.nn import ConvNormAct

if TYPE_CHECKING:
    from cvops.models.model import Model

_ACTIVATIONS = {nn.Mish: "mish", nn.LeakyReLU: "leaky", nn.Sigmoid: "logistic", nn.ReLU: "relu"}
Options = dict[str, str]


@dataclass(frozen=True)
class DarknetLayout:
    """Where a model's layers are in the files.

    units: paths of the convolutions, in order; each a `ConvNormAct`, or for an output a bare convolution to 5 numbers
        and the classes for each anchor.
    anchors, grid_scales: of the outputs, in order.
    num_classes: the model's.
    """

    units: tuple[str, ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    grid_scales: tuple[float, ...]
    num_classes: int


@dataclass(frozen=True)
class Convolution:
    """What a `[convolutional]` section says, and the number of channels that reach it."""

    channels: int
    filters: int
    size: int
    stride: int
    norm: bool
    activation: str

    @property
    def numbers(self) -> int:
        """How many the `.weights` file has of it."""
        return self.filters * (self.channels * self.size**2 + (4 if self.norm else 1))

    def __str__(self) -> str:
        return (
            f"filters={self.filters} size={self.size} stride={self.stride} batch_normalize={int(self.norm)} "
            f"activation={self.activation} on {self.channels} channels"
        )


def read_darknet(model: "Model", path: Path) -> dict[str, Tensor]:
    """The entries of a `.weights` file for `model`, named `convolutional.<number>.conv.weight` and so on, the number
    counting from 0. A file of the same stem that ends in `.cfg`, if there is one, is checked against the architecture
    first. How many classes the weights are for follows from the length of the file.

    The file is a header (version as three int32, images seen as int64, or int32 before version 0.2) and float32
    numbers, all little-endian: of a convolution with batch norm the norm's bias, weight, mean and variance, then the
    kernel; of one without its bias, then the kernel (Darknet, src/parser.c).

    Raises `FileNotFoundError`; `WeightsError` for a length that does not fit the model, which names both lengths, and
    for a `.cfg` that differs, which names the layer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    layout = _layout_of(model, path)
    config = path.with_suffix(".cfg")
    described = check_cfg(model, config) if config.is_file() else None
    values = _read_numbers(path)
    own = _convolutions(model, layout, layout.num_classes)
    outputs = zip((conv for conv in own if not conv.norm), map(len, layout.anchors), strict=True)
    per_class = sum((conv.channels + 1) * anchors for conv, anchors in outputs)
    missing = sum(conv.numbers for conv in own) - len(values)
    classes = layout.num_classes - missing // per_class
    if missing % per_class or classes < 1 or described not in (None, classes):
        wanted = layout.num_classes if described is None else described
        length = len(values) + missing + (wanted - layout.num_classes) * per_class
        raise WeightsError(
            f"{path}: expected {length} numbers, for {model.name} with {wanted} classes, got {len(values)}: the file "
            "is cut short, or belongs to another architecture"
        )
    entries: dict[str, Tensor] = {}
    start = 0
    for number, conv in enumerate(_convolutions(model, layout, classes)):
        name = f"convolutional.{number}"
        shape = (conv.filters, conv.channels, conv.size, conv.size)
        norms = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var")
        for leaf in norms if conv.norm else ("bias",):
            entries[f"{name}.{leaf}"] = values[start : start + conv.filters]
            start += conv.filters
        kernel = conv.numbers - conv.filters * (4 if conv.norm else 1)
        entries[f"{name}.conv.weight" if conv.norm else f"{name}.weight"] = values[start : start + kernel].view(shape)
        start += kernel
    return entries


def check_cfg(model: "Model", path: Path) -> int:
    """Compares a `.cfg` file with the architecture of `model`: every convolution with the channels that reach it, and
    the anchors and grid scales of every output. Returns the number of classes it is for, which may be another.

    Raises `WeightsError` that names the line of the first section that differs, what the model has, and what it says.
    """
    layout = _layout_of(model, path)
    convolutions, outputs = _walk(path)
    classes = layout.num_classes
    if outputs:
        classes = _number(path, *outputs[0], "classes")
    for number, conv in enumerate(_convolutions(model, layout, classes)):
        if number == len(convolutions):
            raise WeightsError(f"{path}: expected {len(layout.units)} convolutions, as {model.name} has, got {number}")
        line, theirs = convolutions[number]
        if theirs != conv:
            raise WeightsError(f"{path}, line {line}: expected {conv}, as {layout.units[number]} has, got {theirs}")
    if len(convolutions) != len(layout.units) or len(outputs) != len(layout.anchors):
        raise WeightsError(
            f"{path}: expected {len(layout.units)} convolutions and {len(layout.anchors)} outputs, as {model.name} "
            f"has, got {len(convolutions)} and {len(outputs)}"
        )
    for (line, options), anchors, scale in zip(outputs, layout.anchors, layout.grid_scales, strict=True):
        sides = _list(path, line, options, "anchors")
        try:
            theirs_anchors = tuple(
                (sides[2 * int(i)], sides[2 * int(i) + 1]) for i in _list(path, line, options, "mask")
            )
        except IndexError as error:
            raise WeightsError(f"{path}, line {line}: mask names anchors that are not there") from error
        their_scale = _list(path, line, {"scale_x_y": "1", **options}, "scale_x_y")[0]
        if (theirs_anchors, their_scale) != (anchors, scale):
            raise WeightsError(
                f"{path}, line {line}: expected anchors {anchors} and scale_x_y {scale}, as {model.name} has, got "
                f"{theirs_anchors} and {their_scale}: set anchors and grid_scales"
            )
    return classes


def _layout_of(model: "Model", path: Path) -> DarknetLayout:
    layout = getattr(model, "darknet_layout", None)
    if layout is None:
        raise WeightsError(f"{path}: {model.name} cannot be read from Darknet's files")
    return cast(DarknetLayout, layout())


def _convolutions(model: "Model", layout: DarknetLayout, classes: int) -> list[Convolution]:
    """The model's own convolutions, as a file for so many classes and images of three channels has them."""
    anchors = iter(layout.anchors)
    found = []
    for number, path in enumerate(layout.units):
        unit = model.get_submodule(path)
        conv = cast(nn.Conv2d, unit.conv if isinstance(unit, ConvNormAct) else unit)
        found.append(
            Convolution(
                channels=3 if number == 0 else conv.in_channels,
                filters=conv.out_channels if isinstance(unit, ConvNormAct) else len(next(anchors)) * (5 + classes),
                size=conv.kernel_size[0],
                stride=conv.stride[0],
                norm=isinstance(unit, ConvNormAct),
                activation=_ACTIVATIONS[type(unit.act)] if isinstance(unit, ConvNormAct) else "linear",
            )
        )
    return found


def _read_numbers(path: Path) -> Tensor:
    """What follows the header."""
    size = path.stat().st_size
    if size < 16:
        raise WeightsError(f"{path}: expected a header of 16 or 20 bytes, got a file of {size}")
    major, minor = (int(v) for v in np.fromfile(path, "<i4", 2))
    header = 20 if major * 10 + minor >= 2 else 16
    if not (0 <= major < 1000 and 0 <= minor < 1000) or (size - header) % 4:
        raise WeightsError(f"{path}: not Darknet's weights, it says version {major}.{minor} and has {size} bytes")
    return torch.from_numpy(np.fromfile(path, "<f4", offset=header).astype(np.float32, copy=False))


# --- .cfg -------------------------------------------------------------------------------------------------------------

Section = tuple[int, str, Options]  # line, kind, options


def _sections(path: Path) -> list[Section]:
    sections: list[Section] = []
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = text.partition("#")[0].strip()
        if text.startswith("[") and text.endswith("]"):
            sections.append((line, text[1:-1], {}))
        elif "=" in text and sections:
            key, _, value = text.partition("=")
            sections[-1][2][key.strip()] = value.strip()
        elif text:
            raise WeightsError(f"{path}, line {line}: expected a [section] or key=value, got {text!r}")
    return sections


def _walk(path: Path) -> tuple[list[tuple[int, Convolution]], list[tuple[int, Options]]]:
    """Follows the channels through the sections; what the convolutions and the outputs say, with their lines."""
    sections = _sections(path)
    if not sections or sections[0][1] not in ("net", "network"):
        raise WeightsError(f"{path}: expected [net] first, got {sections[0][1] if sections else 'nothing'!r}")
    convolutions: list[tuple[int, Convolution]] = []
    outputs: list[tuple[int, Options]] = []
    widths: list[int] = []  # channels that each layer puts out
    before = _number(path, sections[0][0], {"channels": "3", **sections[0][2]}, "channels")
    for line, kind, options in sections[1:]:
        if kind == "convolutional":
            conv = Convolution(
                channels=before,
                filters=_number(path, line, options, "filters"),
                size=_number(path, line, options, "size"),
                stride=_number(path, line, {"stride": "1", **options}, "stride"),
                norm=options.get("batch_normalize", "0") != "0",
                activation=options.get("activation", "logistic"),
            )
            if options.get("groups", "1") != "1" or options.get("pad", "0") == "0":
                raise WeightsError(f"{path}, line {line}: expected pad=1 and no groups")
            convolutions.append((line, conv))
            before = conv.filters
        elif kind == "route":
            if "groups" in options:
                raise WeightsError(f"{path}, line {line}: expected a route without groups")
            sources = [int(v) + (len(widths) if v < 0 else 0) for v in _list(path, line, options, "layers")]
            if not all(0 <= source < len(widths) for source in sources):
                raise WeightsError(f"{path}, line {line}: layers names what is not before it, {options['layers']}")
            before = sum(widths[source] for source in sources)
        elif kind == "yolo":
            outputs.append((line, options))
        elif kind not in ("shortcut", "maxpool", "upsample", "sam"):
            raise WeightsError(f"{path}, line {line}: a layer that no such architecture has, [{kind}]")
        widths.append(before)
    return convolutions, outputs


def _list(path: Path, line: int, options: Options, key: str) -> Sequence[float]:
    try:
        return [float(value) for value in options[key].split(",")]
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}, line {line}: expected {key}= and numbers, got {options.get(key)!r}") from error


def _number(path: Path, line: int, options: Options, key: str) -> int:
    return int(_list(path, line, options, key)[0])
