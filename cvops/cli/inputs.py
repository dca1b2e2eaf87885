"""What `cvops classify` and `cvops detect` are given alike: options, pictures, class names, device, trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from cvops.cli.errors import UserError
from cvops.models import Model, create_model, find_weights, model_info
from cvops.models.weights import read_saved

Images = Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)]
Weights = Annotated[
    Path | None, typer.Option(help="Checkpoint file; without it, an installed weights package of the model.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def choose_model(model: str | None, weights: Path | None, default: str) -> str:
    """The model that was asked for; else the one that a file of `cvops.save_model` names; else `default`."""
    if model is None and weights is not None:
        saved = read_saved(weights)
        model = None if saved is None else saved.model
    return model or default


def check_pictures(images: Sequence[Path]) -> None:
    """Before a model is built, that every file is there."""
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f"no such file: {path}")


def load_trained(name: str, task: str, weights: Path | None, num_classes: int | None) -> Model:
    """The model with trained weights for that many classes (None: as published), from a file or from the package that
    carries them."""
    info = model_info(name)
    if info.task != task:
        raise UserError(f"{info.name} is a {info.task} model, expected one of `cvops models --task {task}`")
    network = create_model(name, num_classes=num_classes, weights=weights or find_weights(name))
    report = network.weights_report
    if report is not None and report.fresh:
        raise UserError(
            f"{report.fresh[0]}. Without a trained classifier the answer would be noise: "
            f"name the checkpoint's classes with --classes FILE"
        )
    return network


def parse_device(text: str) -> torch.device:
    """The device called `text`, if this torch can use it."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {text!r} is not usable here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise UserError("device 'meta' has no numbers to compute with")
    return device


def read_classes(path: Path) -> tuple[str, ...]:
    """The lines of a file of class names that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = tuple(filter(None, lines))
    if not names:
        raise UserError(f"{path}: no class names in it")
    return names
