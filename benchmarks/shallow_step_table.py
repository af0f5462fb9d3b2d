"""The tables of docs/compiling.md on what a shallow step spends and what was tried to cut it."""

from __future__ import annotations

from statistics import fmean
from typing import Any

__all__ = ["shallow_step"]

# Those that change how layers are computed and not what.
_FORMATS = ("channels_last", "fused projections", "channels_last, fused projections")


def shallow_step(result: dict[str, Any]) -> str:
    """Where the time of a shallow step goes, and every variant's time and fidelity, as Markdown."""
    return "\n\n".join([_spent(result), _formats(result), _variants(result)])


def _spent(result: dict[str, Any]) -> str:
    seconds, macs = result["profile"]["seconds"], result["profile"]["multiply_accumulates"]
    times = {kind: fmean(each[kind] for each in seconds) for kind in macs}
    rows = ["| | time | multiply-accumulates |", "|---|---|---|"]
    for kind in sorted(times, key=lambda kind: -times[kind]):
        rows.append(f"| {kind} | {times[kind] / sum(times.values()):.0%} | {macs[kind] / sum(macs.values()):.0%} |")
    lead = (
        f"A shallow step at branch {result['branch']} of Stable Diffusion 1.5's U-Net with random weights, "
        f"{result['pixels']} px, guided, {result['dtype']}, on one core of an {result['machine']['cpu']} "
        "([shallow_step.json.gz](../benchmarks/shallow_step.json.gz)):"
    )
    return f"{lead}\n\n" + "\n".join(rows)


def _formats(result: dict[str, Any]) -> str:
    timings = {each["format"]: each for each in result["timings"] if each["variant"] == "plain"}
    rows = ["| | full step | shallow step | largest difference of the output, float32 |", "|---|---|---|---|"]
    for name in _FORMATS:
        timing, difference = timings[name], result["differences"]["shapes, float32"][name]
        full, shallow = timing["full_to_plain_full"], timing["shallow_to_plain_shallow"]
        rows.append(f"| {name} | {full:.2f} | {shallow:.2f} | {difference:.1g} |")
    return "The same layers computed otherwise, time as a share of that as they come:\n\n" + "\n".join(rows)


def _variants(result: dict[str, Any]) -> str:
    cells = {
        (cell["scheduler"], cell["interval"], cell["variant"]): cell["psnr"]["mean"]
        for cell in result["cells"]
        if cell["forecast"] == "linear"
    }
    columns = [(scheduler, interval) for scheduler in result["schedulers"] for interval in (3, 4)]
    heads = " | ".join(f"{scheduler}, I={interval}" for scheduler, interval in columns)
    rows = [f"| | time of a shallow step | {heads} |", "|---|---|" + "---|" * len(columns)]
    timings = {
        each["variant"]: each["shallow_to_plain_shallow"] for each in result["timings"] if each["format"] == "plain"
    }
    for variant, time in {**timings, "prediction forecast": 0.0}.items():
        figures = [cells.get((*column, variant)) for column in columns]
        shown = " | ".join("" if each is None else f"{each:.1f} dB" for each in figures)
        rows.append(f"| {'as it is' if variant == 'plain' else variant} | {time:.2f} | {shown} |")
    lead = (
        "Parts of the shallow step continued from full steps, as the deep feature is. Time as a share of the shallow "
        f"step as it is; PSNR against no caching on the bundled model, {len(result['prompts'])} held-out prompts, "
        "linear forecast of the deep feature, DDIM in 50 steps and DPM++ in 25:"
    )
    return f"{lead}\n\n" + "\n".join(rows)
