"""Reads the `parameters` text that AUTOMATIC1111's web UI, Forge and programs like them note in an image."""

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
# A key, and a value up to the next comma; a value with commas is in quotes.
_PAIR = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^"\\])+"|[^,]*)(?:,|$)')
_LAST_LINE = re.compile(r"^Steps: \d+, ")
_SCHEDULES = ("karras", "exponential", "automatic", "uniform")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")
_WEIGHT = re.compile(r"(?<!\\)\([^()]*:\s*[\d.]+\)")


def parse_parameters(text: str) -> tuple[dict[str, Any], list[str]]:
    """The options of `deepcache generate` that the text stands for, and what of it they cannot express.

    Args:
        text: a prompt, a line that starts with `Negative prompt:` if there is one, and a line of settings.

    Raises:
        ValueError: there is no line of settings.

    Example:
        >>> options, unread = parse_parameters("a cat\\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Model: ink")
        >>> options["prompt"], options["scheduler"], options["guidance"], unread
        ('a cat', 'euler-a', 7.0, ['Model: ink'])
    """
    *lines, last = text.strip().splitlines() or [""]
    if not _LAST_LINE.match(last):
        raise ValueError("its parameters lack the last line, which starts with 'Steps:'")
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    pairs = {name.strip(): value.strip().strip('"') for name, value in _PAIR.findall(last)}
    found: dict[str, Any] = {"prompt": prompt.strip(), "negative-prompt": negative.strip(), "interval": 1}
    unread = []
    for name, value in pairs.items():
        match name:
            case "Steps" | "Seed":
                found[name.lower()] = int(value)
            case "CFG scale":
                found["guidance"] = float(value)
            case "Size":
                found["size"] = value
            case "Sampler":
                sampler, schedule = _sampler(value)
                found |= {"scheduler": _SAMPLERS[sampler]} if sampler in _SAMPLERS else {}
                unread += [] if sampler in _SAMPLERS else [f"Sampler: {value}"]
                unread += [f"Schedule type: {schedule}"] if schedule else []
            case "Version" | "Model hash":
                pass
            case _:
                unread.append(f"{name}: {value}")
    unread += _NETWORK.findall(found["prompt"])
    found["prompt"] = _NETWORK.sub("", found["prompt"]).strip()
    unread += _WEIGHT.findall(found["prompt"])
    return found, unread


def _sampler(value: str) -> tuple[str, str]:
    """The sampler in small letters, and the schedule of noise that older versions put after it."""
    name, _, last = value.rpartition(" ")
    if name and last.lower() in _SCHEDULES:
        return name.lower(), last
    return value.lower(), ""
