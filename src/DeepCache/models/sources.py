"""Folders and hub repositories that models are loaded from: whether they exist, and why one cannot be loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = ["INDEX", "ask_hub", "damage", "is_repository", "read_config", "read_index", "suggestion", "why_not_loaded"]

INDEX = "model_index.json"
_HUB_SECONDS = 10.0
# Denoisers with skip connections in pipelines without a `unet`.
_DENOISERS = ("HunyuanDiT2DModel", "StableCascadeUNet", "WuerstchenDiffNeXt")
_ABSENT = re.compile(r"no file named (?P<name>\S+)(?: or \S+)* found in directory (?P<folder>.+?)\.?$", re.MULTILINE)
_AGAIN = "Download or save the model again."
_MOST_NAMES = 4


def is_repository(name: str) -> bool:
    """Whether a name has the form `owner/name` of a repository of the hub."""
    return not name.startswith((".", "~", "/")) and name.count("/") == 1 and "\\" not in name


def suggestion(name: str, names: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing if no name is similar."""
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def ask_hub(name: str, file: str, kind: str) -> dict[str, Any]:
    """Checks that a repository exists on the hub and has a file, and returns the options to load it with. `kind` is
    what it is without that file, for the message, such as "not a diffusers pipeline"."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    # A single request without retries, so that an offline user does not wait.
    try:
        files = HfApi().model_info(name, timeout=_HUB_SECONDS).siblings or []
    except HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder nor a hub id: {error}") from error
    except GatedRepoError as error:
        raise OSError(
            f"the hub requires you to accept the terms of {name!r}: accept them on its page, then log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"there is no folder {name!r}, and no public model of that name on the hub; for a private one, log in with "
            "`hf auth login`"
        ) from error
    # The error of a missing connection depends on the HTTP library.
    except Exception as error:
        if isinstance(try_to_load_from_cache(name, file), str):
            return {"local_files_only": True}
        reason = re.sub(r"\[Errno -?\d+\] ", "", (str(error).strip().splitlines() or [type(error).__name__])[0])
        raise OSError(
            f"there is no folder {name!r}, and the hub cannot be asked for it ({reason}); connect to the network, or "
            "give a folder"
        ) from error
    if all(each.rfilename != file for each in files):
        raise ValueError(f"the hub's {name!r} is {kind}: it has no {file}")
    return {}


def read_config(shown: str, source: str, options: dict[str, Any], file: str, folder: str = "") -> dict[str, Any]:
    """Reads a configuration of diffusers in a folder or repository; `shown` names its owner in messages."""
    path = Path(source) / folder / file
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(source, file, subfolder=folder or None, **options))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {file} of {shown} is not JSON: {error}") from None
    except OSError as error:
        raise OSError(f"cannot read the {file} of {shown}: {error.strerror or error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), (str, list)):
        raise ValueError(f"the {file} of {shown} does not name a class of diffusers")
    return config


def read_index(shown: str, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Reads the component index of a pipeline, which must have a U-Net."""
    import diffusers

    if Path(source).is_dir() and not (Path(source) / INDEX).is_file():
        raise FileNotFoundError(f"the folder {shown!r} is not a diffusers pipeline: it has no {INDEX}")
    components = read_config(repr(shown), source, options, INDEX)
    kind = components["_class_name"]
    # A list names a class that comes with the model.
    if isinstance(kind, str) and not hasattr(diffusers, kind):
        raise ValueError(f"the model {shown!r} is a {kind}, which diffusers {diffusers.__version__} does not have")
    unet = components.get("unet")
    classes = [component[-1] for component in components.values() if isinstance(component, list)]
    if (not isinstance(unet, list) or unet[0] is None) and not any(name in _DENOISERS for name in classes):
        instead = ", which has a transformer instead" if "transformer" in components else ""
        raise TypeError(f"DeepCache needs a pipeline with a U-Net, and {shown!r} is a {kind}{instead}")
    return components


def why_not_loaded(root: Path | None, error: Exception) -> str:
    """Explains an error of a library that loads a model, by missing and damaged files in its folder, if known."""
    absent = _ABSENT.search(str(error))
    if absent is not None:
        return _absent(Path(absent["folder"]), absent["name"])
    for path in sorted(root.rglob("*")) if root is not None else ():
        reason = damage(path)
        if reason:
            return f"{str(path)!r} is damaged ({reason}). {_AGAIN}"
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None and not str(cause).strip():
        cause = inner
    return " ".join(str(cause).split()) or type(cause).__name__


def _absent(folder: Path, name: str) -> str:
    if name.endswith(".json"):
        return f"the folder {str(folder)!r} has no {name}. {_AGAIN}"
    stem = name.partition(".")[0]
    there = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    found = f", only {', '.join(there[:_MOST_NAMES])}" if there else ""
    fix = "Rename them, or save the model without a variant." if there else _AGAIN
    return f"the folder {str(folder)!r} has no weights ({stem}.safetensors or {stem}.bin){found}. {fix}"


def damage(path: Path) -> str:
    """Why a file of weights or JSON cannot be read; empty if it can, and for other files."""
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return " ".join(str(error).split())
    if path.suffix == ".json" and path.is_file():
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"it is not JSON: {error}"
    return ""
