"""Settings of DeepCache by a short name: `I=5 B=1 linear guidance-reuse`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from DeepCache.config import DeepCacheConfig
from DeepCache.schedule import FORECASTS, SKIP_MODES

__all__ = ["PUBLISHED_VARIANTS", "Variant", "check_names", "parse_variant", "variant_name"]

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
        """Whether the reference package can do the same, which is uniform re-use at one branch."""
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
        ValueError: a word is unknown or contradicts another, a value is out of its range, or the file holds no plan.
        OSError: the file of a plan cannot be read.

    Example:
        >>> parse_variant("I=5, B=1").config.cache_branch_id
        1
    """
    values: dict[str, object] = {}
    for word in text.replace(",", " ").split():
        name, value = _setting(word, text)
        if values.get(name, value) != value:
            raise ValueError(f"the variant {text!r}: {word!r} contradicts a word before it")
        values[name] = value
    if "plan" in values:
        return _from_file(text, **values)  # type: ignore[arg-type]
    if "force_plan" in values:
        raise ValueError(f"the variant {text!r} names no plan to force; a variant is {_FORM}")
    if "cache_interval" not in values:
        raise ValueError(f"the variant {text!r} names no interval; a variant is {_FORM}")
    config = DeepCacheConfig(**{"forecast": "none", **values})  # type: ignore[arg-type]
    return Variant(variant_name(config), config)


def check_names(variants: Iterable[Variant]) -> None:
    """Refuses two settings of one name, which no result could tell apart.

    Raises:
        ValueError: there are two, such as plans in files of the same name in two folders.
    """
    names: set[str] = set()
    for variant in variants:
        if variant.name in names:
            raise ValueError(f"two variants are called {variant.name!r}; give the file of one another name")
        names.add(variant.name)


def _setting(word: str, text: str) -> tuple[str, object]:
    """The setting that a word of a variant is, and its value."""
    key, _, value = word.partition("=")
    if key.lower() in ("i", "b") and value.isascii() and value.isdigit():
        return "cache_interval" if key.lower() == "i" else "cache_branch_id", int(value)
    if key == "plan" and value:
        return key, Path(value)
    if word in FORECASTS:
        return "forecast", word
    if word in SKIP_MODES:
        return "skip_mode", word
    if word == "guidance-reuse":
        return "guidance_reuse", True
    if word == "force":
        return "force_plan", True
    raise ValueError(f"{word!r} in the variant {text!r} is unknown; a variant is {_FORM}")


def _from_file(text: str, plan: Path, force_plan: bool = False, **others: object) -> Variant:
    if others:
        raise ValueError(f"the variant {text!r}: a plan says all itself, so plan=FILE goes with force alone")
    try:
        config = DeepCacheConfig.from_file(plan)
        # A result could not be written with what JSON does not have, such as infinity.
        json.dumps(config.to_dict(), allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(plan)!r} holds no plan and no settings of DeepCache: {error}") from error
    if force_plan:
        if config.plan is None:
            raise ValueError(f"the variant {text!r}: {str(plan)!r} holds settings and no plan to force")
        config = replace(config, force_plan=True)
    return Variant(f"plan {plan.stem}", config)


PUBLISHED_VARIANTS = tuple(parse_variant(name) for name in ("I=3 B=0", "I=5 B=0", "I=5 B=1"))
"""Those of the table in the documentation of diffusers."""
