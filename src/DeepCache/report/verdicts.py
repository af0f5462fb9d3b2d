"""What a group of an ablation comes to, in words: where fewer steps win, and which settings keep objects right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from DeepCache.bench.summary import paired
from DeepCache.report.fidelity import FidelityGroup
from DeepCache.report.numerals import decibels, per_cent

__all__ = ["CHANGED", "fewer_steps_win", "verdicts"]

Cell = Mapping[str, Any]

CHANGED = 30.0
"""Below this PSNR, in dB, an image counts as changed: the difference from the original is easy to see."""

_AT_MOST = 6


def verdicts(group: FidelityGroup) -> list[str]:
    """Where fewer steps win, and where a setting changes the image but not its rightness, as sentences.

    A difference counts where its 95 % confidence interval, image by image, is on one side of 0.

    Args:
        group: the group; of one that is not finished, what is there so far.
    """
    return [*_against_fewer_steps(group), *_rightness(group)]


def fewer_steps_win(group: FidelityGroup, cell: Cell) -> bool:
    """Whether fewer steps at the nearest cost are closer to the original than a setting of DeepCache."""
    gain = group.over_fewer_steps(cell)
    return gain is not None and bool(gain["confidence"][1] < 0)


def _against_fewer_steps(group: FidelityGroup) -> list[str]:
    gains = {cell["label"]: gain for cell in group.deepcache if (gain := group.over_fewer_steps(cell)) is not None}
    if not gains:
        return []
    losing = sorted(
        (label for label, gain in gains.items() if gain["confidence"][1] < 0), key=lambda label: gains[label]["mean"]
    )
    count = f"{len(losing)} of {len(gains)} settings of DeepCache"
    if not losing:
        return [f"Fewer steps at the nearest cost win against none of the {len(gains)} settings of DeepCache."]
    text = f"Fewer steps at the nearest cost win against {count}: " + _listed(
        f"{label} ({gains[label]['label']} are {decibels(-gains[label]['mean'])} dB closer)" for label in losing
    )
    return [f"{text}. Use fewer steps here." if len(losing) == len(gains) else f"{text}."]


def _rightness(group: FidelityGroup) -> list[str]:
    original = (group.reference or {}).get("right")
    judged = [cell for cell in group.cells if cell["right"] is not None and cell["psnr"] is not None]
    if original is None or not judged:
        return []
    lost = {cell["label"]: paired(cell["right"]["values"], original["values"]) for cell in judged}
    broken = [cell for cell in judged if lost[cell["label"]]["confidence"][1] < 0]
    changed = [cell for cell in judged if cell["psnr"]["mean"] < CHANGED and cell not in broken]
    found = [f"Right objects without caching: {per_cent(original['mean'])}."]
    if broken:
        found.append(f"Fewer objects are right with {_listed(map(_with_share, broken))}.")
    if changed:
        found.append(
            f"These change the image (PSNR below {CHANGED:g} dB) but not its rightness, as far as {group.images} "
            f"images can show: {_listed(map(_with_share, changed))}."
        )
    if not broken and not changed:
        found.append("No setting changes the image visibly or makes fewer objects right.")
    return found


def _with_share(cell: Cell) -> str:
    return f"{cell['label']} ({per_cent(cell['right']['mean'])} right)"


def _listed(parts: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    found = list(parts)
    more = len(found) - _AT_MOST
    return "; ".join(found[:_AT_MOST]) + (f"; and {more} more" if more > 0 else "")
