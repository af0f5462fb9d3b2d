"""`deepcache-graphs.json`: describes exported graphs, so that other programs can run them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from DeepCache.export.call import Constant
from DeepCache.files import read_json_text

__all__ = ["FILE", "SCHEMA", "GraphDescription", "GraphSetDescription", "TensorDescription"]

FILE = "deepcache-graphs.json"
SCHEMA = Path(__file__).parent / "deepcache-graphs-1.schema.json"
"""The JSON Schema of the file."""

_VERSION = 1


@dataclass(frozen=True)
class TensorDescription:
    """An input or output of a graph.

    Args:
        name: its name in the graph.
        argument: the argument of the denoiser, such as `added_cond_kwargs.text_embeds`, or `prediction`, `deep_in` or
            `deep_out`.
        shape: its shape; None for dynamic sizes, which must relate to the others as in the example.
        example: the shape in the traced example.
        dtype: its dtype, such as `float32`.
    """

    name: str
    argument: str
    shape: tuple[int | None, ...]
    example: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class GraphDescription:
    """A graph.

    Args:
        key: a hash of everything that its files depend on.
        step: `full` or `shallow`.
        file: the file that its runtime loads.
        files: the SHA-256 of its files, by name.
        inputs: its inputs in order.
        outputs: its outputs in order.
        unread: arguments of the denoiser that its layers do not read.
        constants: arguments that are part of the graph.
        bytes: the size of its files.
        largest_difference: the largest difference from PyTorch on random inputs, relative to the largest value.
    """

    key: str
    step: str
    file: str
    files: dict[str, str]
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    unread: tuple[str, ...]
    constants: dict[str, Constant]
    bytes: int
    largest_difference: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GraphDescription:
        tensors = {side: tuple(map(_tensor, values[side])) for side in ("inputs", "outputs")}
        return cls(**values | tensors | {"unread": tuple(values["unread"])})


@dataclass(frozen=True)
class GraphSetDescription:
    """The graphs of a denoiser.

    Args:
        format: the format of the graphs.
        branch: the skip branch of shallow steps.
        denoiser: the class of the denoiser, with its module.
        config: the configuration of the denoiser.
        dtype: the dtype of the denoiser.
        prompt_half: the index of the conditional half of a guided batch, 0 or 1.
        fingerprint: identifies the model, see `DeepCache.engine.fingerprint`.
        settings: the settings of DeepCache.
        steps: the kind of each step of a run: `full`, `shallow` or `skipped`.
        forecast_order: the number of deep features that the forecast needs besides the latest one.
        versions: the versions of the packages that wrote the graphs.
        multiple: with dynamic sizes, the number that must divide height and width of the sample.
        graphs: the graphs by name.
    """

    format: str
    branch: int
    denoiser: str
    config: dict[str, Any]
    dtype: str
    prompt_half: int
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    steps: tuple[str, ...]
    forecast_order: int
    versions: dict[str, str]
    multiple: int = 1
    graphs: dict[str, GraphDescription] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        text = json.dumps({"deepcache_graphs": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> GraphSetDescription:
        """Reads the description in a folder.

        Raises:
            FileNotFoundError: the description or a file of a graph is missing.
            ValueError: the description cannot be read, or has another version.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} is not a folder of exported graphs: {FILE} is missing")
        try:
            values = json.loads(read_json_text(path, "description of graphs"))
            version = values.pop("deepcache_graphs")
            if version != _VERSION:
                raise ValueError(f"its version is {version}, and this DeepCache reads {_VERSION}")
            getattr(torch, values["dtype"])
            graphs = {name: GraphDescription.from_dict(each) for name, each in values["graphs"].items()}
            found = cls(**values | {"graphs": graphs, "steps": tuple(values["steps"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} does not describe graphs of DeepCache: {error}. Export again") from error
        for graph in found.graphs.values():
            for name in graph.files:
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"the file {name!r} in {str(folder)!r} is missing. Export again")
        return found


def _tensor(values: dict[str, Any]) -> TensorDescription:
    return TensorDescription(**values | {name: tuple(values[name]) for name in ("shape", "example")})
