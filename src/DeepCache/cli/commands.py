"""The commands of `deepcache`, one module each, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from DeepCache.cli.ablate import ablate_command
from DeepCache.cli.batch import batch_command
from DeepCache.cli.benchmark import benchmark_command
from DeepCache.cli.comfyui import comfyui_command
from DeepCache.cli.env import env_command
from DeepCache.cli.errors import Command, CommandGroup
from DeepCache.cli.export import export_command
from DeepCache.cli.generate import generate_command
from DeepCache.cli.info import info_command
from DeepCache.cli.page import app_command
from DeepCache.cli.report import report_command
from DeepCache.cli.tune import tune_command

__all__ = ["app"]

app = typer.Typer(
    name="deepcache",
    cls=CommandGroup,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate_command,
    "batch": batch_command,
    "ablate": ablate_command,
    "benchmark": benchmark_command,
    "app": app_command,
    "info": info_command,
    "report": report_command,
    "tune": tune_command,
    "export": export_command,
    "comfyui": comfyui_command,
    "env": env_command,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=Command)(_function)


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
