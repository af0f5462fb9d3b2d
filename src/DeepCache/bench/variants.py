"""Settings of DeepCache by a short name: `I=5 B=1 linear guidance-reuse`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from DeepCache.config import DeepCacheConfig
from DeepCache.files import read_json_text
from DeepCache.schedule import BETWEEN, FORECASTS, SKIP_MODES, AdaptiveSchedule

__all__ = ["PUBLISHED_VARIANTS", "Variant", "check_names", "parse_variant", "variant_name"]

# Settings that are named by one word, in the order of a name; the first value of each is the default of a name.
_WORDS: dict[str, dict[str, object]] = {
    "forecast": {name: name for name in FORECASTS},
    "guidance_reuse": {"": False, "guidance-reuse": True},
    "between": {name: name for name in BETWEEN},
    "skip_mode": {name: name for name in SKIP_MODES},
}
_OPTIONAL = [list(words)[1:] for words in _WORDS.values()]
_FORM = (
    f"I=INTERVAL, optionally B=BRANCH, {', '.join(' or '.join(words) for words in _OPTIONAL)}, and with adaptive "
    "threshold=NUMBER; or plan=FILE, and force if it was tuned for something else"
)


@dataclass(frozen=True)
class Variant:
    """Settings of DeepCache with a short name.

    Args:
        name: the name in tables, which `parse_variant` reads.
        config: the settings.
    """

    name: str
    config: DeepCacheConfig

    @property
    def in_reference(self) -> bool:
        """Whether the reference package can do the same, which is uniform re-use at one branch."""
        return self.config == DeepCacheConfig(self.config.cache_interval, self.config.cache_branch_id, forecast="none")

    @property
    def adaptive(self) -> bool:
        """Whether the full steps are decided during a run."""
        return isinstance(self.config.effective_schedule, AdaptiveSchedule)


def variant_name(config: DeepCacheConfig) -> str:
    """The short name of settings without a schedule or plan.

    Example:
        >>> variant_name(DeepCacheConfig(cache_interval=5, forecast="linear", guidance_reuse=True))
        'I=5 B=0 linear guidance-reuse'
        >>> variant_name(DeepCacheConfig(cache_interval=8, between="skipped", skip_mode="adaptive", threshold=0.2))
        'I=8 B=0 limited skipped adaptive threshold=0.2'
    """
    words = [f"I={config.cache_interval}", f"B={config.cache_branch_id}"]
    for setting, named in _WORDS.items():
        default = next(iter(named))
        words += [word for word, value in named.items() if value == getattr(config, setting) and word != default]
    if config.skip_mode == "adaptive":
        words.append(f"threshold={config.threshold}")
    return " ".join(words)


def parse_variant(text: str) -> Variant:
    """The settings with a short name.

    Words can be in any order, separated by blanks or commas. The defaults are those of the paper: branch 0, a uniform
    schedule, shallow steps and re-use of the deep feature. The threshold of an adaptive schedule has its own default.

    Args:
        text: such as `I=3 B=1 linear` or `I=8 limited skipped adaptive threshold=0.2`, or `plan=FILE` with a file of
            `deepcache tune` or `DeepCacheConfig.to_file`.

    Raises:
        ValueError: a word is unknown or contradicts another, a value is out of range, or the file holds no plan.
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
        raise ValueError(f"the variant {text!r} has no plan to force; a variant is {_FORM}")
    if "cache_interval" not in values:
        raise ValueError(f"the variant {text!r} has no interval; a variant is {_FORM}")
    if "threshold" in values and values.get("skip_mode") != "adaptive":
        raise ValueError(f"the variant {text!r} has a threshold, which is for adaptive schedules; add adaptive")
    config = DeepCacheConfig(**{"forecast": "none", **values})  # type: ignore[arg-type]
    return Variant(variant_name(config), config)


def check_names(variants: Iterable[Variant]) -> None:
    """Raises `ValueError` if two variants have the same name, such as plans in files of that name in two folders."""
    names: set[str] = set()
    for variant in variants:
        if variant.name in names:
            raise ValueError(f"two variants are called {variant.name!r}; rename one of the files")
        names.add(variant.name)


def _setting(word: str, text: str) -> tuple[str, object]:
    """The setting and the value of a word."""
    key, _, value = word.partition("=")
    if key.lower() in ("i", "b") and value.isascii() and value.isdigit():
        return "cache_interval" if key.lower() == "i" else "cache_branch_id", int(value)
    if key == "threshold" and value:
        try:
            return key, float(value)
        except ValueError:
            raise ValueError(f"threshold in the variant {text!r} must be a number above 0, got {value!r}") from None
    if key == "plan" and value:
        return key, Path(value)
    for setting, named in _WORDS.items():
        if word in named:
            return setting, named[word]
    if word == "force":
        return "force_plan", True
    raise ValueError(f"{word!r} in the variant {text!r} is unknown; a variant is {_FORM}")


def _from_file(text: str, plan: Path, force_plan: bool = False, **others: object) -> Variant:
    if others:
        raise ValueError(f"the variant {text!r}: a plan has all settings, so plan=FILE can be combined with force only")
    content = read_json_text(plan, "plan")
    try:
        config = DeepCacheConfig.from_json(content)
        # A result with values that JSON does not have, such as infinity, could not be written.
        json.dumps(config.to_dict(), allow_nan=False)
    except RecursionError:
        raise ValueError(
            f"{str(plan)!r} holds no plan and no settings of DeepCache: its values are nested too deeply"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(plan)!r} holds no plan and no settings of DeepCache: {error}") from error
    if force_plan:
        if config.plan is None:
            raise ValueError(f"the variant {text!r}: {str(plan)!r} holds settings, not a plan to force")
        config = replace(config, force_plan=True)
    return Variant(f"plan {plan.stem}", config)


PUBLISHED_VARIANTS = tuple(parse_variant(name) for name in ("I=3 B=0", "I=5 B=0", "I=5 B=1"))
"""The settings in the table of the diffusers documentation."""
