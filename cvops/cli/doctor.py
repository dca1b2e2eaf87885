"""`cvops doctor`: what is installed, which libraries loaded and why not, and what the machine offers. The facts come
from `cvops._library`."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cvops import _library


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, loaded libraries, instruction set, threads and GPUs."""
    report = _library.report()
    if as_json:
        print(json.dumps(report, indent=2, default=str))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in report.items():
        table.add_row(escape(str(key)), escape(_plain(value)))
    Console().print(table)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(_plain(part) for part in value) or "none"
    return "none" if value is None else str(value)
