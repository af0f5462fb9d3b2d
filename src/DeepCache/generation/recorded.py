"""Settings recorded in an image, as options of `deepcache generate`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from DeepCache.generation.a1111 import parse_parameters
from DeepCache.generation.metadata import read_notes, read_settings
from DeepCache.models.device import execution_device
from DeepCache.models.identity import weights_note

__all__ = ["RecordedImage", "made_with", "read_recorded"]

# Settings by their keys in the metadata, and the names of their options.
_SETTINGS = {name: name for name in ("model", "vae", "config", "steps", "guidance", "dtype", "runtime")}
_SETTINGS |= {name: name.replace("_", "-") for name in ("image", "strength", "mask", "control_image", "controlnet")}
_SETTINGS |= {"embeddings": "embedding", "vae_tiling": "vae-tiling"}
_CACHE = {"cache_interval": "interval", "cache_branch_id": "branch", "skip_mode": "skip-mode", "between": "between"}
_CACHE |= {"forecast": "forecast", "guidance_reuse": "guidance-reuse", "compile": "compile"}
_ADAPTERS = {"loras": "lora", "embeddings": "embedding"}
_MADE_WITH = ("device", "pipeline", "weights")


@dataclass(frozen=True)
class RecordedImage:
    """The settings recorded in an image.

    Args:
        path: the image.
        options: options of `deepcache generate` by name, and the `prompt`.
        missing: options that the metadata does not have and the caller must give.
        unread: settings of another program that the options cannot express.
        made_with: what the image depends on apart from its options: versions of packages by name, `device`, `pipeline`,
            and `weights`, a hash of some of the model's weights.
    """

    path: Path
    options: dict[str, Any]
    missing: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    made_with: dict[str, str] = field(default_factory=dict)

    def differences(self, here: Mapping[str, str]) -> list[str]:
        """The differences to what the image was generated with.

        Args:
            here: the same values for a pipeline on this machine, see `made_with`.

        Example:
            >>> image = RecordedImage(Path("image.png"), {}, made_with={"torch": "2.12.0", "device": "cuda:0"})
            >>> image.differences({"torch": "2.13.0", "device": "cuda:0"})
            ['torch 2.13.0 (then 2.12.0)']
        """
        return [
            f"{name} {here[name]} (then {then})"
            for name, then in self.made_with.items()
            if here.get(name, then) != then
        ]


def read_recorded(path: str | os.PathLike[str]) -> RecordedImage:
    """Reads the settings in an image by DeepCache, AUTOMATIC1111's web UI, or a program that writes its `parameters`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an image, has no such settings, or was generated with a custom schedule, which no option
            can express.
    """
    notes = read_notes(path)
    name = os.fspath(path)
    if "settings" in notes:
        return _by_deepcache(Path(path), read_settings(path))
    if "parameters" in notes:
        try:
            options, unread = parse_parameters(notes["parameters"])
        except ValueError as error:
            raise ValueError(f"cannot read the settings in {name!r}: {error}") from error
        return RecordedImage(Path(path), options, ("model",), tuple(unread))
    if "workflow" in notes:
        raise ValueError(f"the metadata of {name!r} is a workflow of ComfyUI. Open it in ComfyUI")
    raise ValueError(
        f"the metadata of {name!r} has neither settings of DeepCache nor parameters of AUTOMATIC1111's web UI"
    )


def made_with(pipe: Any) -> dict[str, str]:
    """What an image of this pipeline depends on apart from its options, see `RecordedImage.made_with`."""
    versions = {name: version(name) for name in ("DeepCache", "diffusers", "torch")}
    here = versions | {"device": str(execution_device(pipe)), "pipeline": type(pipe).__name__}
    return here | weights_note(pipe)


def _by_deepcache(path: Path, found: dict[str, Any]) -> RecordedImage:
    settings = dict(found["settings"])
    missing: list[str] = []
    cache: dict[str, Any] = {"interval": 1}
    if isinstance(settings["deepcache"], dict):
        # An image of a batch, which has hashes instead of paths, so that it does not depend on the machine.
        missing = ["model", *(option for name, option in _ADAPTERS.items() if settings.get(name))]
        for name in ("model", *_ADAPTERS):
            settings.pop(name, None)
        settings["versions"] = found["versions"]
        # The hash is that of the model without textual inversions, which add words to its text encoder.
        if "embedding" not in missing:
            settings["weights"] = found["weights"]
        cache = _cache_options(path, settings["deepcache"])
    elif settings["deepcache"]:
        cache = _cache_options(path, settings)
    else:
        cache["compile"] = settings["compile"]
    scheduler = settings.get("scheduler")
    options = {name: settings[key] for key, name in _SETTINGS.items() if key in settings} | {
        "prompt": found["prompt"],
        "negative-prompt": found["negative_prompt"],
        "seed": found["seed"],
        "size": f"{settings['width']}x{settings['height']}" if "width" in settings else settings["size"],
        "lora": [f"{lora}:{scale:g}" for lora, scale in settings.get("loras", ())],
        "scheduler": scheduler["class"] if isinstance(scheduler, dict) else scheduler,
    }
    options = {name: value for name, value in (options | cache).items() if value not in (None, [])}
    made = settings["versions"] | {name: settings[name] for name in _MADE_WITH if name in settings}
    return RecordedImage(path, options, missing=tuple(missing), made_with=made)


def _cache_options(path: Path, cache: Mapping[str, Any]) -> dict[str, Any]:
    if cache.get("plan") is not None:
        return {"plan": str(path), "force-plan": cache.get("force_plan", False), "compile": cache["compile"]}
    if cache.get("schedule") is not None:
        raise ValueError(f"{str(path)!r} was generated with a custom schedule, which the command line cannot express")
    options = {name: cache[key] for key, name in _CACHE.items() if key in cache}
    return options | ({"threshold": cache["threshold"]} if cache.get("skip_mode") == "adaptive" else {})
