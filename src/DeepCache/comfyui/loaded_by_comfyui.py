"""The module that ComfyUI loads from `custom_nodes/deepcache`; the DeepCache package is next to it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from DeepCache.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
