"""The commands of `deepcache`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from DeepCache.cli.ablate import ablate_command
from DeepCache.cli.batch import batch_command
from DeepCache.cli.benchmark import benchmark_command
from DeepCache.cli.console import print_json
from DeepCache.cli.errors import Command, CommandGroup
from DeepCache.cli.export import export_command
from DeepCache.cli.generate import generate_command
from DeepCache.cli.info import info_command
from DeepCache.cli.options import Json, expanded
from DeepCache.cli.page import app_command
from DeepCache.cli.report import report_command
from DeepCache.cli.tune import tune_command


def comfyui_command(
    path: Path = typer.Argument(..., metavar="PATH", help="ComfyUI folder, which contains custom_nodes."),
) -> None:
    """Install or update the DeepCache nodes in ComfyUI.

    Example: deepcache comfyui ComfyUI
    """
    from DeepCache.comfyui.installing import install_nodes

    print(f"The nodes are in {install_nodes(path.expanduser())}. Restart ComfyUI, and add the node DeepCache")


def env_command(as_json: Json = False) -> None:
    """Show versions, devices and supported dtypes for a bug report.

    Example: deepcache env
    """
    from DeepCache.bench.provenance import describe_environment

    found = describe_environment()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:", *(f"  {key}: {each}" for key, each in value.items()), sep="\n")
        else:
            print(f"{name}: {value}")


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
    app.command(_name, cls=Command)(expanded(_function))


def _print_version(asked: bool) -> None:
    if asked:
        from DeepCache import __version__

        print(f"deepcache {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _deepcache(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """DeepCache: faster image generation with U-Net diffusion pipelines, close to the original results."""
    if context.invoked_subcommand is None:
        print(context.get_help())
