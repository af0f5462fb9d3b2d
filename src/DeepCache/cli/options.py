"""Options that several commands have, and lists in an option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "MODEL_PANEL",
    "Device",
    "Dtype",
    "Guidance",
    "Model",
    "Scheduler",
    "Threads",
    "check_output",
    "numbers",
    "sizes",
    "words",
]

MODEL_PANEL = "Model"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name (shapes comes with DeepCache; sd15, sd21, sdxl, … get random weights), a folder, or owner/name "
        "on the hub.",
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
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale.", show_default="recommended for the model", rich_help_panel=MODEL_PANEL),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of PyTorch on the CPU.", show_default="PyTorch's own", rich_help_panel=MODEL_PANEL),
]


def words(text: str) -> tuple[str, ...]:
    """The parts of a list with commas between them.

    Example:
        >>> words("eager, compiled")
        ('eager', 'compiled')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The whole numbers in a list with commas between them.

    Args:
        name: what they are, for the message.
        text: the list.

    Raises:
        ValueError: a part is no whole number.

    Example:
        >>> numbers("batches", "1,4,8")
        (1, 4, 8)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} are numbers with commas between them, such as 0,1,3, got {text!r}") from None


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """The sizes in a list with commas between them, each as width and height.

    Raises:
        ValueError: a part is no size.

    Example:
        >>> sizes("512,768x512")
        ((512, 512), (768, 512))
    """
    from DeepCache.generation import parse_size

    return tuple(parse_size(part) for part in text.split(","))


def check_output(path: Path, what: str, example: str) -> None:
    """Refuses a file that cannot be written, before any work is done.

    Args:
        path: the file.
        what: what is to be written.
        example: a name that would do.

    Raises:
        ValueError: it is a folder, or in none.
    """
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r} to write {what} to")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the name of a file for {what}, such as {example}")
