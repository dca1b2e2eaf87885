"""The commands of `cvops` under one roof. A new command is a file of its own and one line here."""

import typer

from cvops.cli import bench, classify, detect, doctor, eval, models

app = typer.Typer(
    help="High-performance vision ops and models for torch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(classify.classify)
app.command()(detect.detect)
app.command()(models.models)
app.command("eval")(eval.evaluate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench.bench)
app.command()(doctor.doctor)
