"""How graphs are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from torch import nn

from DeepCache.export.formats import GraphFormat, graph_format
from DeepCache.extras import require

__all__ = ["GraphOptions"]


@dataclass(frozen=True)
class GraphOptions:
    """How graphs are written.

    Args:
        format: `torch`, `onnx` or `openvino`.
        int8: whether weights are kept as whole numbers of eight bits (OpenVINO).
        dynamic: whether batch, height and width may be others than those of the example.
        names: other names for inputs and outputs, by their own.

    Raises:
        ValueError: there is no such format, or it cannot do that.
    """

    format: str = "openvino"
    int8: bool = False
    dynamic: bool = False
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph_format(self.format)
        if self.int8 and self.format != "openvino":
            raise ValueError(f"weights of eight bits are for format openvino, got {self.format!r}. Leave int8 out")

    def require(self) -> GraphFormat:
        """The format, whose packages are there.

        Raises:
            ImportError: one is missing.
        """
        found = graph_format(self.format)
        if found.extra is not None:
            require(found.extra, f"format {self.format}")
        if self.int8 and find_spec("nncf") is None:
            raise ImportError("weights of eight bits take NNCF, which is not installed: pip install nncf")
        return found

    def check(self, denoiser: nn.Module) -> None:
        """Refuses a denoiser that the format is not for.

        Raises:
            ValueError: its runtime does not compute in the type of its weights.
        """
        dtype = next(denoiser.parameters()).dtype
        if dtype not in graph_format(self.format).dtypes:
            raise ValueError(f"format {self.format} is not for weights in {dtype}. Load the pipeline in float32")
