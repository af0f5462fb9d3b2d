"""Finds the pipelines of the installed diffusers that have a denoiser with skip connections, or a component named like
one."""

from __future__ import annotations

import ast
import inspect
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, ModularPipeline, ModularPipelineBlocks
from torch import nn

__all__ = ["FoundPipeline", "find_pipelines"]

# Components that hold a denoising network in one pipeline or another, besides those that are called a U-Net.
_NAMES_OF_DENOISERS = ("decoder", "prior")
# Transformers with skip connections from their first layers to their last; UniDiffuser's is called a U-Net.
_WITH_LONG_SKIPS = ("HunyuanDiT2DModel",)
# Of the many pipelines with other transformers these are tried.
_WITHOUT_LONG_SKIPS = ("AmusedPipeline", "FluxPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline")


@dataclass(frozen=True)
class FoundPipeline:
    """A pipeline class of diffusers.

    Args:
        name: its name in diffusers.
        denoisers: names of the components that are, or are called like, a denoiser with skip connections.
        needs: the packages without which diffusers gives a placeholder in its place; empty where they are installed.
    """

    name: str
    denoisers: tuple[str, ...]
    needs: tuple[str, ...] = ()


def find_pipelines() -> dict[str, FoundPipeline]:
    """The pipelines by name."""
    found = {}
    for name in dir(diffusers):
        if "Pipeline" not in name or name.endswith(("Output", "Blocks")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some that are listed with onnx installed are not there.
            member = getattr(diffusers, name, None)
        if not inspect.isclass(member):
            continue
        if hasattr(member, "_backends"):
            if any(_is_denoiser(component, None) for component in _components_in_the_source(name)):
                found[name] = FoundPipeline(name, (), tuple(member._backends))
            continue
        if issubclass(member, DiffusionPipeline):
            types = member._get_signature_types()
            denoisers = ("transformer",) if name in _WITHOUT_LONG_SKIPS else _denoisers(types)
        elif issubclass(member, ModularPipeline) and member is not ModularPipeline:
            denoisers = _denoisers(_modular_types(member))
        else:
            continue
        if denoisers:
            found[name] = FoundPipeline(name, denoisers)
    return found


def _components_in_the_source(pipeline: str) -> list[str]:
    """Names of the components of a pipeline that cannot be imported, from its constructor or the one it inherits."""
    source = _pipelines_in_the_source().get(pipeline)
    if source is None:
        return []
    for member in source.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return [argument.arg for argument in (*member.args.args, *member.args.kwonlyargs)]
    bases = [base.id for base in source.bases if isinstance(base, ast.Name)]
    return [component for base in bases for component in _components_in_the_source(base)]


@cache
def _pipelines_in_the_source() -> dict[str, ast.ClassDef]:
    files = Path(inspect.getfile(diffusers)).parent.glob("pipelines/**/*.py")
    return {
        statement.name: statement
        for file in files
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ClassDef)
    }


def _modular_types(pipeline: type[ModularPipeline]) -> dict[str, tuple[Any, ...]]:
    blocks: type[ModularPipelineBlocks] = getattr(diffusers, pipeline.default_blocks_name)
    return {component.name: (component.type_hint,) for component in blocks().expected_components}


def _denoisers(types: dict[str, tuple[Any, ...]]) -> tuple[str, ...]:
    return tuple(name for name, alternatives in types.items() if any(_is_denoiser(name, item) for item in alternatives))


def _is_denoiser(name: str, component: Any) -> bool:
    if "unet" in name.lower():
        return True
    if not (inspect.isclass(component) and issubclass(component, nn.Module)):
        return False
    if "unet" in component.__name__.lower() or component.__name__ in _WITH_LONG_SKIPS:
        return True
    return name in _NAMES_OF_DENOISERS and _takes_a_timestep(component)


def _takes_a_timestep(component: type[nn.Module]) -> bool:
    parameters = list(inspect.signature(component.forward).parameters)
    return len(parameters) > 2 and parameters[2] in ("timestep", "timestep_ratio", "r", "t")
