"""The settings to take for a wanted speed-up or fidelity, from what an ablation measured."""

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
    """Settings for a wish, with what they are to be compared with.

    Args:
        group: what was measured.
        wish: the wish, in words.
        best: the settings of DeepCache that fulfil it best.
        alternatives: those that come next, up to three.
        fewer_steps: fewer steps without caching, at the cost nearest to that of `best`.
        better_fewer_steps: those fewer steps that fulfil the wish better than `best`; None where none do.
    """

    group: ExploredGroup
    wish: str
    best: Way
    alternatives: Sequence[Way]
    fewer_steps: Way | None
    better_fewer_steps: Way | None

    @property
    def sentences(self) -> list[str]:
        """The recommendation in words, the most important first."""
        low, high = self.best.psnr_interval
        found = [
            f"For {self.wish}: {self.best.label}. It makes the U-Net {times(self.best.speed_up)} as fast by its "
            f"multiply-accumulates ({per_cent(self.best.mac_share)} of them), and its pictures come to "
            f"{decibels(self.best.psnr)} dB PSNR against no caching on average (95 % confidence interval "
            f"{decibels(low)} to {decibels(high)} dB, images: {self.group.images})."
        ]
        if self.better_fewer_steps is not None:
            better = self.better_fewer_steps
            how = ["cheaper"] if _cost(better) < _cost(self.best) else []
            how += ["nearer"] if better.psnr > self.best.psnr else []
            found.append(f"Fewer steps are better here, {' and '.join(how)}: {self._compared(better)}.")
        if self.fewer_steps is None:
            found.append("Fewer steps without caching were not measured, so the fair comparison is missing.")
        elif self.fewer_steps is not self.better_fewer_steps:
            found.append(f"Fewer steps at the nearest cost: {self._compared(self.fewer_steps)}.")
        if self.alternatives:
            others = "; ".join(
                f"{way.label} ({per_cent(way.mac_share)}, {decibels(way.psnr)} dB)" for way in self.alternatives
            )
            found.append(f"Next come {others}.")
        found.append(
            f"Measured on {self.group.model} with {self.group.title}: other models have other figures. A speed-up here "
            "is that of the U-Net by its multiply-accumulates; what a device makes of it, deepcache benchmark measures."
        )
        return found

    def _compared(self, fewer: Way) -> str:
        """Fewer steps, and how they compare with the best settings."""
        gain = fewer.psnr - self.best.psnr
        return f"{_words(fewer)}, which is {decibels(abs(gain))} dB {'more' if gain > 0 else 'less'}"


def recommend_for_speed_up(group: ExploredGroup, speed_up: float) -> Recommendation:
    """The settings whose pictures are nearest among those that make the U-Net so much faster.

    Args:
        group: what was measured.
        speed_up: of the U-Net by its multiply-accumulates, from 1: the settings cost at most the reciprocal of it.

    Returns:
        The settings, with what they are to be compared with.

    Raises:
        ValueError: it is no number from 1, or no settings that were measured are that fast.

    Example:
        >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
        >>> group = Explorer.from_file(SHIPPED_ABLATION).group("DDIMScheduler, 50 steps")
        >>> found = recommend_for_speed_up(group, 2)
        >>> found.best.label, found.fewer_steps.label, found.better_fewer_steps
        ('I=3 B=0 quadratic', '22 steps', None)
    """
    if not 1 <= speed_up < math.inf:
        raise ValueError(f"the speed-up must be a number from 1, got {speed_up}")
    allowed = [way for way in group.ways if _cost(way) <= round(1 / speed_up, _DIGITS)]
    allowed.sort(key=lambda way: (-way.psnr, _cost(way)))
    wish = f"a speed-up of {speed_up:g} or more"
    nearest = min(group.deepcache, key=lambda way: (_cost(way), -way.psnr))
    return _recommendation(group, wish, allowed, f"the fastest are {_words(nearest)}")


def recommend_for_fidelity(group: ExploredGroup, psnr: float) -> Recommendation:
    """The cheapest settings among those whose pictures are near enough.

    Args:
        group: what was measured.
        psnr: the least mean PSNR against no caching, in dB.

    Returns:
        The settings, with what they are to be compared with.

    Raises:
        ValueError: it is no number of dB up to what identical images count as, or no settings that were measured come
            that near.

    Example:
        >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
        >>> group = Explorer.from_file(SHIPPED_ABLATION).group("DPMSolverMultistepScheduler, 25 steps")
        >>> recommend_for_fidelity(group, 50).best.label
        'I=3 B=0 linear guidance-reuse'
    """
    if not 0 <= psnr <= IDENTICAL:
        raise ValueError(f"the PSNR must be a number of dB from 0 to {IDENTICAL:g}, got {psnr}")
    allowed = [way for way in group.ways if way.psnr >= psnr]
    allowed.sort(key=lambda way: (_cost(way), -way.psnr))
    wish = f"{psnr:g} dB or more"
    nearest = max(group.deepcache, key=lambda way: (way.psnr, -_cost(way)))
    return _recommendation(group, wish, allowed, f"the nearest are {_words(nearest)}")


def _recommendation(group: ExploredGroup, wish: str, allowed: list[Way], instead: str) -> Recommendation:
    """The recommendation from all that fulfils the wish, the best first.

    Raises:
        ValueError: DeepCache does not.
    """
    cached = [way for way in allowed if way.config is not None]
    if not cached:
        fewer = [way for way in allowed if way.config is None]
        also = f"; fewer steps without caching do: {_words(fewer[0])}" if fewer else ""
        raise ValueError(
            f"no settings of DeepCache that were measured on {group.model} with {group.title}, fulfil the wish for "
            f"{wish}; {instead}{also}"
        )
    best = cached[0]
    # In front of it, that is better: nearer for a speed-up, cheaper for a fidelity.
    better = next((way for way in allowed[: allowed.index(best)] if way.config is None), None)
    return Recommendation(group, wish, best, cached[1 : 1 + _ALTERNATIVES], group.fewer_steps_like(best), better)


def _cost(way: Way) -> float:
    return round(way.mac_share, _DIGITS)


def _words(way: Way) -> str:
    how = "" if way.config is not None else " without caching"
    return f"{way.label}{how} with {times(way.speed_up)} ({per_cent(way.mac_share)}) and {decibels(way.psnr)} dB"
