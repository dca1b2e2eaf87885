"""`cvops models`: what the zoo has."""

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cvops.cli.errors import UserError
from cvops.models import ModelInfo, list_models, model_info
from cvops.models.config import did_you_mean


def models(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or wildcards: 'tf_*lite?'.")] = None,
    task: Annotated[str | None, typer.Option(help="classification, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models by family: size, multiply-adds, input, published accuracy and who measured it, whose checkpoints
    load, and the package that carries trained weights."""
    names = list_models(pattern, task)
    if not names:
        raise UserError(f"no model matches {pattern or task!r}{did_you_mean(pattern or '', list_models())}")
    infos = [model_info(name) for name in names]
    if as_json:
        print(json.dumps([_row(info) for info in infos], indent=2, default=dataclasses.asdict))
        return
    console = Console()
    for family in dict.fromkeys(info.family for info in infos):
        members = [info for info in infos if info.family == family]
        console.print(f"\n[bold]{family}[/bold]  {members[0].paper}", highlight=False, soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        table.add_column("model", no_wrap=True, min_width=max(len(info.name) for info in infos))
        table.add_column("M params", justify="right")
        table.add_column("GMACs", justify="right", min_width=7)
        table.add_column("input px", justify="right")
        table.add_column("top-1 / AP %, by whom", min_width=16)
        table.add_column("checkpoints of", min_width=16)
        for info in members:
            table.add_row(
                info.name,
                f"{info.parameters / 1e6:.2f}",
                f"{info.macs / 1e9:.3f}" if info.macs is not None else "",
                str(info.preprocess),
                str(info.accuracy or ""),
                ", ".join(publisher for publisher in info.checkpoints if publisher != "cvops"),
            )
        console.print(table)
        for info in members:
            if info.weights_command is not None:
                console.print(
                    f"trained weights of {info.name}: {info.weights_command}", soft_wrap=True, highlight=False
                )


def _row(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "task": info.task,
        "paper": str(info.paper),
        "parameters": info.parameters,
        "macs": info.macs,
        "accuracy": dataclasses.asdict(info.accuracy) if info.accuracy is not None else None,
        "preprocess": dataclasses.asdict(info.preprocess),
        "checkpoints": dict(info.checkpoints),
        "weights_package": info.weights_package,
    }
