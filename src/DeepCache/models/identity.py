"""Hashes that identify the weights of a pipeline."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["remember_weights", "weights_hash", "weights_note"]

_REMEMBERED = "_deepcache_weights_hash"


def weights_hash(pipe: Any) -> str:
    """A hash of the structure and of some weights of each network of a pipeline, without its LoRAs."""
    from torch import nn

    from DeepCache.engine.fingerprint import fingerprint

    networks = {name: fingerprint(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return hashlib.sha256(json.dumps(networks, sort_keys=True).encode()).hexdigest()[:16]


def remember_weights(pipe: Any) -> None:
    """Stores the hash on a pipeline whose weights are about to be offloaded, for `weights_note`."""
    setattr(pipe, _REMEMBERED, weights_hash(pipe))


def weights_note(pipe: Any) -> dict[str, str]:
    """The hash as `weights`; empty if the weights are offloaded and the hash was not stored."""
    from torch import nn

    remembered = getattr(pipe, _REMEMBERED, None)
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if any(weight.device.type == "meta" for network in networks for weight in network.parameters()):
        return {} if remembered is None else {"weights": remembered}
    return {"weights": weights_hash(pipe)}
