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

from cvops.cli.inputs import (
    AsJson,
    Device,
    Images,
    Weights,
    check_pictures,
    choose_model,
    load_trained,
    parse_device,
    read_classes,
)
from cvops.data import imagenet_classes, load_image, preprocess
from cvops.models import Preprocess, model_info
from cvops.nn import fuse

DEFAULT_MODEL = "mobilenetv2_100"


def classify(
    images: Images,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of `cvops models`; the one that a file of `cvops.save_model` names.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    weights: Weights = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, for weights other than ImageNet's.")
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes to show for each picture.")] = 5,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Classify pictures."""
    names = imagenet_classes() if classes is None else read_classes(classes)
    target = parse_device(device)
    check_pictures(images)
    name = choose_model(model, weights, DEFAULT_MODEL)
    network = fuse(load_trained(name, "classification", weights, len(names))).to(target)
    spec = model_info(name).preprocess
    assert isinstance(spec, Preprocess)
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
