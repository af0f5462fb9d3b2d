"""Tables and figures of the results in benchmarks/frontier, for README.md, docs/guidance.md and docs/compared.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from DeepCache.bench.summary import paired
from DeepCache.files import read_json_text

FOLDER = Path(__file__).parent / "frontier"
IMAGES = FOLDER.parent.parent / "docs" / "images"

SOLVERS = {"ddim": "DDIM", "dpmpp": "DPM++ 2M", "euler": "Euler", "unipc": "UniPC"}
GUIDANCES = (7.5, 4.0, 2.0)
USUAL = GUIDANCES[0]
"""The guidance scale that Stable Diffusion's pipelines take by default, which tables begin with."""

METHODS = {
    "re-use": "re-use (the paper)",
    "linear": "linear forecast",
    "limited": "limited forecast (the default)",
    "limited, guidance reuse": "limited forecast, guidance reuse",
    "alternating, response": "shallow and skipped steps in turn, response",
    "skipped, limited": "skipped steps, limited forecast",
    "skipped, response": "skipped steps, response forecast",
    "adaptive, limited": "skipped steps, limited forecast, adaptive",
    "adaptive, response": "skipped steps, response forecast, adaptive",
    "tuned plan": "tuned plan",
    "fewer steps": "*fewer steps, no caching*",
}
IN_README = (
    "re-use",
    "limited",
    "skipped, limited",
    "skipped, response",
    "adaptive, response",
    "tuned plan",
    "fewer steps",
)
# Okabe and Ito's colours, which people with a colour vision deficiency can tell apart.
COLOURS = {
    "re-use": "#999999",
    "linear": "#56b4e9",
    "limited": "#0072b2",
    "skipped, limited": "#009e73",
    "skipped, response": "#d55e00",
    "adaptive, response": "#cc79a7",
    "tuned plan": "#000000",
    "fewer steps": "#e69f00",
    "peer": "#f0c0c0",
}
# Figures leave out what costs more: little is saved there.
_HIGHEST_COST = 0.7
_AS_RE_USE = ("re-use, I=2", "re-use, I=3", "re-use, I=5")


def results() -> dict[tuple[str, float], dict[str, Any]]:
    """The result files by scheduler and guidance scale."""
    every = [(solver, guidance) for guidance in GUIDANCES for solver in SOLVERS]
    return {each: _read(*each) for each in every if _path(*each).is_file()}


def _path(solver: str, guidance: float) -> Path:
    return FOLDER / f"{solver}-{guidance:g}.json.gz"


def _read(solver: str, guidance: float) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_json_text(_path(solver, guidance), "result"))
    return found


