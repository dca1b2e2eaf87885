"""`cvops detect`: finds objects on pictures and draws them. Models are `cvops.models`, drawing is `cvops.visualize`."""

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
from torch import Tensor

from cvops.cli.errors import UserError
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
from cvops.data import coco_classes, load_image, to_tensor
from cvops.models.detector import Detector
from cvops.nn import fuse
from cvops.visualize import draw_detections

DEFAULT_MODEL = "centernet_mobilenetv3"


def detect(
    images: Images,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of `cvops models --task detection`; the one that a file of `cvops.save_model` names.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    weights: Weights = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Leave out detections with a lower score.")] = 0.3,
    output: Annotated[Path, typer.Option(help="Folder for the pictures with boxes and for detections.json.")] = Path(
        "detections"
    ),
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line, for weights other than COCO's.")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Detect objects on pictures: write the pictures with boxes, labels and scores, and all of it as JSON."""
    target = parse_device(device)
    check_pictures(images)
    names = None if classes is None else read_classes(classes)
    name = choose_model(model, weights, DEFAULT_MODEL)
    network = load_trained(name, "detection", weights, None if names is None else len(names))
    assert isinstance(network, Detector)
    names = names or _names(network.config.num_classes)
    network = fuse(network).to(target)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from error
    results: list[dict[str, Any]] = []
    jobs = list(zip(images, _file_names(images), strict=True))
    hidden = not sys.stderr.isatty() or len(images) < 4
    for path, file in track(jobs, "detecting", console=Console(stderr=True), transient=True, disable=hidden):
        picture = load_image(path)
        with torch.inference_mode():
            [found] = network([to_tensor(picture).to(target)])
        found = {key: value.cpu() for key, value in found.items()}
        drawn = output / file
        draw_detections(picture, found, names, threshold=threshold).save(drawn)
        results.append(
            {
                "image": str(path),
                "model": network.name,
                "size": list(picture.size),
                "picture": str(drawn),
                "detections": detections_of(found, names, threshold),
            }
        )
    text = json.dumps(results, indent=2)
    (output / "detections.json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
    else:
        _print_table(results, output)


def detections_of(found: dict[str, Tensor], names: tuple[str, ...], threshold: float) -> list[dict[str, Any]]:
    """What was found, best first: label, name, score, and box as x1, y1, x2, y2 in pixels."""
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    return [
        {
            "label": label,
            "name": names[label] if label < len(names) else str(label),
            "score": round(score, 4),
            "box": [round(side, 1) for side in box],
        }
        for label, score, box in rows
        if score >= threshold
    ]


def _names(num_classes: int) -> tuple[str, ...]:
    """COCO's names, or numbers where the count is not COCO's."""
    try:
        return coco_classes(num_classes)
    except ValueError:
        return tuple(map(str, range(num_classes)))


def _file_names(images: list[Path]) -> list[str]:
    """Names of the written pictures: the pictures' own, numbered where two are the same."""
    names: list[str] = []
    for path in images:
        name, number = f"{path.stem}.png", 2
        while name in names:
            name, number = f"{path.stem}_{number}.png", number + 1
        names.append(name)
    return names


def _print_table(results: list[dict[str, Any]], output: Path) -> None:
    console = Console()
    table = Table(title=f"{results[0]['model']}", title_justify="left", box=None, pad_edge=False)
    for title in ("image", "object"):
        table.add_column(title)
    table.add_column("score", justify="right")
    table.add_column("box, px", justify="right")
    for result in results:
        image = escape(Path(result["image"]).name)
        rows = result["detections"]
        for i, row in enumerate(rows):
            box = " ".join(f"{round(side):5d}" for side in row["box"])
            last = i == len(rows) - 1
            table.add_row(image if i == 0 else "", escape(row["name"]), f"{row['score']:.2f}", box, end_section=last)
        if not rows:
            table.add_row(image, "nothing", "", "", end_section=True)
    console.print(table)
    console.print(f"pictures and detections.json are in {escape(str(output))}", soft_wrap=True, highlight=False)
