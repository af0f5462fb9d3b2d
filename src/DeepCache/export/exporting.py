"""Exports the denoiser of a pipeline as graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.first_call import first_call
from DeepCache.engine.guidance import conditional_half
from DeepCache.engine.layouts import branch_of, layout_of
from DeepCache.engine.unets import unets_of
from DeepCache.export.call import CallReader
from DeepCache.export.description import FILE, GraphSetDescription
from DeepCache.export.formats import GraphOptions
from DeepCache.export.graphs import DEEP_IN, DEEP_OUT, PREDICTION
from DeepCache.export.writing import (
    LOCK,
    Stage,
    WantedGraph,
    describe_graphs,
    example_feature,
    folder_of_graphs,
    locked,
    write_graphs,
)
from DeepCache.runtime import branch_for

__all__ = ["denoiser_of", "export_graphs"]


def export_graphs(
    pipe: Any,
    folder: str | os.PathLike[str],
    call: Mapping[str, Any] | None = None,
    config: DeepCacheConfig | None = None,
    *,
    format: str = "openvino",  # noqa: A002
    int8: bool = False,
    dynamic: bool = False,
    names: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_stage: Stage | None = None,
) -> GraphSetDescription:
    """Exports the U-Net of a pipeline as graphs of a full and a shallow step, with a description.

    With guidance reuse there is a third graph, of a shallow step for the conditional half of the batch. Each graph is
    compared with PyTorch on random inputs. Active adapters (LoRA) become part of the weights.

    An interrupted export resumes after the last finished graph.

    Args:
        pipe: the pipeline. It runs up to its first call of the U-Net and is left unchanged.
        folder (`str` or `Path`):
            Where to write; it is created.
        call (`dict`, *optional*):
            The arguments of the pipeline call, which set the sizes of the graphs: prompt, height, width, number of
            images, guidance scale, number of steps. By default only a prompt.
        config (`DeepCacheConfig`, *optional*):
            The settings: the skip branch, and the schedule and forecast in the description.
        format (`str`, defaults to `"openvino"`):
            `torch` (`.pt2` of `torch.export`), `onnx` or `openvino`.
        int8 (`bool`, defaults to `False`):
            Store the weights as 8-bit integers. Requires OpenVINO and NNCF.
        dynamic (`bool`, defaults to `False`):
            Accept any batch, height and width. The export takes longer, and the graphs may be slower.
        names (`dict`, *optional*):
            New names of inputs and outputs, such as `{"deep_in": "state_in", "deep_out": "state_out"}`.
        overwrite (`bool`, defaults to `False`):
            Replace graphs in the folder.
        on_stage: called with the name of each stage of the work.

    Returns:
        The description, as in `deepcache-graphs.json`.

    Raises:
        ValueError: the folder contains something else, the settings use several branches, a name is unknown, the
            weights are offloaded, the U-Net cannot be traced or written, or a graph differs from PyTorch.
        OSError: the disk is full.
        ImportError: a package of the format is missing.

    Example:
        >>> from DeepCache import DeepCacheConfig, apply_deepcache
        >>> from DeepCache.export import export_graphs, load_graphs
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> description = export_graphs(pipe, "graphs", format="torch", overwrite=True)
        >>> list(description.graphs)
        ['full', 'shallow']
        >>> pipe.unet = load_graphs("graphs")
        >>> engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3))
        >>> image = pipe("a red circle", num_inference_steps=6).images[0]
        >>> engine.stats.pattern
        'F..F..'
    """
    config = DeepCacheConfig() if config is None else config
    options, stage = GraphOptions(format, int8, dynamic, dict(names or {})), on_stage or (lambda text: None)
    options.require()
    denoiser, branch, target = denoiser_of(pipe), branch_for(config), Path(folder).resolve()
    branch_of(denoiser, branch)
    options.check(denoiser)
    _check_target(target, overwrite)
    stage("Running the pipeline up to its U-Net")
    arguments: dict[str, Any] = {"prompt": "a photo"} if call is None else dict(call)
    read = CallReader.of(denoiser)
    example = read(*first_call(denoiser, lambda: pipe(**arguments)))
    stage("Running a full step")
    feature = example_feature(denoiser, branch, example)
    wanted = [WantedGraph("full", example), WantedGraph("shallow", example, feature)]
    if config.any_guidance_reuse:
        half, sample = layout_of(denoiser).prompt_half, next(iter(example.tensors.values()))
        keywords = conditional_half((), example.keywords(example.tensors), sample, half)[1]
        wanted.append(WantedGraph("half", read((), keywords), feature.chunk(2)[half].contiguous()))
    _check_names(wanted, options.names)
    steps = config.steps(arguments.get("num_inference_steps", 50))
    description = describe_graphs(denoiser, branch, options, config, steps)
    with locked(target):
        # Another process may have written to it.
        try:
            _check_target(target, overwrite)
            return write_graphs(denoiser, target, description, wanted, options, stage)
        finally:
            (target / LOCK).unlink(missing_ok=True)


def denoiser_of(pipe: Any) -> nn.Module:
    """The denoiser of a pipeline that has one, without DeepCache."""
    denoisers = unets_of(pipe)
    if len(denoisers) > 1:
        raise TypeError(f"graphs require a pipeline with one denoiser, got {', '.join(denoisers)}")
    denoiser = next(iter(denoisers.values()))
    if "_deepcache_engine" in vars(denoiser):
        raise ValueError("DeepCache is applied to this pipeline. Call remove_deepcache(pipe) first")
    return denoiser


def _check_names(wanted: list[WantedGraph], others: dict[str, str]) -> None:
    arguments = {name for each in wanted for name in each.call.tensors}
    known = [*sorted(name.replace(".", "_") for name in arguments), DEEP_IN, DEEP_OUT, PREDICTION]
    for name in others:
        if name not in known:
            raise ValueError(f"names must be among {', '.join(known)}, got {name!r}")
    names = [others.get(name, name) for name in known]
    if len({*names}) < len(names):
        raise ValueError(f"names must differ, got {', '.join(names)}")


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file. Choose a folder for the graphs")
    folder_of_graphs(folder)
    if (folder / FILE).is_file() and not overwrite:
        raise ValueError(f"the folder {str(folder)!r} contains graphs already. Choose another folder, or overwrite it")
