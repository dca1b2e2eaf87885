"""`cvops models`: what the zoo has."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cvops.cli.errors import UserError
from cvops.models import list_models, model_info
from cvops.models.config import did_you_mean


def models(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or wildcards: 'tf_*lite?'.")] = None,
    task: Annotated[str | None, typer.Option(help="classification, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models: size, input, whose checkpoints load, and the package that carries trained weights."""
    names = list_models(pattern, task)
    if not names:
        raise UserError(f"no model matches {pattern or task!r}{did_you_mean(pattern or '', list_models())}")
    infos = [model_info(name) for name in names]
    if as_json:
        rows = [
            {
                "name": info.name,
                "task": info.task,
                "paper": str(info.paper),
                "parameters": info.parameters,
                "input_size": info.preprocess.size,
                "resize": info.preprocess.resize,
                "interpolation": info.preprocess.interpolation,
                "mean": info.preprocess.mean,
                "std": info.preprocess.std,
                "checkpoints": dict(info.checkpoints),
                "weights_package": info.weights_package,
            }
            for info in infos
        ]
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("M params", justify="right")
    table.add_column("input px", justify="right")
    table.add_column("checkpoints of")
    table.add_column("weights package", overflow="fold")
    for info in infos:
        table.add_row(
            info.name,
            f"{info.parameters / 1e6:.2f}",
            str(info.preprocess.size),
            ", ".join(publisher for publisher in info.checkpoints if publisher != "cvops"),
            info.weights_package or "",
        )
    Console().print(table)
