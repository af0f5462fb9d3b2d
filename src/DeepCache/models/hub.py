"""Asks the hub for a repository before anything is loaded from it."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["ask_hub"]

_HUB_SECONDS = 10.0


def ask_hub(name: str, file: str, kind: str) -> dict[str, Any]:
    """The options to load a repository of the hub with, after a look at whether it is there.

    Args:
        name: the repository, as `owner/name`.
        file: the file that it must have.
        kind: what it is without that file, for the message, such as "not a diffusers pipeline".

    Raises:
        ValueError: the name is not that of a repository, or the repository lacks the file.
        OSError: there is no such public repository, its terms have to be accepted first, or the hub cannot be reached
            and the repository is not in its cache.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    # One question and no retries: a person who is offline should not wait for an answer.
    try:
        files = HfApi().model_info(name, timeout=_HUB_SECONDS).siblings or []
    except HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder nor a hub id: {error}") from error
    except GatedRepoError as error:
        raise OSError(
            f"the hub gives {name!r} only to people who accepted its terms: accept them on its "
            f"page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"there is no folder {name!r}, and no public model of that name on the hub; for a "
            f"private one, log in with `hf auth login`"
        ) from error
    # Which error tells of a missing connection depends on the HTTP library below the hub's.
    except Exception as error:
        if isinstance(try_to_load_from_cache(name, file), str):
            return {"local_files_only": True}
        raise OSError(
            f"there is no folder {name!r}, and the hub cannot be asked for it "
            f"({_first_line(error)}); connect to the network, or give a folder"
        ) from error
    if all(each.rfilename != file for each in files):
        raise ValueError(f"the hub's {name!r} is {kind}: it has no {file}")
    return {}


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\[Errno -?\d+\] ", "", line)
