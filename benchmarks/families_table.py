"""The results of `benchmarks.families` as Markdown, for docs/layouts.md."""

from __future__ import annotations

from typing import Any

__all__ = ["families_page"]

# HunyuanDiT has nineteen branches, of which these show the course.
SHOWN = 4


def families_page(result: dict[str, Any]) -> str:
    """The cuts that are exact, and what shallow steps cost."""
    return f"{_cuts(result)}\n\n{_costs(result)}"


def _cuts(result: dict[str, Any]) -> str:
    rows = ["| family | layout | cuts | exact |", "|---|---|---|---|"]
    for row in result["families"]:
        rows.append(f"| {row['family']} | `{row['layout']}` | {row['cuts']} | {row['exact']} |")
    lead = (
        "**Exact cuts.** At each cut, a shallow step that is given the true deep feature returns the bits of the full "
        "step. Small denoisers with random weights; where a family has a ControlNet, each cut also with its residuals "
        "([families.json](../benchmarks/families.json))."
    )
    return lead + "\n\n" + "\n".join(rows)


def _costs(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["denoiser"] for row in result["published"]))
    rows = ["| denoiser | branch | shallow step | I=2 | I=3 | I=5 |", "|---|---|---|---|---|---|"]
    for name in names:
        found = [row for row in result["published"] if row["denoiser"] == name]
        step = max(1, -(-len(found) // SHOWN))
        for row in found[::step]:
            speed_ups = " | ".join(f"{value:.2f}×" for value in row["speed_up"].values())
            rows.append(f"| {name}, {row['steps']} steps | {row['branch']} | {row['share']:.1%} | {speed_ups} |")
    lead = (
        "**What a shallow step costs** at the sizes of the published models, as a share of the multiply-accumulates of "
        "a full step, and the speed-up of the denoiser if time went by these alone. No time was measured, and no "
        "fidelity: these models were not run."
    )
    return lead + "\n\n" + "\n".join(rows)
