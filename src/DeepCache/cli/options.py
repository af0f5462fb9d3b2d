"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MODEL_PANEL", "Device", "Dtype", "Model", "Scheduler"]

MODEL_PANEL = "Model"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name (shapes comes with DeepCache), a folder, or owner/name on the hub.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="ddim, dpm++, euler, euler-a, heun, unipc, pndm, … or a class of diffusers.",
        show_default="the model's own",
        rich_help_panel=MODEL_PANEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, float16 or bfloat16; auto is float16 with CUDA, else float32.", rich_help_panel=MODEL_PANEL
    ),
]
Device = Annotated[
    str, typer.Option(help="cuda, cuda:1, mps, cpu, …; auto is the best there is.", rich_help_panel=MODEL_PANEL)
]
