"""The main findings of a report in words, and nothing in them that the results do not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from DeepCache.bench.ablation_cells import guidance_in_words
from DeepCache.report.fidelity import FidelityGroup, fidelity_groups, unfinished_groups
from DeepCache.report.numerals import decibels, per_cent
from DeepCache.report.sources import Source
from DeepCache.report.speed import SpeedCell, SpeedTable, is_measured, speed_tables, unfinished_cells
from DeepCache.report.verdicts import fewer_steps_win

__all__ = ["finding"]

# The setting of the published example, which is what people compare with.
_FAMOUS = "I=3 B=0"
_NOT_FINISHED = " The measurement is not finished, and what is missing may change this."


def finding(source: Source) -> str:
    """What a result comes to, in a few sentences.

    Args:
        source: a benchmark or an ablation.
    """
    return _speed(source) if source.is_benchmark else _fidelity(source)


def _speed(source: Source) -> str:
    # The whole pipeline is what people wait for.
    tables = sorted(speed_tables(source), key=lambda table: table.scope != "pipeline")
    found = next(((table, *choice) for table in tables for choice in _measured(table)), None)
    unfinished = _NOT_FINISHED if unfinished_cells(source) else ""
    if found is None:
        state = "is measured yet" if unfinished else "could be measured"
        return f"On {source.device}, nothing of DeepCache on {source.model} {state}."
    table, cell, name, row = found
    weights = " (random weights)" if source.result["settings"]["random_weights"] else ""
    text = (
        f"On {source.device}, {name} made {source.model}{weights} {row['speed_up']:.2f} times as fast at {cell.size} "
        f"px: {table.scope_in_words}, batch {cell.cell['batch']}, {table.dtype}, {table.mode}, {table.steps} steps."
    )
    if row["share_of_limit"] is not None:
        text += f" That is {per_cent(row['share_of_limit'])} of what the multiply-accumulates of its U-Net allow."
    fewer = cell.fewer_steps_like(name)
    if is_measured(fewer):
        text += (
            f" {_words(fewer['variant'])} without caching, at {per_cent(fewer['mac_share'])} of the "
            f"multiply-accumulates against {per_cent(row['mac_share'])}, were {fewer['speed_up']:.2f} times as fast."
        )
    reference = cell.reference(name)
    if is_measured(reference):
        text += f" The reference package was {reference['speed_up']:.2f} times as fast with the same settings."
    others = [each["speed_up"] for _, each in _all_of(table, name)]
    if len(others) > 1:
        low, high = f"{min(others):.2f}", f"{max(others):.2f}"
        text += (
            f" Over the {len(others)} sizes and batches measured, {name} was "
            f"{low if low == high else f'{low} to {high}'} times as fast."
        )
    return text + unfinished


def _measured(table: SpeedTable) -> Iterator[tuple[SpeedCell, str, Mapping[str, Any]]]:
    """What DeepCache was measured with: the famous setting before all others, the smallest batch first."""
    names = sorted((variant.name for variant in table.variants), key=lambda name: name != _FAMOUS)
    for name in names:
        for cell, row in sorted(_all_of(table, name), key=lambda pair: pair[0].cell["batch"]):
            yield cell, name, row


def _all_of(table: SpeedTable, name: str) -> Iterator[tuple[SpeedCell, Mapping[str, Any]]]:
    for cell in table.cells:
        row = cell.deepcache(name)
        if is_measured(row):
            yield cell, row


def _fidelity(source: Source) -> str:
    groups = fidelity_groups(source)
    unfinished = _NOT_FINISHED if unfinished_groups(source) else ""
    found: dict[float | None, tuple[FidelityGroup, Mapping[str, Any]]] = {}
    for group in groups:
        cell = _famous(group)
        if cell is not None:
            found.setdefault(group.guidance, (group, cell))
    if not found:
        return f"Nothing of DeepCache on {source.model} is drawn yet."
    return " ".join(_of_group(source, group, cell) for group, cell in found.values()) + unfinished


def _of_group(source: Source, group: FidelityGroup, cell: Mapping[str, Any]) -> str:
    """One setting of a group, with fewer steps at that cost and the best that there is for it."""
    in_title = len(source.result["settings"]["guidances"]) > 1
    guidance = "" if in_title else guidance_in_words(group.guidance)
    text = (
        f"On {source.model} ({group.title}{guidance}, {group.images} images), {cell['label']} takes "
        f"{per_cent(cell['mac_share'])} of the multiply-accumulates and comes to {decibels(cell['psnr']['mean'])} dB "
        "PSNR against the images without caching."
    )
    fewer = group.fewer_steps_like(cell)
    if fewer is not None:
        text += (
            f" {_words(fewer['label'])} without caching, at {per_cent(fewer['mac_share'])}, come to "
            f"{decibels(fewer['psnr']['mean'])} dB"
            + (": fewer steps win here." if fewer_steps_win(group, cell) else ".")
        )
    best = _best_at_that_cost(group, cell)
    if best is not None and best is not cell:
        text += (
            f" The closest at that cost or less is {best['label']}: {decibels(best['psnr']['mean'])} dB at "
            f"{per_cent(best['mac_share'])}."
        )
    elif best is cell:
        text += " Nothing else that was generated is closer at that cost or less."
    original = (group.reference or {}).get("right")
    if original is not None and cell["right"] is not None:
        text += f" Right objects: {per_cent(cell['right']['mean'])}, without caching {per_cent(original['mean'])}."
    return text


def _famous(group: FidelityGroup) -> Mapping[str, Any] | None:
    """The famous setting; where it was not drawn, the nearest that takes half of the cost or less, or the cheapest."""
    drawn = [cell for cell in group.deepcache if cell["psnr"] is not None]
    named = [cell for cell in drawn if cell["label"] == _FAMOUS]
    cheap = [cell for cell in drawn if cell["mac_share"] <= 0.5]
    cheap.sort(key=lambda cell: -cell["psnr"]["mean"])
    return next(iter([*named, *cheap, *drawn]), None)


def _best_at_that_cost(group: FidelityGroup, cell: Mapping[str, Any]) -> Mapping[str, Any] | None:
    allowed = [other for other in group.cells if other["psnr"] is not None and other["mac_share"] <= cell["mac_share"]]
    # Of equals the one that was asked about.
    return max(allowed, key=lambda other: (other["psnr"]["mean"], other is cell), default=None)


def _words(label: str) -> str:
    """`1 steps` is one step."""
    return "1 step" if label == "1 steps" else label
