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
    """A result file: its path, the name in the report (its file name, numbered where several have the same), the result
    as `read_result` returns it, and the text of the file."""

    path: Path
    name: str
    result: dict[str, Any]
    content: str

    @property
    def is_benchmark(self) -> bool:
        """Whether the result has speeds; otherwise it has fidelity against cost."""
        return bool(self.result["format"] == BENCHMARK_FORMAT)

    @property
    def model(self) -> str:
        """The model without its folders; a hub id stays as it is."""
        model = str(self.result["settings"]["model"])
        is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
        return model if is_hub_id else PurePath(model).name or model

    @property
    def device(self) -> str:
        """The name of the device."""
        return str(self.result["device"]["name"]) or "an unknown device"


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Reads and checks result files.

    Raises:
        ValueError: there are none, one is given twice, or one is not a result.
        OSError: one cannot be read.
        ImportError: jsonschema is not installed.
    """
    if not paths:
        raise ValueError("there is nothing to report: give one or more result files")
    found: dict[Path, Source] = {}
    names: set[str] = set()
    for path in paths:
        if path.resolve() in found:
            raise ValueError(f"the result {str(path)!r} is given twice")
        if not path.exists():
            raise FileNotFoundError(f"there is no result file {str(path)!r}")
        number, name = 1, path.name
        while name in names:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        names.add(name)
        found[path.resolve()] = Source(path, name, *load_result(path))
    return list(found.values())
