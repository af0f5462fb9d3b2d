"""The settings of DeepCache as one validated, frozen value that is saved to and loaded from JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from DeepCache.schedule import SKIP_MODES, UniformSchedule

__all__ = ["DeepCacheConfig"]


@dataclass(frozen=True)
class DeepCacheConfig:
    """Settings of DeepCache (https://huggingface.co/papers/2312.00858).

    Args:
        cache_interval (`int`, defaults to `3`):
            The number of steps from one full step to the next (N in the paper). `1` makes every step full: nothing is
            cached and the output is bit-identical to the pipeline's own. Larger is faster and less faithful; 2 to 5
            is usual at 50 steps.
        cache_branch_id (`int`, defaults to `0`):
            The skip branch at which the U-Net is cut on shallow steps, counted from the shallowest: 0 is the one of
            `conv_in`, 1 that of the first layer of the first down block, and so on. Deeper is slower and more
            faithful. How many there are depends on the U-Net (twelve in Stable Diffusion 1.5, nine in SDXL); one that
            is too deep is refused when the configuration meets the U-Net.
        skip_mode (`str`, defaults to `"uniform"`):
            How the full steps are spread over a trajectory. `"uniform"`: every `cache_interval`-th step is full.

    Raises:
        TypeError: a number is not an `int`, or `skip_mode` is not a `str`.
        ValueError: a number is out of its range, or `skip_mode` is unknown.

    Example:
        >>> config = DeepCacheConfig(cache_interval=5)
        >>> DeepCacheConfig.from_json(config.to_json()) == config
        True
    """

    cache_interval: int = 3
    cache_branch_id: int = 0
    skip_mode: str = "uniform"

    def __post_init__(self) -> None:
        _check_integer("cache_interval", self.cache_interval, minimum=1)
        _check_integer("cache_branch_id", self.cache_branch_id, minimum=0)
        if not isinstance(self.skip_mode, str):
            raise TypeError(f"skip_mode must be a str, got {self.skip_mode!r}")
        if self.skip_mode not in SKIP_MODES:
            allowed = ", ".join(repr(mode) for mode in SKIP_MODES)
            raise ValueError(f"skip_mode must be one of {allowed}, got {self.skip_mode!r}")

    @property
    def schedule(self) -> UniformSchedule:
        """The schedule that these settings describe."""
        return UniformSchedule(self.cache_interval)

    def to_json(self) -> str:
        """The settings as a JSON object, one key a field."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> DeepCacheConfig:
        """The settings in a JSON object; a field that is absent takes its default.

        Raises:
            ValueError: the text is no JSON object, or has a key that is no field, or a value is out of range.
            TypeError: a value is of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a DeepCacheConfig is a JSON object, and this is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"a DeepCacheConfig is a JSON object, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            names = ", ".join(repr(key) for key in unknown)
            raise ValueError(f"unknown key {names} in a DeepCacheConfig; the keys are {', '.join(known)}")
        return cls(**values)

    def to_file(self, path: str | Path) -> None:
        """Writes `to_json()` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> DeepCacheConfig:
        """Reads a file written by `to_file`; raises as `from_json` does, and `OSError` where it cannot be read."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _check_integer(name: str, value: object, minimum: int) -> None:
    # bool is an int to isinstance, but a person who wrote True meant something else.
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be {minimum} or more, got {value}")
