"""Makes the figures of docs/schedules.md and docs/how-it-works.md, and writes the numbers beside them from the result
files, so that none there is typed by hand.

    python -m benchmarks.figures
"""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.shallow_unet import shallow_unet_diagram
from benchmarks.tables import HERE, SCHEDULES, _read
from DeepCache.app.explorer import SHIPPED_ABLATION
from DeepCache.files import read_json_text

HOW = HERE.parent / "docs" / "how-it-works.md"
IMAGES = HERE.parent / "docs" / "images"
BEGIN, END = "<!-- figures: made by python -m benchmarks.figures -->", "<!-- end of figures -->"

INTERVALS, BRANCHES, FORECASTS = (2, 3, 5, 8), (0, 1, 3), ("none", "linear", "quadratic")

METHODS = {
    "re-use": "re-use",
    "linear": "linear forecast",
    "quadratic": "quadratic forecast",
    "linear, guidance reuse": "linear forecast, guidance reuse",
    "tuned plan": "tuned plan",
    "fewer steps": "*fewer steps, no caching, at the nearest cost*",
}
# Okabe and Ito's colours, which people with a colour vision deficiency can tell apart.
COLOURS = {
    "re-use": "#999999",
    "linear": "#0072b2",
    "quadratic": "#56b4e9",
    "linear, guidance reuse": "#009e73",
    "tuned plan": "#d55e00",
    "fewer steps": "#e69f00",
}
_NAMES = {"ddim": "DDIM", "dpm++": "DPM++ 2M"}
# Of the colours in `COLOURS` none means a branch.
_BRANCH_COLOURS = {0: "#0072b2", 1: "#cc79a7", 3: "#000000"}
_SIZE, _DPI, _PALETTE = (9.6, 7.4), 100, 256


def main() -> None:
    for path, text in pages().items():
        before, _, after = split(path.read_text(encoding="utf-8"))
        path.write_text(before + text + after, encoding="utf-8")
    groups = ablation()["groups"]
    for name, make in FIGURES.items():
        make(groups, IMAGES / f"{name}.png")
    (IMAGES / "shallow-unet.svg").write_text(shallow_unet_diagram(), encoding="utf-8")


def pages() -> dict[Path, str]:
    """What the figures show as Markdown, by the page that has it."""
    shown = {SCHEDULES: choosing(ablation()), HOW: lost(_read("fidelity"))}
    return {page: f"\n\n{text}\n\n" for page, text in shown.items()}


def split(text: str) -> tuple[str, str, str]:
    """A page before, within and after the place of its figures."""
    before, rest = text.split(BEGIN)
    within, after = rest.split(END)
    return before + BEGIN, within, END + after


def ablation() -> dict[str, Any]:
    """The ablation that the package has, for the page to explore."""
    found: dict[str, Any] = json.loads(read_json_text(SHIPPED_ABLATION, "result"))
    return found


def cell(
    group: dict[str, Any],
    interval: int,
    branch: int = 0,
    forecast: str = "none",
    *,
    non_uniform: bool = False,
    guidance_reuse: bool = False,
) -> dict[str, Any]:
    """The cell of these settings in a group of the ablation."""
    words = [f"I={interval}", f"B={branch}"]
    words += [forecast] if forecast != "none" else []
    words += ["guidance-reuse"] if guidance_reuse else []
    words += ["non-uniform"] if non_uniform else []
    return _labelled(group, " ".join(words))


def fewer_steps(group: dict[str, Any], cost: float) -> dict[str, Any]:
    """Fewer steps without caching at the cost nearest to this one; of two as near the dearer."""
    fewer = [each for each in group["cells"] if each["method"] == "fewer steps"]
    return min(fewer, key=lambda each: (round(abs(each["mac_share"] - cost), 6), -each["mac_share"]))