def of_method(result: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The cases of a method, from the cheapest."""
    return sorted((case for case in result["cases"] if case["method"] == method), key=lambda case: case["mac_share"])


def case(result: dict[str, Any], method: str, label: str) -> dict[str, Any] | None:
    """One case; None where it was not measured."""
    return next((each for each in of_method(result, method) if each["label"] == label), None)


def best(result: dict[str, Any], method: str, cost: float) -> dict[str, Any] | None:
    """The case of a method with the highest mean PSNR for no more than a cost, both rounded to a hundredth."""
    fitting = [each for each in of_method(result, method) if round(each["mac_share"], 2) <= round(cost, 2)]
    return max(fitting, key=lambda each: each["psnr"]["mean"], default=None)


def over(one: dict[str, Any], other: dict[str, Any], measure: str = "psnr") -> tuple[float, float]:
    """By how much one case is above another of the same images, and half of the 95 % interval of that."""
    gain = paired(one[measure]["values"], other[measure]["values"])
    return gain["mean"], (gain["confidence"][1] - gain["confidence"][0]) / 2


def shown(each: dict[str, Any] | None) -> str:
    """A case in a cell: cost, PSNR with its interval, share of right objects."""
    if each is None:
        return ""
    low, high = each["psnr"]["confidence"]
    return (
        f"{each['mac_share']:.0%}: **{each['psnr']['mean']:.1f}** ± {(high - low) / 2:.1f} dB, "
        f"{each['right']['mean']:.0%} right"
    )


def in_readme() -> str:
    """The table that the README leads with."""
    found = {solver: result for (solver, guidance), result in results().items() if guidance == USUAL}
    first = next(iter(found.values()))
    lead = (
        f"**At guidance {USUAL:g}**, the default of Stable Diffusion's pipelines. The bundled model, "
        f"{len(first['prompts'])} held-out prompts, branch 0. Each cell: share of the U-Net's multiply-accumulates, "
        "mean PSNR against no caching with its 95 % confidence interval, and the share of objects that have the right "
        "colour, shape and place ([benchmarks/frontier/](benchmarks/frontier/)). "
        "[Which setting at which guidance](docs/guidance.md) has more; "
        "[Compared with others](docs/compared.md) has other projects' rules."
    )
    figure = (
        "![PSNR against cost at guidance 7.5 and 2 with DDIM, DPM++ 2M, Euler and UniPC, for re-use, forecasts, "
        "skipped steps, adaptive schedules, tuned plans and fewer steps](docs/images/frontier.png)"
    )
    heads = [f"{SOLVERS[solver]}, {result['steps']} steps" for solver, result in found.items()]
    rows = ["| at no more than the cost of | | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    right = " | ".join(f"{result['reference']['right']['mean']:.0%} right" for result in found.values())
    rows.append(f"| | no caching | {right} |")
    for bound in _AS_RE_USE[1:]:
        label = bound
        for method in IN_README:
            cells = [shown(best(each, method, _cost(each, bound))) for each in found.values()]
            rows.append(f"| {label} | {METHODS[method]} | {' | '.join(cells)} |")
            label = ""
    return "\n\n".join([lead, figure, "\n".join(rows)])


def _cost(result: dict[str, Any], bound: str) -> float:
    method, label = bound.split(", ")
    found = case(result, method, label)
    return 0.0 if found is None else float(found["mac_share"])


def guidance_page() -> str:
    """What docs/guidance.md shows."""
    found = results()
    first = next(iter(found.values()))
    parts = [
        f"The bundled model, {len(first['prompts'])} held-out prompts, branch 0; I is the interval. Schedulers as "
        "diffusers' Stable Diffusion pipelines configure them. *Fewer steps* is the number of steps without caching "
        "at the cost closest to that of re-use. The files have all values, SSIM of each setting included "
        "([benchmarks/frontier/](../benchmarks/frontier/)).",
        "### Right objects",
        "The share of objects with the right colour, shape and place, by [the judge](benchmarks.md); in the heading, "
        "that of no caching.",
        _by_interval(found, lambda each: f"{each['right']['mean']:.0%}", with_reference=True),
        "### PSNR",
        "Mean PSNR against no caching in dB, and in brackets the 5th percentile.",
        _by_interval(found, lambda each: f"{each['psnr']['mean']:.1f} ({each['psnr']['p5']:.1f})"),
        "### The default against re-use",
        "The gain of the limited forecast over re-use, in dB with the 95 % interval of the paired difference; in "
        "brackets the gain of the 5th percentile, with its bootstrap interval; then the gain of the linear forecast. "
        "Bold: below re-use by more than the interval.",
        _over_re_use(found, "psnr", 1),
        "The same for SSIM.",
        _over_re_use(found, "ssim", 4),
        "### The best setting for a cost",
        "For each scheduler, guidance scale and cost: the setting with the highest mean PSNR, and its gain over the "
        "default at that cost and over fewer steps, in dB with the 95 % interval of the paired difference.",
        _winners(found),
        "### Deciding during the run, or before",
        "Adaptive schedules, which decide for each image, against tuned plans, which are the same for all, and even "
        "schedules of the same kind of step, at the closest cost.",
        _adaptive(found),
    ]
    return "\n\n".join(parts)


def _by_interval(found: dict[tuple[str, float], dict[str, Any]], cell: Any, with_reference: bool = False) -> str:
    rows = []
    for guidance in GUIDANCES:
        there = [solver for solver in SOLVERS if (solver, guidance) in found]
        heads = []
        for solver in there:
            name, result = SOLVERS[solver], found[solver, guidance]
            right = f" ({result['reference']['right']['mean']:.0%})" if with_reference else ""
            heads.append(f"{name}-{result['steps']}{right}")
        rows += [
            "",
            f"| guidance {guidance:g} | | " + " | ".join(heads) + " |",
            "|---" * (2 + len(heads)) + "|",
        ]
        for interval in ("I=2", "I=3", "I=5", "I=8"):
            label = interval
            for method in ("limited", "re-use", "linear", "skipped, limited", "skipped, response"):
                cases = [case(found[solver, guidance], method, interval) for solver in there]
                if any(cases):
                    cells = ["" if each is None else cell(each) for each in cases]
                    rows.append(f"| {label} | {METHODS[method]} | {' | '.join(cells)} |")
                    label = ""
            if not label:
                near = [_nearest(found[solver, guidance], f"re-use, {interval}") for solver in there]
                cells = ["" if each is None else cell(each) for each in near]
                rows.append(f"| | {METHODS['fewer steps']} | {' | '.join(cells)} |")
    return "\n".join(rows[1:])


def _nearest(result: dict[str, Any], bound: str) -> dict[str, Any] | None:
    """Fewer steps at the cost nearest to that of a setting."""
    return _near(result, "fewer steps", _cost(result, bound))


def _near(result: dict[str, Any], method: str, cost: float) -> dict[str, Any] | None:
    """The case of a method whose cost is nearest, the more expensive of two."""
    return min(
        of_method(result, method),
        key=lambda each: (round(abs(each["mac_share"] - cost), 6), -each["mac_share"]),
        default=None,
    )


def _winners(found: dict[tuple[str, float], dict[str, Any]]) -> str:
    rows = ["| guidance | scheduler | cost up to | best setting | gain over the default | over fewer steps |"]
    rows.append("|---|---|---|---|---|---|")
    for guidance in GUIDANCES:
        for solver, name in SOLVERS.items():
            if (solver, guidance) not in found:
                continue
            result = found[solver, guidance]
            for bound in _AS_RE_USE:
                cost = _cost(result, bound)
                if not cost:
                    continue
                ours = [each for method in METHODS if (each := best(result, method, cost)) is not None]
                winner = max(ours, key=lambda each: each["psnr"]["mean"])
                default = best(result, "limited", cost)
                fewer = best(result, "fewer steps", cost)
                gains = [
                    "" if other is None or other is winner else "{:+.1f} ± {:.1f}".format(*over(winner, other))
                    for other in (default, fewer)
                ]
                chosen = f"{METHODS[winner['method']]}, {_label(winner)}: {winner['psnr']['mean']:.1f} dB"
                rows.append(
                    f"| {guidance:g} | {name}-{result['steps']} | {cost:.0%} | {chosen} at {winner['mac_share']:.0%} | "
                    f"{' | '.join(gains)} |"
                )
    return "\n".join(rows)


def _over_re_use(found: dict[tuple[str, float], dict[str, Any]], measure: str, digits: int) -> str:
    rows = ["| guidance | scheduler | I=2 | I=3 | I=5 | I=8 |", "|---" * 6 + "|"]
    for (solver, guidance), result in found.items():
        cells = []
        for interval in ("I=2", "I=3", "I=5", "I=8"):
            limited, base, linear = (case(result, method, interval) for method in ("limited", "re-use", "linear"))
            if limited is None or base is None or linear is None:
                cells.append("")
                continue
            gains = over(limited, base, measure), _gain_of_the_5th_percentile(limited, base, measure)
            mean, low = (_gain(gain, margin, digits) for gain, margin in gains)
            cells.append(f"{mean} ({low}); {over(linear, base, measure)[0]:+.{digits}f}")
        rows.append(f"| {guidance:g} | {SOLVERS[solver]}-{result['steps']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _gain(gain: float, margin: float, digits: int) -> str:
    bold = "**" if gain < -margin else ""
    return f"{bold}{gain:+.{digits}f} ± {margin:.{digits}f}{bold}"


def _gain_of_the_5th_percentile(one: dict[str, Any], other: dict[str, Any], measure: str) -> tuple[float, float]:
    """By how much the 5th percentile of one case is above that of another, and half of the 95 % interval of that, by
    2,000 resamples of the images with replacement."""
    import numpy as np

    values = np.array([one[measure]["values"], other[measure]["values"]])
    rows = np.random.default_rng(0).integers(values.shape[1], size=(2000, values.shape[1]))
    lows = np.percentile(values[:, rows], 5, axis=-1)
    low, high = np.percentile(lows[0] - lows[1], [2.5, 97.5])
    return one[measure]["p5"] - other[measure]["p5"], float(high - low) / 2


def _adaptive(found: dict[tuple[str, float], dict[str, Any]]) -> str:
    rows = ["| guidance | scheduler | adaptive | cost | PSNR, dB | tuned plan | even |", "|---" * 7 + "|"]
    for (solver, guidance), result in found.items():
        for each in of_method(result, "adaptive, response"):
            near = [_near(result, method, each["mac_share"]) for method in ("tuned plan", "skipped, response")]
            cells = [
                f"{other['psnr']['mean']:.1f} at {other['mac_share']:.0%}" if other is not None else ""
                for other in near
            ]
            rows.append(
                f"| {guidance:g} | {SOLVERS[solver]}-{result['steps']} | {each['label']} | {each['mac_share']:.0%} | "
                f"{each['psnr']['mean']:.1f} | {' | '.join(cells)} |"
            )
    return "\n".join(rows)


def _label(each: dict[str, Any]) -> str:
    return f"`{each['label']}`" if each["method"] == "tuned plan" else str(each["label"])


def compared_page() -> str:
    """What docs/compared.md shows."""
    parts = []
    for solver, name in SOLVERS.items():
        result = _read(solver, USUAL)
        reference = result["reference"]["right"]["mean"]
        rows = [
            "| | cost | PSNR, dB | 5th percentile | right objects |",
            "|---|---|---|---|---|",
        ]
        for each in sorted(result["cases"], key=lambda each: -each["psnr"]["mean"]):
            ours = each["method"] not in ("peer", "fewer steps")
            title = each["label"] if each["method"] == "peer" else f"{METHODS[each['method']]}, {_label(each)}"
            low, high = each["psnr"]["confidence"]
            rows.append(
                f"| {'**' if ours else ''}{title}{'**' if ours else ''} | {each['mac_share']:.1%} | "
                f"{each['psnr']['mean']:.1f} ± {(high - low) / 2:.1f} | {each['psnr']['p5']:.1f} | "
                f"{each['right']['mean']:.0%} |"
            )
        parts += [
            f"### {name}, {result['steps']} steps, guidance {USUAL:g}",
            f"No caching has {reference:.0%} right objects. Ours are in bold.",
            "\n".join(rows),
        ]
    return "\n\n".join(parts)


def plot_frontier(path: Path = IMAGES / "frontier.png") -> None:
    """PSNR against cost at guidance 7.5 and 2, a panel for each scheduler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.4), layout="constrained")
    scales = (USUAL, GUIDANCES[-1])
    for row, guidance in zip(figure.subplots(2, len(SOLVERS)), scales, strict=True):
        for axes, (solver, name) in zip(row, SOLVERS.items(), strict=True):
            if not _path(solver, guidance).is_file():
                continue
            result = _read(solver, guidance)
            for method in (each for each in COLOURS if each != "peer"):
                _line(axes, of_method(result, method), method)
            axes.set_title(f"{name}, {result['steps']} steps, guidance {guidance:g}", loc="left", fontsize=10)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("PSNR against no caching, dB")
    for axes in figure.axes[len(SOLVERS) :]:
        axes.set_xlabel("multiply-accumulates of the U-Net, share")
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


