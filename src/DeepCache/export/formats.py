"""Formats of graphs, each with the runtime that runs them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from DeepCache.extras import require

__all__ = ["FORMATS", "GraphFormat", "GraphOptions", "LoadedGraph", "graph_format"]

LoadedGraph = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
"""Runs a graph: inputs in order -> outputs in order. One thread at a time."""


class GraphFormat(ABC):
    """Writes programs in a format and loads them into its runtime.

    Attributes:
        name: the value of `--format`.
        suffix: the suffix of its files.
        packages: the distributions that it uses.
        extra: the extra of DeepCache that installs them; None if torch is enough.
        dtypes: the dtypes of denoisers that it supports.
        outside: the floating-point dtype of inputs and outputs; None for the denoiser's.
        tolerance: the largest relative difference from PyTorch that an export may have.
        half_tolerance: the same for denoisers in float16 or bfloat16.
        int8_tolerance: the same for 8-bit weights.
    """

    name: str
    suffix: str
    packages: tuple[str, ...] = ("torch",)
    extra: str | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    outside: torch.dtype | None = None
    tolerance: float = 1e-4
    half_tolerance: float = 0.15
    int8_tolerance: float = 2e-1

    @abstractmethod
    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        """Writes a program with these names of inputs and outputs. Further files start with the name of `path`."""

    @abstractmethod
    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        """Loads a graph, on the CPU by default, for computation in `dtype`.

        Raises:
            ValueError: the runtime does not have the provider.
        """


class TorchFormat(GraphFormat):
    """A `.pt2` file of `torch.export`, bound to the version of torch and to the device."""

    name, suffix = "torch", ".pt2"

    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        torch.export.save(program, path)

    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        if provider is not None:
            raise ValueError(f"format torch runs on the device of the export, got provider={provider!r}. Remove it")
        module: Any = torch.export.load(path).module()

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            with torch.no_grad():
                return list(module(*tensors))

        return run


class OnnxFormat(GraphFormat):
    """An `.onnx` file, and `.onnx.data` with the weights, since protocol buffers are limited to 2 GB."""

    name, suffix, extra = "onnx", ".onnx", "onnx"
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    # ONNX Runtime has no convolution in bfloat16.
    dtypes = (torch.float32, torch.float16)
    outside = torch.float32

    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        # The exporter logs and prints its progress.
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    program,
                    (),
                    str(path),
                    dynamo=True,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    external_data=True,
                    verbose=False,
                )
        finally:
            logging.disable(level)

    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        import onnxruntime

        provider = provider or "CPUExecutionProvider"
        found = onnxruntime.get_available_providers()
        if provider not in found:
            raise ValueError(
                f"provider must be one of {', '.join(found)} in this ONNX Runtime, got {provider!r}. Install a package "
                "with this provider, such as onnxruntime-gpu or onnxruntime-directml"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        names = [each.name for each in session.get_inputs()]

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
            return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

        return run


class OpenVinoFormat(GraphFormat):
    """An `.xml` file, and `.bin` with the weights."""

    name, suffix, extra = "openvino", ".xml", "openvino"
    packages = ("torch", "openvino")
    outside = torch.float32

    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        import openvino

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = openvino.convert_model(program)
        for ports, names in ((model.inputs, inputs), (model.outputs, outputs)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
                # Graph editors and benchmark_app show the friendly name.
                port.get_node().set_friendly_name(name) if port in model.inputs else None
        if int8:
            import nncf

            nncf.set_log_level(logging.ERROR)
            with contextlib.redirect_stdout(io.StringIO()):  # a progress bar
                model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(model, path, compress_to_fp16=False)

    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        import openvino

        core, provider = openvino.Core(), provider or "CPU"
        if provider.split(".")[0] not in {each.split(".")[0] for each in core.available_devices}:
            raise ValueError(
                f"provider must be one of {', '.join(core.available_devices)} with OpenVINO on this machine, got "
                f"{provider!r}. Remove it for the CPU"
            )
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default OpenVINO computes in bfloat16 on processors that support it.
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        }
        if provider == "CPU":
            options["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        request = core.compile_model(path, provider, options).create_infer_request()

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
            results = request.infer(arrays, share_inputs=True)
            # The next call overwrites the results.
            return [torch.from_numpy(result.copy()) for result in results.values()]

        return run


FORMATS: dict[str, GraphFormat] = {each.name: each for each in (TorchFormat(), OnnxFormat(), OpenVinoFormat())}


def graph_format(name: str) -> GraphFormat:
    """The format of this name.

    Example:
        >>> graph_format("onnx").suffix
        '.onnx'
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


@dataclass(frozen=True)
class GraphOptions:
    """Options of an export; see `export_graphs`."""

    format: str = "openvino"
    int8: bool = False
    dynamic: bool = False
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph_format(self.format)
        if self.int8 and self.format != "openvino":
            raise ValueError(f"int8 requires format openvino, got {self.format!r}. Remove int8")

    def require(self) -> GraphFormat:
        """The format, after a check that its packages are installed."""
        found = graph_format(self.format)
        if found.extra is not None:
            require(found.extra, f"format {self.format}")
        if self.int8 and find_spec("nncf") is None:
            raise ImportError("int8 requires NNCF, which is not installed: pip install nncf")
        return found

    def check(self, denoiser: nn.Module) -> None:
        """Checks that the format supports the dtype of the denoiser."""
        dtype = next(denoiser.parameters()).dtype
        if dtype not in graph_format(self.format).dtypes:
            raise ValueError(f"format {self.format} does not support {dtype}. Load the pipeline in float32")
