"""A loader of the model that comes with DeepCache, for ComfyUI as `benchmarks.comfyui_engine.server` starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import benchmarks

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

PACKAGE = Path(benchmarks.__file__).parents[1] / "src" / "DeepCache"


class BundledModelNode:
    """Loads the model."""

    CATEGORY = "model/loaders"
    RETURN_TYPES: ClassVar = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any, ...]:
        import DeepCache

        # `deepcache comfyui` installs only what the nodes import. The model needs other parts of the package.
        if str(PACKAGE) not in DeepCache.__path__:
            DeepCache.__path__.append(str(PACKAGE))
        from benchmarks.comfyui_engine.bundled_model import load

        return load()


NODE_CLASS_MAPPINGS = {"DeepCacheBundledModel": BundledModelNode}
NODE_DISPLAY_NAME_MAPPINGS = {"DeepCacheBundledModel": "Load the bundled model"}
