"""The settings that reach a speed-up or fidelity: DeepCache or fewer steps, as an ablation measured them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from DeepCache.app.explorer import ExploredGroup
from DeepCache.report.heat_map import IDENTICAL
from DeepCache.report.numerals import decibels, per_cent, times

__all__ = ["Recommendation", "recommend"]

Cell = Mapping[str, Any]

_ALTERNATIVES = 3
# Equal costs differ in the last bits of a sum.
_DIGITS = 9


@dataclass(frozen=True)
class Recommendation:
    """The settings that reach a goal.

    Args:
        best: the best of all: settings of DeepCache, or fewer steps without DeepCache.
        deepcache: the best settings of DeepCache; None if none reach the goal.
        alternatives: the next best settings of DeepCache, up to three.
        fewer_steps: fewer steps without caching, at the cost closest to that of `deepcache`.
        sentences: the recommendation in words, the most important first.
    """

    best: Cell
    deepcache: Cell | None
    alternatives: Sequence[Cell]
    fewer_steps: Cell | None
    sentences: Sequence[str]


def recommend(group: ExploredGroup, goal: str, value: float) -> Recommendation:
    """The settings closest to no caching at a speed-up, or the cheapest settings at a fidelity.

    Args:
        group: what was measured.
        goal: `"speed-up"` of the U-Net by its multiply-accumulates, or `"fidelity"`, the mean PSNR against no caching.
        value: the smallest speed-up, or PSNR in dB, that is enough.

    Raises:
        ValueError: the value is out of range, or nothing that was measured reaches it.

    Example:
        >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
        >>> explorer = Explorer.from_file(SHIPPED_ABLATION)
        >>> found = recommend(explorer.group("DDIMScheduler, 50 steps"), "speed-up", 2)
        >>> found.best["label"], found.fewer_steps["label"]
        ('I=3 B=0 quadratic', '22 steps')
        >>> recommend(explorer.group("DPMSolverMultistepScheduler, 25 steps"), "fidelity", 50).best["label"]
        'I=3 B=0 linear guidance-reuse'
    """
    if goal == "speed-up":
        if not 1 <= value < math.inf:
            raise ValueError(f"the speed-up must be a number >= 1, got {value}")
        enough = [cell for cell in group.cells if _cost(cell) <= round(1 / value, _DIGITS)]
        enough.sort(key=lambda cell: (-_psnr(cell), _cost(cell), cell["method"] != "DeepCache"))
        words = f"a speed-up of {value:g} or more"
        closest = min(group.deepcache, key=lambda cell: (_cost(cell), -_psnr(cell)))
        limit = f"the fastest settings of DeepCache are {_words(closest)}"
    else:
        if not 0 <= value <= IDENTICAL:
            raise ValueError(f"the PSNR must be a number of dB between 0 and {IDENTICAL:g}, got {value}")
        enough = [cell for cell in group.cells if _psnr(cell) >= value]
        enough.sort(key=lambda cell: (_cost(cell), -_psnr(cell), cell["method"] != "DeepCache"))
        words = f"a PSNR of {value:g} dB or more"
        closest = max(group.deepcache, key=lambda cell: (_psnr(cell), -_cost(cell)))
        limit = f"the closest settings of DeepCache are {_words(closest)}"
    if not enough:
        raise ValueError(f"nothing measured on {group.model} with {group.where} reaches {words}; {limit}")
    cached = [cell for cell in enough if cell["method"] == "DeepCache"]
    deepcache = cached[0] if cached else None
    fewer = None if deepcache is None else group.measured.fewer_steps_like(deepcache)
    best, alternatives = enough[0], cached[1 : 1 + _ALTERNATIVES]
    if best["method"] != "DeepCache":
        second = _why_fewer_steps(best, deepcache, limit)
    elif fewer is None:
        second = "Fewer steps without caching were not measured, so that a fair comparison is missing."
    else:
        second = f"Fewer steps at the closest cost: {_words(fewer)}, which is {_difference(fewer, best)}."
    others = "; ".join(
        f"{cell['label']} ({per_cent(cell['mac_share'])}, {decibels(_psnr(cell))} dB)" for cell in alternatives
    )
    sentences = [
        _first_sentence(group, words, best),
        second,
        *([f"Next best: {others}."] if others else []),
        f"Measured on {group.model} with {group.where}. Other models and guidance scales give other figures. The "
        "speed-up counts the U-Net's multiply-accumulates; deepcache benchmark measures the time on a device.",
    ]
    return Recommendation(best, deepcache, alternatives, fewer, sentences)


def _first_sentence(group: ExploredGroup, words: str, best: Cell) -> str:
    low, high = best["psnr"]["confidence"]
    use = best["label"] if best["method"] == "DeepCache" else f"use {best['label']} without DeepCache"
    return (
        f"For {words}: {use}. The U-Net is {times(1 / best['mac_share'])} as fast by its multiply-accumulates "
        f"({per_cent(best['mac_share'])}), with a mean PSNR of {decibels(_psnr(best))} dB against no caching (95 % "
        f"confidence interval {decibels(low)} to {decibels(high)} dB, {group.measured.images} images)."
    )


def _why_fewer_steps(best: Cell, deepcache: Cell | None, limit: str) -> str:
    if deepcache is None:
        return f"No measured settings of DeepCache reach this goal; {limit}."
    better = ["cheaper"] if _cost(best) < _cost(deepcache) else []
    better += ["closer to no caching"] if _psnr(best) > _psnr(deepcache) else []
    return (
        f"Fewer steps are {' and '.join(better)}: the best settings of DeepCache are {_words(deepcache)}, "
        f"{_difference(deepcache, best)}."
    )


def _difference(cell: Cell, best: Cell) -> str:
    gain = _psnr(cell) - _psnr(best)
    return f"{decibels(abs(gain))} dB {'more' if gain > 0 else 'less'}"


def _psnr(cell: Cell) -> float:
    return float(cell["psnr"]["mean"])


def _cost(cell: Cell) -> float:
    return round(float(cell["mac_share"]), _DIGITS)


def _words(cell: Cell) -> str:
    how = "" if cell["method"] == "DeepCache" else " without caching"
    share = cell["mac_share"]
    return f"{cell['label']}{how} with {times(1 / share)} ({per_cent(share)}) and {decibels(_psnr(cell))} dB"
