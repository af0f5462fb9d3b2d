"""`deepcache report`: an HTML page from results."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer

from DeepCache.cli.interruption import keep_on_interrupt

_wandb_option = partial(typer.Option, rich_help_panel="Weights & Biases")


def report_command(
    results: list[Path] | None = typer.Argument(
        None, metavar="RESULT.json", help="Results of `deepcache benchmark` and `deepcache ablate`."
    ),
    *,
    output: Path = typer.Option(
        Path("report.html"), "--output", "-o", metavar="FILE", help="Output file; an existing file is replaced."
    ),
    title: str | None = typer.Option(None, metavar="TEXT", help="Heading.", show_default="the models"),
    wandb: bool = _wandb_option(
        False,
        "--wandb",
        help="Also log the tables, images and charts as a Weights & Biases run. Without an account, the run is saved "
        "in a folder next to the page.",
    ),
    wandb_project: str | None = _wandb_option(
        None, metavar="NAME", help="Project of the run.", show_default="deepcache"
    ),
) -> None:
    """Create an HTML page from results, with tables, charts, sample images and the result files.

    The page is a single file that needs no network.

    Example: deepcache report benchmark.json ablation.json -o report.html
    """
    from DeepCache.report import log_to_wandb, write_report
    from DeepCache.report.wandb_run import check_wandb, wandb_folder

    if wandb_project is not None and not wandb:
        raise ValueError("--wandb-project requires --wandb")
    if wandb:
        check_wandb()
    paths = results or []
    keep_on_interrupt()
    print(write_report(paths, output, title=title))
    if wandb:
        run = log_to_wandb(paths, wandb_folder(output), project=wandb_project, title=title)
        print(run.url or f"Not uploaded. To upload the run: wandb sync {run.folder}")
