"""The command `deepcache`: one module a command, put together here."""

from __future__ import annotations

from typing import Annotated

import typer

from DeepCache.cli.ablate import ablate_command
from DeepCache.cli.app import app_command
from DeepCache.cli.batch import batch_command
from DeepCache.cli.benchmark import benchmark_command
from DeepCache.cli.errors import CommandGroup
from DeepCache.cli.generate import generate_command
from DeepCache.cli.info import info_command
from DeepCache.cli.report import report_command
from DeepCache.cli.tune import tune_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="deepcache",
    cls=CommandGroup,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate_command)
app.command("batch")(batch_command)
app.command("ablate")(ablate_command)
app.command("benchmark")(benchmark_command)
app.command("app")(app_command)
app.command("info")(info_command)
app.command("report")(report_command)
app.command("tune")(tune_command)


def _print_version(asked: bool) -> None:
    if asked:
        from DeepCache import __version__

        print(f"deepcache {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _deepcache(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """DeepCache: pictures from U-Net diffusion pipelines in less time, close to those without it."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The console command."""
    app(prog_name="deepcache")
