"""What tells a pipeline's weights from others."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["weights_hash"]


def weights_hash(pipe: Any) -> str:
    """A hash of the structure and of some weights of each network of a pipeline. LoRAs beside the weights do not count.

    It is empty where weights are out of reach: offloaded in sequence or to disk, quantised.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> len(weights_hash(load_pipeline("shapes", device="cpu")))
        16
    """
    from torch import nn

    from DeepCache.engine.fingerprint import fingerprint

    networks = {name: fingerprint(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    if any(not found["weights"] for found in networks.values()):
        return ""
    return hashlib.sha256(json.dumps(networks, sort_keys=True).encode()).hexdigest()[:16]
