"""`deepcache comfyui`: the nodes for ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["comfyui_command"]


def comfyui_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder of ComfyUI, which has custom_nodes in it.")],
) -> None:
    """Put the DeepCache nodes into ComfyUI, or renew them.

    Example: deepcache comfyui ComfyUI
    """
    from DeepCache.comfyui.installing import install_nodes

    print(f"The nodes are in {install_nodes(path.expanduser())}: restart ComfyUI, and add the node DeepCache")
