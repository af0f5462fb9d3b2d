"""Settings of DeepCache by a short name: `I=5 B=1 linear guidance-reuse`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from DeepCache.config import DeepCacheConfig
from DeepCache.schedule import FORECASTS

__all__ = ["PUBLISHED_VARIANTS", "Variant", "parse_variant", "variant_name"]

_FORM = (
    "I=INTERVAL, and as wanted B=BRANCH, linear or quadratic, guidance-reuse, non-uniform; or plan=FILE, and force "
    "where it was tuned for something else"
)


@dataclass(frozen=True)
class Variant:
    """One way to run DeepCache.

    Args:
        name: what it is called in tables, and what `parse_variant` takes.
        config: its settings.
    """

    name: str
    config: DeepCacheConfig

    @property
    def in_reference(self) -> bool:
        """Whether the reference package can do the same: uniform re-use at one branch."""
        return self.config == DeepCacheConfig(self.config.cache_interval, self.config.cache_branch_id, forecast="none")


def variant_name(config: DeepCacheConfig) -> str:
    """The short name of settings without a schedule or plan of their own.

    Example:
        >>> variant_name(DeepCacheConfig(cache_interval=5, forecast="linear", guidance_reuse=True))
        'I=5 B=0 linear guidance-reuse'
    """
    words = [f"I={config.cache_interval}", f"B={config.cache_branch_id}"]
    if config.forecast != "none":
        words.append(config.forecast)
    if config.guidance_reuse:
        words.append("guidance-reuse")
    if config.skip_mode != "uniform":
        words.append(config.skip_mode)
    return " ".join(words)


def parse_variant(text: str) -> Variant:
    """The settings that a short name stands for.

    The words may come in any order, with blanks or commas between them. What is not said is as in the paper: branch 0,
    uniform, the deep feature re-used as it is.

    Args:
        text: such as `I=3 B=1 linear`, or `plan=FILE` with a file of `deepcache tune` or `DeepCacheConfig.to_file`.

    Raises:
        ValueError: a word is unknown, or a value is out of its range.
        OSError: the file of a plan cannot be read.

    Example:
        >>> parse_variant("I=5, B=1").config.cache_branch_id
        1
    """
    words = text.replace(",", " ").split()
    values: dict[str, object] = {"forecast": "none"}
    file: Path | None = None
    for word in words:
        key, _, value = word.partition("=")
        if key.lower() in ("i", "b") and value.isascii() and value.isdigit():
            values["cache_interval" if key.lower() == "i" else "cache_branch_id"] = int(value)
        elif key == "plan" and value:
            file = Path(value)
        elif word in FORECASTS:
            values["forecast"] = word
        elif word == "guidance-reuse":
            values["guidance_reuse"] = True
        elif word == "non-uniform":
            values["skip_mode"] = word
        elif word == "force":
            values["force_plan"] = True
        elif word != "uniform":
            raise ValueError(f"{word!r} in the variant {text!r} is unknown; a variant is {_FORM}")
    if file is not None:
        if values.keys() - {"forecast", "force_plan"}:
            raise ValueError(f"the variant {text!r}: a plan says all itself, so plan=FILE goes with force alone")
        config = DeepCacheConfig.from_file(file)
        if "force_plan" in values:
            config = DeepCacheConfig(plan=config.plan, schedule=config.schedule, force_plan=True)
        return Variant(f"plan {file.stem}", config)
    if "cache_interval" not in values:
        raise ValueError(f"the variant {text!r} names no interval; a variant is {_FORM}")
    config = DeepCacheConfig(**values)  # type: ignore[arg-type]
    return Variant(variant_name(config), config)


PUBLISHED_VARIANTS = tuple(parse_variant(name) for name in ("I=3 B=0", "I=5 B=0", "I=5 B=1"))
"""Those of the table in the documentation of diffusers."""
