"""The JSON file beside the graphs: what another program needs to run them."""

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
"""The JSON Schema of that file."""

_VERSION = 1


@dataclass(frozen=True)
class TensorDescription:
    """An input or an output of a graph.

    Args:
        name: its name in the graph.
        argument: the argument of the denoiser that it is, such as `added_cond_kwargs.text_embeds`; for outputs and the
            deep feature `prediction`, `deep_in` or `deep_out`.
        shape: its sides; None where any fits that goes with the others as in the example.
        example: the sides in the example that was traced.
        dtype: its type, such as `float32`.
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
        key: a hash of all that its files depend on.
        step: `full` or `shallow`.
        file: the file that its runtime loads.
        files: a hash (SHA-256) of each of its files, by name.
        inputs: its inputs in order.
        outputs: its outputs in order.
        unread: arguments of the denoiser that none of its layers reads.
        constants: arguments that are built in.
        bytes: the size of its files.
        largest_difference: from PyTorch on random inputs, as a share of the largest value.
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
        format: what they are written in.
        branch: the skip branch at which the shallow steps are cut.
        denoiser: its class, with its module.
        config: its configuration.
        dtype: what it computes in.
        prompt_half: which half of a guided batch has the prompt, 0 or 1.
        fingerprint: what tells its model from others, see `DeepCache.engine.fingerprint`.
        settings: the settings of DeepCache that they were exported for.
        steps: what each step of a run does: `full`, `shallow` or `skipped`.
        forecast_order: how many further deep features the forecast keeps beside the latest one.
        versions: of what made them.
        multiple: where sizes are open, what height and width of the sample must be a multiple of.
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
        """Writes the file into a folder."""
        text = json.dumps({"deepcache_graphs": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> GraphSetDescription:
        """Reads the file in a folder.

        Raises:
            FileNotFoundError: the folder has no such file, or lacks one that it names.
            ValueError: it is not such a file, or of another version of it.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} is not a folder of exported graphs: it has no {FILE}")
        try:
            values = json.loads(read_json_text(path, "description of graphs"))
            version = values.pop("deepcache_graphs")
            if version != _VERSION:
                raise ValueError(f"it is of version {version}, and this DeepCache reads {_VERSION}")
            getattr(torch, values["dtype"])
            graphs = {name: GraphDescription.from_dict(each) for name, each in values["graphs"].items()}
            found = cls(**values | {"graphs": graphs, "steps": tuple(values["steps"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} does not describe graphs of DeepCache: {error}. Export again") from error
        for graph in found.graphs.values():
            for name in graph.files:
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"the folder {str(folder)!r} lacks its file {name!r}. Export again")
        return found


def _tensor(values: dict[str, Any]) -> TensorDescription:
    return TensorDescription(**values | {name: tuple(values[name]) for name in ("shape", "example")})
