"""`cvops eval`: COCO's numbers for a result file. Reading and evaluating is `cvops.metrics`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cvops.cli.errors import UserError
from cvops.metrics import CocoFormatError, CocoResult, read_coco
from cvops.metrics.coco import MAX_DETECTIONS
from cvops.metrics.coco_result import NOTHING


def evaluate(
    ground_truth: Annotated[Path, typer.Option(help="COCO annotations, instances_*.json.", show_default=False)],
    results: Annotated[Path, typer.Option(help="Detections in COCO's result format.", show_default=False)],
    iou_type: Annotated[str, typer.Option(help="bbox or segm.")] = "bbox",
    max_detections: Annotated[
        list[int] | None, typer.Option(min=1, help="Detections of a class that count in an image; may be repeated.")
    ] = None,
    class_agnostic: Annotated[bool, typer.Option("--class-agnostic", help="Take all classes as one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Evaluate detections as COCO does: the twelve numbers, and average precision by class."""
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"--iou-type must be bbox or segm, got {iou_type!r}")
    for path in (ground_truth, results):
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
    try:
        evaluator = read_coco(
            ground_truth,
            results,
            iou_type,
            max_detections=max_detections or MAX_DETECTIONS,
            class_agnostic=class_agnostic,
        )
    except CocoFormatError as error:
        raise UserError(str(error)) from error
    result = evaluator.compute()
    if result.unknown_labels:
        labels = ", ".join(map(str, list(result.unknown_labels)[:8]))
        count = sum(result.unknown_labels.values())
        print(
            f"cvops: {count} results are left out: the ground truth does not list their categories ({labels})",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps({"iou_type": iou_type, "summary": result.summary, "classes": result.per_class}, indent=2))
    else:
        _print_tables(result)


def _print_tables(result: CocoResult) -> None:
    console = Console()
    kind = "boxes" if result.iou_type == "bbox" else "masks"
    summary = Table(title=f"{kind}, {result.images} images", title_justify="left", box=None, pad_edge=False)
    summary.add_column("metric")
    summary.add_column("value", justify="right")
    for name, value in result.summary.items():
        summary.add_row(name, _three_digits(value))
    console.print(summary)
    rows = result.per_class
    if not rows:
        return
    classes = Table(box=None, pad_edge=False)
    classes.add_column("class", overflow="fold")
    numbers = [key for key in rows[0] if key not in ("id", "name")]
    for key in numbers:
        classes.add_column(key, justify="right")
    for row in rows:
        classes.add_row(escape(str(row["name"])), *(_three_digits(float(row[key])) for key in numbers))
    console.print()
    console.print(classes)


def _three_digits(value: float) -> str:
    return "-" if value == NOTHING else f"{value:.3f}"
