"""Writes docs/reference-names.md from what the tests check of it: `python -m tests.parity.names`."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.parity.reference import FOLDER

__all__ = ["ANSWERS", "FILE", "HELPER", "REFUSED_MODULES", "names_of_flops", "names_of_helper", "page"]

FILE = Path(__file__).parents[2] / "docs" / "reference-names.md"
HELPER = "DeepCacheSDHelper"
REFUSED_MODULES = {
    "DeepCache.sd": "diffusers' `StableDiffusionPipeline`",
    "DeepCache.sdxl": "diffusers' `StableDiffusionXLPipeline`",
    "DeepCache.svd": "diffusers' `StableVideoDiffusionPipeline`",
}

ANSWERS = {
    "pipe": "the same; after `helper.pipe = other`, the next `enable` is for the other pipeline",
    "enable": "the same, any number of times; a pipeline may be given",
    "disable": "the same, any number of times",
    "set_params": "the same, and more settings by name; a value that cannot be is an error",
    "params": "the same keys; block and layer are read from the U-Net",
    "function_dict": "the same keys, to be read; nothing is replaced, so assigning to its entries changes nothing",
    "cached_output": "an `AttributeError`: a deep feature is kept for each call, and no outputs of layers. "
    "Assigning `{}` forgets what is kept",
    "cur_timestep": "the same, to be read; assigning 0 forgets what is kept",
    "start_timestep": "the same, to be read; assigning `None` forgets what is kept",
    "is_skip_step": "the same; a subclass may define it, and its rule is followed or refused",
    "is_enter_position": "the same, to be called; to define it is a `TypeError`",
    "wrap_modules": "puts DeepCache on; a subclass may extend it",
    "unwrap_modules": "takes DeepCache off; a subclass may extend it",
    "reset_states": "forgets what is kept; a subclass may extend it",
    "wrap_unet_forward": "a `NotImplementedError`, and to define it a `TypeError`: no `forward` is replaced",
    "wrap_block_forward": "a `NotImplementedError`, and to define it a `TypeError`: no `forward` is replaced",
}
"""What each name of the helper does here."""


def names_of_helper() -> set[str]:
    """The methods of the reference package's helper and the attributes that they set."""
    (helper,) = (node for node in _tree("extension/deepcache.py").body if isinstance(node, ast.ClassDef))
    methods = {node.name for node in helper.body if isinstance(node, ast.FunctionDef)}
    attributes = {
        node.attr
        for node in ast.walk(helper)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return {name for name in methods | attributes if not name.startswith("_")}


def names_of_flops() -> set[str]:
    """The functions and constants of the reference package's `flops`."""
    names = set()
    for node in _tree("flops.py").body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def _tree(file: str) -> ast.Module:
    return ast.parse((FOLDER / "DeepCache" / file).read_text(encoding="utf-8"))


def page() -> str:
    """The text of docs/reference-names.md."""
    lines = [
        "# The names of the reference package",
        "",
        "*Made by `python -m tests.parity.names` from what the tests check.* Every public name of `DeepCache` 0.1.1, "
        "and what it is here. [Coming from another library](migrating.md) says what changes for a program.",
        "",
        "| there | here |",
        "|---|---|",
        f"| `DeepCache.{HELPER}`, `DeepCache.extension.deepcache.{HELPER}` | the helper |",
    ]
    lines += [f"| `{HELPER}.{name}` | {ANSWERS[name]} |" for name in sorted(names_of_helper(), key=list(ANSWERS).index)]
    lines.append("| `DeepCache.flops.count_ops_and_params` | the same figures, counted without computing |")
    others = ", ".join(f"`{name}`" for name in sorted(names_of_flops() - {"count_ops_and_params"}))
    lines.append(f"| what it is made of in `DeepCache.flops`: {others} | not there |")
    lines += [f"| `{module}` | an `ImportError`: take {instead} |" for module, instead in REFUSED_MODULES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
