"""OpenVINO's intermediate representation, run by OpenVINO."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from DeepCache.export.formats.graph_format import GraphFormat, LoadedGraph

__all__ = ["OpenVinoFormat"]


class OpenVinoFormat(GraphFormat):
    """An `.xml` file with its weights in `.bin` beside it."""

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
                # Graph editors and benchmark_app show this one.
                port.get_node().set_friendly_name(name) if port in model.inputs else None
        if int8:
            model = _with_int8_weights(model)
        openvino.save_model(model, path, compress_to_fp16=False)

    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        import openvino

        core, provider = openvino.Core(), provider or "CPU"
        if provider.split(".")[0] not in {each.split(".")[0] for each in core.available_devices}:
            raise ValueError(
                f"OpenVINO finds no device {provider!r} here, only {', '.join(core.available_devices)}. Leave provider "
                "out for the CPU"
            )
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default it computes in bfloat16 where the processor can, whatever the model is in.
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        }
        if provider == "CPU":
            options["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        request = core.compile_model(path, provider, options).create_infer_request()

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
            results = request.infer(arrays, share_inputs=True)
            # Copies: the next call writes over its outputs.
            return [torch.from_numpy(result.copy()) for result in results.values()]

        return run


def _with_int8_weights(model: Any) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    # It prints a bar.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