def plot_compared(path: Path = IMAGES / "compared.png") -> None:
    """PSNR and right objects against cost at guidance 7.5: ours as lines, peers as named points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9.5), layout="constrained")
    for axes, (solver, name) in zip(figure.subplots(2, 2).flat, SOLVERS.items(), strict=True):
        result = _read(solver, USUAL)
        for method in IN_README:
            _line(axes, of_method(result, method), method)
        peers = of_method(result, "peer")
        axes.plot(*_points(peers), "x", color="black", markersize=5, label="other projects' rules")
        for each in (each for each in peers if each["mac_share"] <= _HIGHEST_COST):
            axes.annotate(
                each["label"], (each["mac_share"], each["psnr"]["mean"]), (3, 3), textcoords="offset points", fontsize=6
            )
        axes.set_title(f"{name}, {result['steps']} steps, guidance {USUAL:g}", loc="left")
        axes.set_xlabel("multiply-accumulates of the U-Net, share")
        axes.set_ylabel("PSNR against no caching, dB")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


def _line(axes: Any, cases: list[dict[str, Any]], method: str) -> None:
    if cases:
        style = "s--" if method == "fewer steps" else "*-" if method == "tuned plan" else "o-"
        axes.plot(*_points(cases), style, color=COLOURS[method], markersize=4, label=METHODS[method].strip("*"))


def _points(cases: Iterable[dict[str, Any]]) -> tuple[list[float], list[float]]:
    listed = [each for each in cases if each["mac_share"] <= _HIGHEST_COST]
    return [each["mac_share"] for each in listed], [each["psnr"]["mean"] for each in listed]
