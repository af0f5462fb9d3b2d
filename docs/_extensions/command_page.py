"""The page of the commands, made from the program whenever the site is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from sphinx.application import Sphinx
from typer.main import get_command

from DeepCache.cli import app as program

PAGE = "commands"


def setup(site: Sphinx) -> dict[str, bool]:
    site.connect("source-read", _add_commands)
    return {"parallel_read_safe": True}


def _add_commands(site: Sphinx, page: str, source: list[str]) -> None:
    if page == PAGE:
        source[0] += "\n" + commands()


def commands() -> str:
    """Every command of the program as Markdown, in the order of its help."""
    group = get_command(program)
    whole = group.context_class(group, info_name=group.name, **group.context_settings)
    shown = [command for command in group.commands.values() if not command.hidden]
    return "\n\n".join(chain.from_iterable(_command(command, whole) for command in shown)) + "\n"


def _command(command: Any, group: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=command.name, parent=group)
    yield f"## {context.command_path}"
    for paragraph in re.split(r"\n\s*\n", command.help.strip()):
        words = " ".join(paragraph.split())
        example = words.removeprefix("Example: ")
        yield words if example == words else f"```bash\n{example}\n```"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        is_argument = parameter.param_type_name == "argument"
        record = parameter.get_help_record(context)
        if record is not None:
            panel = parameter.rich_help_panel or ("Arguments" if is_argument else "Options")
            panels.setdefault(panel, []).append(_row(*record, is_argument=is_argument))
    for panel, rows in panels.items():
        yield "\n".join([f"| {panel} | | default |", "|---|---|---|", *rows])


def _row(names: str, text: str, *, is_argument: bool) -> str:
    """A line of a table from what the program shows of a parameter: its help, then `[default: …; required]`."""
    text, _, notes = text.partition("  [")
    shown = names.split(" <")[0] if is_argument else names
    defaults = "; ".join(_default(note) for note in notes.removesuffix("]").split("; ") if note)
    return f"| {_cell(f'`{shown}`')} | {_cell(text)} | {_cell(defaults)} |"


def _default(note: str) -> str:
    value = note.removeprefix("default: ")
    # What is in parentheses says in words what the default is.
    return value if value == note or value.startswith("(") else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
