"""Formats that graphs are written in, each with the runtime that runs them."""

from __future__ import annotations

from DeepCache.export.formats.graph_format import GraphFormat, LoadedGraph
from DeepCache.export.formats.onnx import OnnxFormat
from DeepCache.export.formats.openvino import OpenVinoFormat
from DeepCache.export.formats.torch_export import TorchFormat

__all__ = ["FORMATS", "GraphFormat", "LoadedGraph", "graph_format"]

FORMATS: dict[str, GraphFormat] = {each.name: each for each in (TorchFormat(), OnnxFormat(), OpenVinoFormat())}


def graph_format(name: str) -> GraphFormat:
    """The format of that name.

    Raises:
        ValueError: there is none.

    Example:
        >>> graph_format("onnx").suffix
        '.onnx'
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
