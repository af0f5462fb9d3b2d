"""The result files that a report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from DeepCache.bench.result_file import BENCHMARK_FORMAT, load_result

__all__ = ["Source", "read_sources"]


@dataclass(frozen=True)
class Source:
    """A result file.

    Args:
        path: where it is.
        name: what the report calls it: its file name, with a number where several have the same.
        result: what it holds, as `read_result` returns it.
        content: the text of the file.
    """

    path: Path
    name: str
    result: dict[str, Any]
    content: str

    @property
    def is_benchmark(self) -> bool:
        """Whether it holds speeds; else fidelity against cost."""
        return bool(self.result["format"] == BENCHMARK_FORMAT)

    @property
    def model(self) -> str:
        """The model without the folders that it lies in; a hub id as it is."""
        model = str(self.result["settings"]["model"])
        is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
        return model if is_hub_id else PurePath(model).name or model

    @property
    def device(self) -> str:
        """What it ran on."""
        return str(self.result["device"]["name"]) or "an unknown device"


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Reads result files and checks them.

    Raises:
        ValueError: there is none, one is given twice, or one is no result.
        OSError: one cannot be read.
        ImportError: jsonschema is not installed.
    """
    if not paths:
        raise ValueError("there is nothing to report: give one or more result files")
    found: dict[Path, Source] = {}
    for path in paths:
        if path.resolve() in found:
            raise ValueError(f"the result {str(path)!r} is given twice")
        if not path.exists():
            raise FileNotFoundError(f"there is no result file {str(path)!r}")
        result, content = load_result(path)
        name = _new_name(path, {source.name for source in found.values()})
        found[path.resolve()] = Source(path, name, result, content)
    return list(found.values())


def _new_name(path: Path, names: set[str]) -> str:
    number, name = 1, path.name
    while name in names:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    return name
