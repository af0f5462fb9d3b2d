"""`deepcache info`: the skip branches of a model and what they can save."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from DeepCache.cli.options import Config, Json

__all__ = ["info_command"]

_INTERVALS = (2, 3, 5)
_STEPS = 50


def info_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name (shapes comes with DeepCache; sd15, sd21, … are well-known ones), a folder, a "
            ".safetensors file, or owner/name on the hub.",
        ),
    ] = "shapes",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the skip branches of a model and the speed-up that each can give at most.

    Reads the configuration of the model and not its weights.

    Example: deepcache info shapes
    """
    from DeepCache.cli.loading import quiet_libraries

    with quiet_libraries():
        from DeepCache.models import describe_pipeline, limit_speed_up, load_without_weights, recommended_guidance

        pipe = load_without_weights(model, config=config)
        description = describe_pipeline(pipe, recommended_guidance(model, pipe))
    if as_json:
        print(json.dumps(asdict(description), indent=2))
        return
    console = Console(markup=False)
    size = "×".join(str(side) for side in description.sample)
    guidance = "with guidance" if description.batch > 1 else "without guidance"
    console.print(
        f"{description.pipeline} with {description.unet}\n"
        f"One full step takes {description.full_macs / 1e9:.3g} GMAC {guidance} at the default "
        f"size (a U-Net input of {size}).\n",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("branch", justify="right")
    table.add_column("name", no_wrap=True)
    for name in ("channels", "shallow\nstep", *(f"interval\n{i}" for i in _INTERVALS)):
        table.add_column(name, justify="right", no_wrap=True)
    for branch in description.branches:
        table.add_row(
            str(branch.number),
            branch.name,
            str(branch.channels),
            f"{branch.mac_share:.1%}",
            *(f"{limit_speed_up(i, branch.mac_share, _STEPS):.2f}×" for i in _INTERVALS),
        )
    console.print(table)
    console.print(
        "\nshallow step: its multiply-accumulates as a share of those of a full step.\n"
        f"interval: the U-Net's speed-up over {_STEPS} steps if multiply-accumulates were all.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