def plans(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of tuned plans, the cheapest first."""
    found = [each for each in group["cells"] if each["label"].startswith("plan ")]
    return sorted(found, key=lambda each: each["mac_share"])


def psnr(found: dict[str, Any]) -> float:
    mean: float = found["psnr"]["mean"]
    return mean


def title(group: dict[str, Any]) -> str:
    return f"{_NAMES[group['scheduler']]}, {group['steps']} steps"


def choosing(result: dict[str, Any]) -> str:
    """What docs/schedules.md shows."""
    groups = result["groups"]
    settings = result["settings"]
    parts = [
        f"The bundled model, {len(settings['prompts'])} held-out prompts, guidance {settings['guidance']:g}, each "
        "image against the same one without caching ([ablation.json.gz](../src/DeepCache/app/ablation.json.gz)). I is "
        "the interval. Left is cheaper, up is closer to the original.",
        "### Forecast, guidance reuse and plan",
        "![PSNR against the share of multiply-accumulates at branch 0, for re-use, linear and quadratic forecasts, "
        "guidance reuse, tuned plans and fewer steps, in four panels](images/forecasts.png)",
        "A line of caching has its points at intervals of 8, 5, 3 and 2, from left to right. What a setting gains or "
        "loses, in dB:",
        _gains(groups),
        "### Branch",
        "![PSNR against the share of multiply-accumulates at branches 0, 1 and 3, re-use and linear forecast, with "
        "fewer steps for comparison, in four panels](images/branches.png)",
        "What a deeper branch brings over branch 0 with a linear forecast, in dB, and what it costs in points of the "
        "multiply-accumulates:",
        _deeper(groups),
        "### Uniform or not",
        "![Bars of PSNR of the non-uniform schedule minus that of the uniform one, by interval and forecast, in four "
        "panels; nearly all are below zero](images/non-uniform.png)",
        _uniform(groups),
        "### Or fewer steps",
        "At branch 0, PSNR in dB: re-use, linear forecast, and *fewer steps without caching* at the closest cost. Bold "
        "is the highest.",
        _nearest(groups),
    ]
    return "\n\n".join(parts)


def lost(fidelity: dict[str, Any]) -> str:
    """What docs/how-it-works.md shows."""
    deep = {(each["interval"], each["branch"]): each for each in fidelity["cached"]}
    shallowest, deepest = deep[5, 0], deep[5, max(branch for _, branch in deep)]
    return (
        "As a rule a deeper branch loses less and saves less. At an interval of 5 with re-use, "
        f"{_branch(shallowest)} and {_branch(deepest)} of the multiply-accumulates (DDIM, {fidelity['steps']} steps, "
        f"guidance {fidelity['guidance']:g}, [fidelity.json.gz](../benchmarks/fidelity.json.gz))."
    )


def forecasts_figure(groups: list[dict[str, Any]], path: Path) -> None:
    """PSNR against cost at branch 0: forecasts, guidance reuse, plans, fewer steps."""

    def plot(axes: Any, group: dict[str, Any]) -> None:
        for method, forecast in (("re-use", "none"), ("linear", "linear"), ("quadratic", "quadratic")):
            cells = [cell(group, interval, forecast=forecast) for interval in INTERVALS]
            _line(axes, cells, "o-", color=COLOURS[method], label=METHODS[method])
        for interval in INTERVALS:
            found = cell(group, interval, forecast="linear")
            axes.annotate(
                f"I={interval}",
                (found["mac_share"], psnr(found)),
                # Beside the point, where the lines do not run.
                xytext=(-6, -13) if interval == 8 else (6, -12),
                textcoords="offset points",
                ha="right" if interval == 8 else "left",
                color=COLOURS["linear"],
            )
        halved = [cell(group, interval, forecast="linear", guidance_reuse=True) for interval in (3, 5)]
        name = "linear, guidance reuse"
        _line(axes, halved, "D:", color=COLOURS[name], label=METHODS[name])
        if plans(group):
            _line(axes, plans(group), "*-", color=COLOURS["tuned plan"], label=METHODS["tuned plan"], markersize=12)

    _panels(groups, path, plot, columns=3)


def branches_figure(groups: list[dict[str, Any]], path: Path) -> None:
    """PSNR against cost for each branch, with re-use and a linear forecast."""

    def plot(axes: Any, group: dict[str, Any]) -> None:
        for branch, colour in _BRANCH_COLOURS.items():
            forecast = [cell(group, interval, branch, "linear") for interval in INTERVALS]
            reuse = [cell(group, interval, branch) for interval in INTERVALS]
            _line(axes, forecast, "o-", color=colour, label=f"branch {branch}, linear forecast")
            _line(axes, reuse, "o:", color=colour, label=f"branch {branch}, re-use", markerfacecolor="white")

    _panels(groups, path, plot, columns=4)


def non_uniform_figure(groups: list[dict[str, Any]], path: Path) -> None:
    """What the non-uniform schedule gains over the uniform one, by interval and forecast, at branch 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0], 5.6), layout="constrained")
    width = 0.26
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, group in zip(panels.flat, groups, strict=True):
        for index, forecast in enumerate(FORECASTS):
            gains = [
                psnr(cell(group, interval, forecast=forecast, non_uniform=True))
                - psnr(cell(group, interval, forecast=forecast))
                for interval in INTERVALS
            ]
            places = [place + (index - 1) * width for place in range(len(INTERVALS))]
            method = "re-use" if forecast == "none" else forecast
            axes.bar(places, gains, width, color=COLOURS[method], edgecolor="black", label=METHODS[method])
        axes.axhline(0, color="black", linewidth=1)
        axes.set_xticks(range(len(INTERVALS)), [f"I={interval}" for interval in INTERVALS])
        axes.set_title(title(group), loc="left")
        axes.grid(axis="y", alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("non-uniform minus uniform, dB")
    _legend(figure, panels.flat, columns=3)
    _save(figure, path)


FIGURES: dict[str, Callable[[list[dict[str, Any]], Path], None]] = {
    "forecasts": forecasts_figure,
    "branches": branches_figure,
    "non-uniform": non_uniform_figure,
}


def _labelled(group: dict[str, Any], label: str) -> dict[str, Any]:
    (found,) = [each for each in group["cells"] if each["label"] == label]
    chosen: dict[str, Any] = found
    return chosen


def _gains(groups: list[dict[str, Any]]) -> str:
    rows = _head("", groups)
    for forecast in ("linear", "quadratic"):
        for interval in INTERVALS:
            gains = [psnr(cell(group, interval, forecast=forecast)) - psnr(cell(group, interval)) for group in groups]
            rows.append(_row(f"{METHODS[forecast]} over re-use, I={interval}", [f"{gain:+.1f}" for gain in gains]))
    for interval in (3, 5):
        shown = []
        for group in groups:
            whole = cell(group, interval, forecast="linear")
            halved = cell(group, interval, forecast="linear", guidance_reuse=True)
            shown.append(f"{psnr(halved) - psnr(whole):+.1f} ({_points(halved, whole)})")
        rows.append(_row(f"guidance reuse over none, linear forecast, I={interval} (points of the cost)", shown))
    shown = []
    for group in groups:
        plan = next(reversed(plans(group)), None)
        linear = cell(group, 5, forecast="linear")
        shown.append("" if plan is None else f"{psnr(plan) - psnr(linear):+.1f} ({_points(plan, linear)})")
    rows.append(_row("tuned plan over linear forecast, I=5 (points of the cost)", shown))
    return "\n".join(rows)


def _deeper(groups: list[dict[str, Any]]) -> str:
    rows = _head("", groups)
    for interval in (2, 3, 5):
        for branch in (1, 3):
            shown = []
            for group in groups:
                shallow, deep = (cell(group, interval, each, "linear") for each in (0, branch))
                shown.append(f"{psnr(deep) - psnr(shallow):+.1f} ({_points(deep, shallow)})")
            rows.append(_row(f"I={interval}, branch {branch}", shown))
    return "\n".join(rows)


def _uniform(groups: list[dict[str, Any]]) -> str:
    settings = [(i, b, f) for i in INTERVALS for b in BRANCHES for f in FORECASTS]
    behind, ahead = 0, set()
    for group in groups:
        for interval, branch, forecast in settings:
            gain = psnr(cell(group, interval, branch, forecast, non_uniform=True)) - psnr(
                cell(group, interval, branch, forecast)
            )
            behind += gain < 0
            if gain >= 0:
                ahead.add(f"{title(group)} at I={interval}")
    return (
        f"The non-uniform schedule is behind the uniform one in {behind} of {len(settings) * len(groups)} pairs of "
        "settings that are alike but for that, those at branches 1 and 3 included. It is ahead in "
        f"{len(settings) * len(groups) - behind}, all of them in {' or '.join(sorted(ahead))}. The paper's numbers for "
        "it were found on other models."
    )


def _nearest(groups: list[dict[str, Any]]) -> str:
    rows = _head("", groups)
    for interval in INTERVALS:
        shown = []
        for group in groups:
            reuse, linear = (cell(group, interval, forecast=forecast) for forecast in ("none", "linear"))
            fewer = fewer_steps(group, reuse["mac_share"])
            best = max(reuse, linear, fewer, key=psnr)
            names = {"re-use": reuse, "linear": linear, f"*{fewer['label']} ({fewer['mac_share']:.0%})*": fewer}
            lines = [
                f"{name} **{psnr(found):.1f}**" if found is best else f"{name} {psnr(found):.1f}"
                for name, found in names.items()
            ]
            shown.append(f"{reuse['mac_share']:.0%}:<br>" + "<br>".join(lines))
        rows.append(_row(f"I={interval}", shown))
    return "\n".join(rows)


def _branch(found: dict[str, Any]) -> str:
    return f"branch {found['branch']} comes to {psnr(found):.1f} dB for {found['mac_share']:.0%}"


def _head(first: str, groups: list[dict[str, Any]]) -> list[str]:
    return [_row(first, [title(group) for group in groups]), "|---" * (1 + len(groups)) + "|"]


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _points(found: dict[str, Any], other: dict[str, Any]) -> str:
    return f"{100 * (found['mac_share'] - other['mac_share']):+.0f}"


def _panels(
    groups: list[dict[str, Any]], path: Path, plot: Callable[[Any, dict[str, Any]], None], columns: int
) -> None:
    """A panel for each group, with fewer steps in each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, group in zip(panels.flat, groups, strict=True):
        plot(axes, group)
        fewer = [each for each in group["cells"] if each["method"] == "fewer steps"]
        _line(axes, fewer, "s--", color=COLOURS["fewer steps"], label="fewer steps, no caching")
        axes.set_title(title(group), loc="left")
        axes.grid(alpha=0.3)
        axes.margins(x=0.09)
    for axes in panels[-1]:
        axes.set_xlabel("multiply-accumulates of the U-Net, share")
    for axes in panels[:, 0]:
        axes.set_ylabel("PSNR against no caching, dB")
    _legend(figure, panels.flat, columns=columns)
    _save(figure, path)


def _line(axes: Any, cells: list[dict[str, Any]], style: str, *, markersize: float = 5, **options: Any) -> None:
    ordered = sorted(cells, key=lambda each: each["mac_share"])
    shares, means = [each["mac_share"] for each in ordered], [psnr(each) for each in ordered]
    axes.plot(shares, means, style, markersize=markersize, **options)


def _legend(figure: Any, panels: Any, columns: int) -> None:
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _save(figure: Any, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=_DPI)
    # A palette takes a third of the bytes; this way of choosing it leaves out no colour of which there is little.
    Image.open(buffer).convert("RGB").quantize(_PALETTE, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
