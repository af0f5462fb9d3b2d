"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from DeepCache.export.formats.graph_format import GraphFormat, LoadedGraph

__all__ = ["OnnxFormat"]


class OnnxFormat(GraphFormat):
    """An `.onnx` file with its weights in `.onnx.data` beside it, as protocol buffers end at 2 GB."""

    name, suffix, extra = "onnx", ".onnx", "onnx"
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    # ONNX Runtime has no convolution in bfloat16.
    dtypes = (torch.float32, torch.float16)
    outside = torch.float32

    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        # It logs and prints how it goes about it.
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
                f"this ONNX Runtime has no provider {provider!r}, only {', '.join(found)}. Install the package that "
                "brings it, such as onnxruntime-gpu or onnxruntime-directml"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        names = [each.name for each in session.get_inputs()]

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
            return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

        return run
