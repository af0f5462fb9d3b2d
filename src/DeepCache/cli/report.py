"""`deepcache report`: one page of HTML from results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from DeepCache.cli.interruption import keep_on_interrupt

__all__ = ["report_command"]

_WANDB = "Weights & Biases"


def report_command(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RESULT.json", help="Results of deepcache benchmark and deepcache ablate."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page; one that is there is replaced.")
    ] = Path("report.html"),
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Its heading.", show_default="the models")] = None,
    wandb: Annotated[
        bool,
        typer.Option(
            "--wandb",
            help="Log the same tables, images and charts as a run of Weights & Biases too; without an account it "
            "stays in a folder beside the page.",
            rich_help_panel=_WANDB,
        ),
    ] = False,
    wandb_project: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The project.", show_default="deepcache", rich_help_panel=_WANDB),
    ] = None,
) -> None:
    """Make one page of HTML from results: tables, charts, sample images and the files themselves.

    The page needs no network and no other file.

    Example: deepcache report benchmark.json ablation.json -o report.html
    """
    from DeepCache.report import log_to_wandb, write_report
    from DeepCache.report.wandb_run import check_wandb, wandb_folder

    if wandb_project is not None and not wandb:
        raise ValueError("--wandb-project names the project of a run: give --wandb with it")
    if wandb:
        check_wandb()
    paths = results or []
    keep_on_interrupt()
    print(write_report(paths, output, title=title))
    if wandb:
        run = log_to_wandb(paths, wandb_folder(output), project=wandb_project, title=title)
        print(run.url or f"Not uploaded; to upload it: wandb sync {run.folder}")
