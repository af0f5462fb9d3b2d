"""The findings of a report: headline numbers of each result, and verdicts on each group of an ablation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from DeepCache.bench.summary import paired
from DeepCache.report.fidelity import FidelityGroup, fidelity_groups
from DeepCache.report.heat_map import Cell
from DeepCache.report.numerals import decibels, of_range, per_cent, seconds, times
from DeepCache.report.sources import Source
from DeepCache.report.speed import is_measured, speed_tables

__all__ = ["headline", "verdicts"]

_CHANGED = 30.0  # below this PSNR, in dB, the difference is easy to see
_PUBLISHED = "I=3 B=0"
_AT_MOST = 6


def headline(source: Source) -> list[tuple[str, str]]:
    """The main numbers of a result, each with a description; empty if DeepCache was not measured."""
    if source.is_benchmark:
        return list(_speed(source))
    scales: dict[float | None, FidelityGroup] = {}
    for group in fidelity_groups(source):
        if any(cell["psnr"] is not None for cell in group.deepcache):
            scales.setdefault(group.guidance, group)
    return [number for group in scales.values() for number in _fidelity(group)]


def _speed(source: Source) -> Iterator[tuple[str, str]]:
    """The whole pipeline before the U-Net, the published setting before others, the smallest batch first."""
    measured = [
        (table, cell, variant.name, row)
        for table in sorted(speed_tables(source), key=lambda table: table.scope != "pipeline")
        for variant in sorted(table.variants, key=lambda variant: variant.name != _PUBLISHED)
        for cell, row in sorted(table.measured(variant.name), key=lambda pair: pair[0].batch)
    ]
    if not measured:
        return
    table, cell, name, row = measured[0]
    scope = "whole pipeline" if table.scope == "pipeline" else "U-Net alone"
    place = f"{scope}, {cell.size} px, batch {cell.batch}, {table.dtype}, {table.mode}, {table.steps} steps"
    yield times(row["speed_up"]), f"as fast with {name}: {place}"
    original = cell.row("no caching")
    if is_measured(original):
        yield f"{seconds(row['median'])} s", f"instead of {seconds(original['median'])} s"
    if row["share_of_limit"] is not None:
        yield per_cent(row["share_of_limit"]), "of the limit by the multiply-accumulates of the U-Net"
    fewer = cell.fewer_steps_like(name)
    if is_measured(fewer):
        cost = f"at {per_cent(fewer['mac_share'])} of the multiply-accumulates against {per_cent(row['mac_share'])}"
        yield times(fewer["speed_up"]), f"as fast with {_words(fewer['variant'])} and no caching, {cost}"
    reference = cell.row("reference package", name)
    if is_measured(reference):
        yield times(reference["speed_up"]), "as fast with the reference package, same settings"
    all_times = [each["speed_up"] for _, each in table.measured(name)]
    if len(all_times) > 1:
        ends = [min(all_times), max(all_times)]
        yield of_range(ends, times), f"over the {len(all_times)} sizes and batches measured"


def _fidelity(group: FidelityGroup) -> Iterator[tuple[str, str]]:
    """The published setting, or the closest at half of the cost or less, or the cheapest."""
    measured = [cell for cell in group.deepcache if cell["psnr"] is not None]
    cheap = [cell for cell in measured if cell["mac_share"] <= 0.5]
    cheap.sort(key=lambda cell: -float(cell["psnr"]["mean"]))
    published = [cell for cell in measured if cell["label"] == _PUBLISHED]
    cell = [*published, *cheap, *measured][0]

    def psnr(cell: Cell) -> str:
        return f"{decibels(cell['psnr']['mean'])} dB"

    cost = f"{per_cent(cell['mac_share'])} of the multiply-accumulates"
    yield psnr(cell), f"PSNR with {cell['label']} at {cost} ({group.title}, {group.images} images)"
    fewer = group.fewer_steps_like(cell)
    if fewer is not None:
        win = "; fewer steps win here" if group.fewer_steps_win(cell) else ""
        yield psnr(fewer), f"with {_words(fewer['label'])} and no caching at {per_cent(fewer['mac_share'])}{win}"
    allowed = [other for other in group.cells if other["psnr"] is not None and other["mac_share"] <= cell["mac_share"]]
    # Of equals, the setting itself.
    best = max(allowed, key=lambda other: (other["psnr"]["mean"], other is cell))
    if best is not cell:
        yield psnr(best), f"with the best at that cost or less, {best['label']} at {per_cent(best['mac_share'])}"
    original = (group.reference or {}).get("right")
    if original is not None and cell["right"] is not None:
        yield per_cent(cell["right"]["mean"]), f"right objects; {per_cent(original['mean'])} without caching"


def verdicts(group: FidelityGroup) -> list[str]:
    """Where fewer steps win, and which settings change the image but not its rightness.

    A difference counts if its 95 % confidence interval, image by image, is on one side of 0.
    """
    return [*_against_fewer_steps(group), *_rightness(group)]


def _against_fewer_steps(group: FidelityGroup) -> Iterator[str]:
    gains = {cell["label"]: gain for cell in group.deepcache if (gain := group.over_fewer_steps(cell)) is not None}
    losing = [label for label, gain in gains.items() if gain["confidence"][1] < 0]
    losing.sort(key=lambda label: float(gains[label]["mean"]))
    start = "Fewer steps at the closest cost win against"
    if losing:
        text = f"{start} {len(losing)} of {len(gains)} settings of DeepCache: " + _listed(
            f"{label} ({gains[label]['label']} are {decibels(-gains[label]['mean'])} dB closer)" for label in losing
        )
        yield f"{text}. Use fewer steps here." if len(losing) == len(gains) else f"{text}."
    elif gains:
        yield f"{start} none of the {len(gains)} settings of DeepCache."


def _rightness(group: FidelityGroup) -> Iterator[str]:
    original = (group.reference or {}).get("right")
    judged = [cell for cell in group.cells if cell["right"] is not None and cell["psnr"] is not None]
    if original is None or not judged:
        return
    lost = {cell["label"]: paired(cell["right"]["values"], original["values"]) for cell in judged}
    broken = [cell for cell in judged if lost[cell["label"]]["confidence"][1] < 0]
    changed = [cell for cell in judged if cell["psnr"]["mean"] < _CHANGED and cell not in broken]
    yield f"Right objects without caching: {per_cent(original['mean'])}."
    if broken:
        yield f"Fewer objects are right with {_listed(map(_with_share, broken))}."
    if changed:
        yield (
            f"These change the image (PSNR below {_CHANGED:g} dB) but not its rightness, as far as {group.images} "
            f"images can show: {_listed(map(_with_share, changed))}."
        )
    if not broken and not changed:
        yield "No setting changes the image visibly or makes fewer objects right."


def _with_share(cell: Cell) -> str:
    return f"{cell['label']} ({per_cent(cell['right']['mean'])} right)"


def _listed(parts: Iterable[str]) -> str:
    found = list(parts)
    more = len(found) - _AT_MOST
    return "; ".join(found[:_AT_MOST]) + (f"; and {more} more" if more > 0 else "")


def _words(label: str) -> str:
    return "1 step" if label == "1 steps" else label
