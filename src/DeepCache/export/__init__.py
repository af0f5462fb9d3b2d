"""Exports a denoiser as graphs of full and shallow steps, and runs them in other runtimes."""

from DeepCache.export.denoiser import GraphDenoiser, load_graphs
from DeepCache.export.description import GraphDescription, GraphSetDescription, TensorDescription
from DeepCache.export.exporting import export_graphs
from DeepCache.export.runtime import cache_folder, use_runtime

__all__ = [
    "GraphDenoiser",
    "GraphDescription",
    "GraphSetDescription",
    "TensorDescription",
    "cache_folder",
    "export_graphs",
    "load_graphs",
    "use_runtime",
]
