"""The `parameters` text that AUTOMATIC1111's web UI, Forge and similar programs write into images."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["parse_parameters"]

_SAMPLERS = {
    "ddim": "ddim",
    "deis": "deis",
    "dpm++ 2m": "dpm++",
    "dpm++ sde": "dpm++-sde",
    "dpm2": "kdpm2",
    "dpm2 a": "kdpm2-a",
    "euler": "euler",
    "euler a": "euler-a",
    "heun": "heun",
    "lcm": "lcm",
    "lms": "lms",
    "plms": "pndm",
    "tcd": "tcd",
    "unipc": "unipc",
}
# A key, and a value up to the next comma; a value with commas is quoted.
_PAIR = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^"\\])+"|[^,]*)(?:,|$)')
_LAST_LINE = re.compile(r"^Steps: \d+, ")
_SCHEDULES = ("karras", "exponential", "automatic", "uniform")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")
_WEIGHT = re.compile(r"(?<!\\)\([^()]*:\s*[\d.]+\)")


def parse_parameters(text: str) -> tuple[dict[str, Any], list[str]]:
    """Parses the text into options of `deepcache generate`, and the settings that these cannot express.

    Args:
        text: a prompt, an optional line that starts with `Negative prompt:`, and a line of settings.

    Raises:
        ValueError: the line of settings is missing.

    Example:
        >>> options, unread = parse_parameters("a cat\\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Model: ink")
        >>> options["prompt"], options["scheduler"], options["guidance"], unread
        ('a cat', 'euler-a', 7.0, ['Model: ink'])
    """
    *lines, last = text.strip().splitlines() or [""]
    if not _LAST_LINE.match(last):
        raise ValueError("its parameters lack the last line, which starts with 'Steps:'")
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    found: dict[str, Any] = {"negative-prompt": negative.strip(), "interval": 1}
    unread = []
    pairs = {name.strip(): value.strip().strip('"') for name, value in _PAIR.findall(last)}
    for name, value in pairs.items():
        match name:
            case "Steps" | "Seed":
                found[name.lower()] = int(value)
            case "CFG scale":
                found["guidance"] = float(value)
            case "Size":
                found["size"] = value
            case "Sampler":
                options, others = _sampler(value)
                found |= options
                unread += others
            case "Version" | "Model hash":
                pass
            case _:
                unread.append(f"{name}: {value}")
    unread += _NETWORK.findall(prompt)
    found["prompt"] = _NETWORK.sub("", prompt).strip()
    unread += _WEIGHT.findall(found["prompt"])
    return found, unread


def _sampler(value: str) -> tuple[dict[str, str], list[str]]:
    """The option, and what it cannot express: an unknown sampler, or the noise schedule that older versions append."""
    name, _, schedule = value.rpartition(" ")
    if not name or schedule.lower() not in _SCHEDULES:
        name, schedule = value, ""
    alias = _SAMPLERS.get(name.lower())
    unread = ([] if alias else [f"Sampler: {value}"]) + ([f"Schedule type: {schedule}"] if schedule else [])
    return {"scheduler": alias} if alias else {}, unread
