"""`cvops classify`: names what is on pictures. Reading and preprocessing are `cvops.data`, models `cvops.models`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from cvops.cli.errors import UserError
from cvops.data import imagenet_classes, load_image, preprocess
from cvops.models import Model, Preprocess, create_model, find_weights, model_info
from cvops.models.weights import read_saved
from cvops.nn import fuse

DEFAULT_MODEL = "mobilenetv2_100"


def classify(
    images: Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of `cvops models`; the one that a file of `cvops.save_model` names.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint file; without it, an installed weights package of the model.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, for weights other than ImageNet's.")
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes to show for each picture.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Classify pictures."""
    names = imagenet_classes() if classes is None else tuple(read_lines(classes))
    target = parse_device(device)
    if model is None:
        saved = None if weights is None else read_saved(weights)
        model = DEFAULT_MODEL if saved is None else saved.model
    spec = model_info(model).preprocess
    if not isinstance(spec, Preprocess):
        raise UserError(f"{model} is no classification model (cvops models --task classification)")
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f"no such file: {path}")
    network = fuse(load_classifier(model, weights, len(names))).to(target)
    results: list[dict[str, Any]] = []
    progress = Console(stderr=True)
    for path in track(
        images, "classifying", console=progress, transient=True, disable=not sys.stderr.isatty() or len(images) < 4
    ):
        with torch.inference_mode():
            batch = preprocess(load_image(path), spec).unsqueeze(0).to(target)
            probabilities, indices = network(batch)[0].float().softmax(0).topk(min(topk, len(names)))
        predictions = [
            {"class": index, "name": names[index], "probability": round(probability, 6)}
            for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
        results.append({"image": str(path), "model": network.name, "predictions": predictions})
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _print_table(results)


def load_classifier(name: str, weights: Path | None, num_classes: int) -> Model:
    """The model with trained weights for that many classes, from a file or from the package that carries them."""
    info = model_info(name)
    if info.task != "classification":
        raise UserError(f"{info.name} is a {info.task} model; cvops classify takes classification models")
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


def read_lines(path: Path) -> list[str]:
    """The lines of a file of class names that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: no class names in it")
    return lines


def _print_table(results: list[dict[str, Any]]) -> None:
    console = Console()
    table = Table(title=f"{results[0]['model']}", title_justify="left", box=None, pad_edge=False)
    table.add_column("image")
    table.add_column("class")
    table.add_column("%", justify="right")
    table.add_column("")
    for result in results:
        for i, prediction in enumerate(result["predictions"]):
            share = prediction["probability"]
            table.add_row(
                escape(Path(result["image"]).name) if i == 0 else "",
                f"[bold]{escape(prediction['name'])}[/bold]" if i == 0 else escape(prediction["name"]),
                f"{100 * share:.1f}",
                "█" * round(24 * share),
                end_section=i == len(result["predictions"]) - 1,
            )
    console.print(table)
