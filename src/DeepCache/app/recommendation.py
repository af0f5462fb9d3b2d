"""What to take for a wanted speed-up or fidelity, DeepCache or fewer steps, from what an ablation measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from DeepCache.app.measured_group import ExploredGroup, Way
from DeepCache.report.fidelity import IDENTICAL
from DeepCache.report.numerals import decibels, per_cent, times

__all__ = ["Recommendation", "recommend_for_fidelity", "recommend_for_speed_up"]

_ALTERNATIVES = 3
# Two ways of the same cost differ in the last bits of a sum.
_DIGITS = 9


@dataclass(frozen=True)
class Recommendation:
    """What to take for a wish, with what it is to be compared with.

    Args:
        group: what was measured.
        wish: the wish, in words.
        best: what fulfils it best: settings of DeepCache, or fewer steps without DeepCache.
        deepcache: the settings of DeepCache that fulfil it best; None where none do.
        closest: the settings of DeepCache that come closest to it, in words.
        alternatives: those settings of DeepCache that come next, up to three.
        fewer_steps: fewer steps without caching, at the cost nearest to that of `deepcache`.
    """

    group: ExploredGroup
    wish: str
    best: Way
    deepcache: Way | None
    closest: str
    alternatives: Sequence[Way]
    fewer_steps: Way | None

    @property
    def sentences(self) -> list[str]:
        """The recommendation in words, the most important first."""
        found = [self._first()]
        if self.best.config is None:
            found.append(self._why_not_deepcache())
        elif self.fewer_steps is None:
            found.append("Fewer steps without caching were not measured, so the fair comparison is missing.")
        else:
            compared = _compared(self.fewer_steps, self.best)
            found.append(f"Fewer steps at the nearest cost: {_words(self.fewer_steps)}, which is {compared}.")
        if self.alternatives:
            others = "; ".join(
                f"{way.label} ({per_cent(way.mac_share)}, {decibels(way.psnr)} dB)" for way in self.alternatives
            )
            found.append(f"Next come {others}.")
        found.append(
            f"Measured on {self.group.model} with {self.group.where}: other models and guidance scales have other "
            "figures. A speed-up here is that of the U-Net by its multiply-accumulates; what a device makes of it, "
            "deepcache benchmark measures."
        )
        return found

    def _first(self) -> str:
        low, high = self.best.psnr_interval
        take = self.best.label if self.best.config is not None else f"use {self.best.label} without DeepCache"
        return (
            f"For {self.wish}: {take}. The U-Net is {times(self.best.speed_up)} as fast by its multiply-accumulates "
            f"({per_cent(self.best.mac_share)} of them), and the images come to {decibels(self.best.psnr)} dB PSNR "
            f"against no caching on average (95 % confidence interval {decibels(low)} to {decibels(high)} dB, images: "
            f"{self.group.images})."
        )

    def _why_not_deepcache(self) -> str:
        """What fewer steps are better than."""
        if self.deepcache is None:
            return f"No settings of DeepCache that were measured fulfil the wish; {self.closest}."
        how = ["cheaper"] if _cost(self.best) < _cost(self.deepcache) else []
        how += ["closer to no caching"] if self.best.psnr > self.deepcache.psnr else []
        compared = _compared(self.deepcache, self.best)
        return f"Fewer steps are {' and '.join(how)}: the best of DeepCache is {_words(self.deepcache)}, {compared}."


def recommend_for_speed_up(group: ExploredGroup, speed_up: float) -> Recommendation:
    """What comes closest to no caching among all that makes the U-Net so much faster.

    Args:
        group: what was measured.
        speed_up: of the U-Net by its multiply-accumulates, from 1: the settings cost at most the reciprocal of it.

    Returns:
        What to take, with what it is to be compared with.

    Raises:
        ValueError: it is no number from 1, or nothing that was measured is that fast.

    Example:
        >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
        >>> group = Explorer.from_file(SHIPPED_ABLATION).group("DDIMScheduler, 50 steps")
        >>> found = recommend_for_speed_up(group, 2)
        >>> found.best.label, found.fewer_steps.label
        ('I=3 B=0 quadratic', '22 steps')
    """
    if not 1 <= speed_up < math.inf:
        raise ValueError(f"the speed-up must be a number from 1, got {speed_up}")
    allowed = [way for way in group.ways if _cost(way) <= round(1 / speed_up, _DIGITS)]
    allowed.sort(key=lambda way: (-way.psnr, _cost(way), way.config is None))
    wish = f"a speed-up of {speed_up:g} or more"
    closest = min(group.deepcache, key=lambda way: (_cost(way), -way.psnr))
    return _recommendation(group, wish, allowed, f"the fastest are {_words(closest)}")


def recommend_for_fidelity(group: ExploredGroup, psnr: float) -> Recommendation:
    """The cheapest among all that comes close enough to no caching.

    Args:
        group: what was measured.
        psnr: the least mean PSNR against no caching, in dB.

    Returns:
        What to take, with what it is to be compared with.

    Raises:
        ValueError: it is no number of dB up to what identical images count as, or nothing that was measured comes
            that close.

    Example:
        >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
        >>> group = Explorer.from_file(SHIPPED_ABLATION).group("DPMSolverMultistepScheduler, 25 steps")
        >>> recommend_for_fidelity(group, 50).best.label
        'I=3 B=0 linear guidance-reuse'
    """
    if not 0 <= psnr <= IDENTICAL:
        raise ValueError(f"the PSNR must be a number of dB from 0 to {IDENTICAL:g}, got {psnr}")
    allowed = [way for way in group.ways if way.psnr >= psnr]
    allowed.sort(key=lambda way: (_cost(way), -way.psnr, way.config is None))
    wish = f"{psnr:g} dB or more"
    closest = max(group.deepcache, key=lambda way: (way.psnr, -_cost(way)))
    return _recommendation(group, wish, allowed, f"the closest are {_words(closest)}")


def _recommendation(group: ExploredGroup, wish: str, allowed: list[Way], closest: str) -> Recommendation:
    """The recommendation from all that fulfils the wish, the best first.

    Raises:
        ValueError: nothing does.
    """
    if not allowed:
        raise ValueError(
            f"nothing that was measured on {group.model} with {group.where} fulfils the wish for {wish}; of DeepCache "
            f"{closest}"
        )
    best, cached = allowed[0], [way for way in allowed if way.config is not None]
    deepcache = cached[0] if cached else None
    fewer = None if deepcache is None else group.fewer_steps_like(deepcache)
    return Recommendation(group, wish, best, deepcache, closest, cached[1 : 1 + _ALTERNATIVES], fewer)


def _compared(way: Way, best: Way) -> str:
    gain = way.psnr - best.psnr
    return f"{decibels(abs(gain))} dB {'more' if gain > 0 else 'less'}"


def _cost(way: Way) -> float:
    return round(way.mac_share, _DIGITS)


def _words(way: Way) -> str:
    how = "" if way.config is not None else " without caching"
    return f"{way.label}{how} with {times(way.speed_up)} ({per_cent(way.mac_share)}) and {decibels(way.psnr)} dB"
