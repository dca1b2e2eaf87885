"""The registry of model names: families register themselves on import, `create_model` builds, `list_models` and
`model_info` tell what there is. Reading and mapping weights is in `weights.py`."""

import dataclasses
import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cvops.models.classifier import ImageClassifier
from cvops.models.config import Accuracy, ModelConfig, Paper, Preprocess, did_you_mean, override
from cvops.models.detection import ImageTransform
from cvops.models.model import Backbone, Model
from cvops.models.weights import (
    KeyMap,
    NpmWeights,
    PackagedWeights,
    Reader,
    WeightsError,
    apply_weights,
    read_checkpoint,
    read_saved,
    recognise,
)


@dataclass(frozen=True)
class Variant:
    """One registered model: its settings, the preprocessing its published weights expect, its number of parameters
    (as built with these settings), other names it answers to, a package that carries its weights, its multiply-adds for
    one image of `preprocess.size` (as `count_macs` counts them), and how well its published weights classify."""

    config: ModelConfig
    preprocess: Preprocess | ImageTransform
    parameters: int
    aliases: tuple[str, ...] = ()
    packaged: PackagedWeights | NpmWeights | None = None
    macs: int | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class Family:
    """What a family file registers: its variants by name, the function that builds one from its config, the key maps of
    those who publish weights for it, and by suffix the readers of file formats that only it has."""

    name: str
    task: str
    paper: Paper
    build: Callable[[Any], Model]
    variants: Mapping[str, Variant]
    key_maps: tuple[KeyMap, ...]
    readers: Mapping[str, Reader] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """What `model_info` tells. `checkpoints` maps each publisher whose weights load to the settings that `create_model`
    changes for them (empty: none); `weights_package` is the Python package to install for trained weights, if there is
    one, `weights_command` what installs the package that has them, from whichever index. `macs` are the multiply-adds
    for one image of `preprocess.size`, `accuracy` is None where nobody published one.
    """

    name: str
    family: str
    task: str
    paper: Paper
    parameters: int
    macs: int | None
    accuracy: Accuracy | None
    config: ModelConfig
    preprocess: Preprocess | ImageTransform
    checkpoints: Mapping[str, Mapping[str, Any]]
    weights_package: str | None
    weights_command: str | None


_MODELS: dict[str, Family] = {}
_ALIASES: dict[str, str] = {}


class UnknownModelError(ValueError):
    """A name that is not in the registry."""


def register(family: Family) -> None:
    """Adds every variant of a family. Raises `ValueError`, adding none, if one of their names is taken."""
    names = [n for name, variant in family.variants.items() for n in (name, *variant.aliases)]
    taken = [n for n in names if n in _MODELS or n in _ALIASES or names.count(n) > 1]
    if taken:
        raise ValueError(f"{family.name}: already registered: {', '.join(dict.fromkeys(taken))}")
    for name, variant in family.variants.items():
        _MODELS[name] = family
        _ALIASES.update(dict.fromkeys(variant.aliases, name))


def _find(name: str) -> tuple[str, Family, Variant]:
    name = _ALIASES.get(name, name)
    if name not in _MODELS:
        known = [*_MODELS, *_ALIASES]
        raise UnknownModelError(f"unknown model {name!r}{did_you_mean(name, known)} (cvops.list_models() has all)")
    return name, _MODELS[name], _MODELS[name].variants[name]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    strict: bool = True,
    source: str | None = None,
    **overrides: Any,
) -> Model:
    """Builds a model of the zoo, in train mode, on the CPU.

    name: one of `list_models()`, or an alias such as "mobilenet_v2".
    num_classes: classes of the head; None takes the variant's own (1000 for ImageNet), 0 returns pooled features.
    in_chans: channels of the input image.
    weights, strict, source: a checkpoint and how to take it, as in `cvops.models.load_weights`. A publisher's settings
        that the keys do not show (timm runs `efficientnet_b5` with `norm_eps=1e-5`) are applied unless overridden, and
        so are those in a file of `save_model`, input channels aside. What happened is in `model.weights_report`, and
        logged under "cvops".
    overrides: any other field of the model's config, e.g. `dropout=0.3`, `drop_path=0.1`.

    Raises `UnknownModelError`, a `ValueError`, for an unknown name (with the closest ones), `TypeError` for an unknown
    setting, and the errors of `load_weights`.

    >>> model = cvops.create_model("efficientnet_b0", num_classes=10)
    >>> model(torch.zeros(2, 3, 224, 224)).shape, model.feature_info.strides
    (torch.Size([2, 10]), (2, 4, 8, 16, 32))
    """
    name, family, variant = _find(name)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    saved = _saved_settings(name, variant.config, weights, strict)
    changed = {key: value for key, value in saved.items() if key not in overrides}
    config = override(variant.config, in_chans=in_chans, **changed, **overrides)
    model = _build(name, family, config)
    if weights is None:
        return model
    state, origin = read_checkpoint(weights, model)
    match = recognise(model, state, origin, source)
    convention = {key: value for key, value in match.convention.items() if key not in overrides}
    differing = {key: value for key, value in convention.items() if getattr(config, key) != value}
    if differing:
        model = _build(name, family, override(config, **differing))
    match = dataclasses.replace(match, convention=convention)
    apply_weights(model, state, origin, match, strict=strict, changed={**changed, **differing})
    return model


def _saved_settings(name: str, config: ModelConfig, weights: Any, strict: bool) -> dict[str, Any]:
    """Settings other than `config`'s in a file that `save_model` wrote, without the number of input channels."""
    saved = None if weights is None else read_saved(weights)
    if saved is None:
        return {}
    if saved.model != name:
        if strict:
            raise WeightsError(f"{weights}: these are weights of {saved.model}, not of {name}")
        return {}
    known = {field.name for field in dataclasses.fields(config)}
    unknown = [key for key in saved.config if key not in known]
    if unknown:
        raise WeightsError(f"{weights}: this version of cvops has no setting {', '.join(unknown)} for {name}")
    return {k: v for k, v in saved.config.items() if k != "in_chans" and getattr(config, k) != v}


def build_from_config(name: str, config: ModelConfig) -> Model:
    """A model with fresh weights under a registered name, with any settings of its family."""
    name, family, _ = _find(name)
    return _build(name, family, config)


def _build(name: str, family: Family, config: ModelConfig) -> Model:
    model = family.build(config)
    model.name = name
    model.key_maps = family.key_maps
    model.readers = family.readers
    return model


def create_backbone(name: str, **settings: Any) -> Backbone:
    """The backbone of a classification model, as detectors and segmentation networks take it; `settings` are fields of
    its config. Errors as `create_model`.

    >>> create_backbone("resnet50", norm="frozen").feature_info.channels
    (64, 256, 512, 1024, 2048)
    """
    model = create_model(name, num_classes=0, **settings)
    if not isinstance(model, ImageClassifier):
        raise ValueError(f"{name} is not a classification model, so it has no backbone to give")
    return model.backbone


def backbone_modules(name: str, publisher: str, prefix: str, **settings: Any) -> dict[str, str]:
    """The part of a key map that other models reuse: how `publisher` names the layers of the backbone of the
    classification model `name`, below `prefix`; nothing if it has no such model.

    >>> backbone_modules("resnet50", "torchvision", "backbone.body.")["backbone.body.conv1"]
    'backbone.stem.conv'
    """
    _, family, variant = _find(name)
    config = override(variant.config, **settings)
    return {
        f"{prefix}{theirs}": ours
        for key_map in family.key_maps
        if key_map.publisher == publisher
        for theirs, ours in key_map.modules(config).items()
        if ours.startswith("backbone.")
    }


def load_backbone(
    model: Model, name: str, weights: str | os.PathLike[str] | Mapping[str, Tensor], **settings: Any
) -> None:
    """Loads a checkpoint of the classification model `name` into `model.backbone`, e.g. ImageNet weights into a
    detector that is to be trained; `settings` as in `create_backbone`. Recognising, errors and log as `create_model`.

    >>> detector = create_model("retinanet_resnet50_fpn", num_classes=20)
    >>> load_backbone(detector, "resnet50", timm.create_model("resnet50").state_dict())
    """
    source = create_model(name, weights=weights, **settings)
    state = source.get_submodule("backbone").state_dict()
    backbone = model.get_submodule("backbone")
    wanted = backbone.state_dict()
    # A norm with fixed statistics has no counter of steps; the keys agree otherwise, or this raises.
    backbone.load_state_dict({k: v for k, v in state.items() if k in wanted or not k.endswith("num_batches_tracked")})


def list_models(pattern: str | None = None, task: str | None = None) -> list[str]:
    """Registered names in alphabetical order, without aliases.

    pattern: shell-style wildcards ("tf_*"); a pattern without wildcards matches anywhere in the name.
    task: "classification", ...

    >>> list_models("*lite0")
    ['efficientnet_lite0', 'tf_efficientnet_lite0']
    """
    if pattern is not None and not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    return sorted(
        name
        for name, family in _MODELS.items()
        if (pattern is None or fnmatch.fnmatchcase(name, pattern)) and (task is None or family.task == task)
    )


def model_info(name: str) -> ModelInfo:
    """Paper, size, accuracy, preprocessing and checkpoints of a model, without building it. Raises
    `UnknownModelError`, a `ValueError`, as `create_model`.

    >>> info = model_info("efficientnet_b0")
    >>> info.parameters, info.preprocess.size, list(info.checkpoints)
    (5288548, 224, ['torchvision', 'timm', 'cvops'])
    >>> info.macs, str(info.accuracy)
    (385814752, '77.7 torchvision IMAGENET1K_V1')
    """
    name, family, variant = _find(name)
    checkpoints: dict[str, Mapping[str, Any]] = {}
    for key_map in family.key_maps:
        convention = key_map.convention(variant.config)
        if not isinstance(convention, str):
            changes = {k: v for k, v in convention.items() if getattr(variant.config, k) != v}
            checkpoints[key_map.publisher] = changes
    return ModelInfo(
        name=name,
        family=family.name,
        task=family.task,
        paper=family.paper,
        parameters=variant.parameters,
        macs=variant.macs,
        accuracy=variant.accuracy,
        config=variant.config,
        preprocess=variant.preprocess,
        checkpoints={**checkpoints, "cvops": {}},
        weights_package=variant.packaged.package if isinstance(variant.packaged, PackagedWeights) else None,
        weights_command=variant.packaged.install if variant.packaged is not None else None,
    )


def find_weights(name: str) -> Path:
    """File of a model's trained weights, from the package that carries them. Raises `WeightsError` that says which
    package to install, or that there is none.

    >>> model = create_model("mobilenetv2_100", weights=find_weights("mobilenetv2_100"))
    """
    name, _, variant = _find(name)
    if variant.packaged is None:
        available = [n for n, f in _MODELS.items() if f.variants[n].packaged is not None]
        raise WeightsError(
            f"no package carries weights of {name}: give a file ({' or '.join(model_info(name).checkpoints)} layout). "
            f"Weights from a package exist for {', '.join(sorted(available))}"
        )
    path = variant.packaged.find()
    if path is None:
        raise WeightsError(f"the weights of {name} are in a package that is not installed: {variant.packaged.install}")
    return path
