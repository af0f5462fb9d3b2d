"""The results of `benchmarks.host_work` as Markdown, for docs/between-the-steps.md."""

from __future__ import annotations

from typing import Any

UNETS = {"tiny": "tiny", "sd15": "SD 1.5", "sdxl": "SDXL"}
METHODS = {"re-use": "re-use", "linear": "linear forecast", "linear, guidance reuse": "linear forecast, guidance reuse"}
KINDS = {"full": "full step", "shallow": "shallow step", "first": "first call of a run"}
PIPELINES = {"StableDiffusionPipeline": "SD", "StableDiffusionXLPipeline": "SDXL"}


def host_work(result: dict[str, Any]) -> str:
    """The work of DeepCache, the compiler and schedulers between steps, their waits, and settings that avoid them."""
    return "\n\n".join([_own(result), _compiled(result), _schedulers(result), _settings(result), _pipelines(result)])


def _own(result: dict[str, Any]) -> str:
    cells = {(row["kind"], row["method"], row["unet"]): row for row in result["deepcache"]}
    modules = {row["unet"]: row["modules"] for row in result["deepcache"]}
    heads = [f"{name}, {modules[unet]} modules" for unet, name in UNETS.items()]
    rows = [f"| | | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for kind, called in KINDS.items():
        for method, name in METHODS.items():
            found = [cells[kind, method, unet] for unet in UNETS]
            rows.append(f"| {called} | {name} | {' | '.join(map(_median_and_spread, found))} |")
    lead = (
        "**DeepCache's own work**, in microseconds of a U-Net call beyond what the call takes without it: median of "
        f"{result['rounds']} runs of 50 steps, and the smallest and largest. The layers of the U-Nets do nothing; "
        f"processor time, {result['machine']['cpu']} ([host_work.json.gz](../benchmarks/host_work.json.gz))."
    )
    return lead + "\n\n" + "\n".join(rows)


def _compiled(result: dict[str, Any]) -> str:
    cells = {(row["kind"], row["method"], row["unet"]): row for row in result["compiled"]}
    unets = list(dict.fromkeys(row["unet"] for row in result["compiled"]))
    rows = [f"| | | {' | '.join(UNETS[unet] for unet in unets)} |", "|---" * (2 + len(unets)) + "|"]
    for kind, method in sorted(dict.fromkeys(each[:2] for each in cells), key=lambda each: each[0]):
        found = [cells[kind, method, unet] for unet in unets]
        rows.append(f"| {KINDS[kind]} | {method} | {' | '.join(map(_median_and_spread, found))} |")
    runs = len(result["compiled"][0]["every_run"])
    lead = (
        "**A compiled call before its graph runs**, in microseconds: the compiler's guards, handing the graph its "
        "weights, and DeepCache's hooks. The graphs do nothing; batch 2, `cache_interval=2`, so that each step meets "
        f"the graph of the other kind first; median of {runs} runs of 6 steps without the first, and the smallest and "
        "largest."
    )
    return lead + "\n\n" + "\n".join(rows)


def _schedulers(result: dict[str, Any]) -> str:
    versions = result["versions"]
    rows = [
        "| scheduler | waits of the first step | of a later one | with noise from the host | operations | µs | where |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["schedulers"], key=lambda row: (max(row["waits"][1:]), row["microseconds"]["one value"])):
        options = "".join(f", `{name}={value!r}`" for name, value in row["options"].items())
        noise = max(row["waits_with_generator_on_host"][1:])
        cells = [
            f"`{row['class']}`{options}",
            row["waits"][0],
            max(row["waits"][1:]),
            noise if noise > max(row["waits"][1:]) else "",
            _range(row["operations"][1:]),
            f"{row['microseconds']['one value']:.0f}",
            _places(row["places"]),
        ]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    lead = (
        f"**Schedulers**, diffusers {versions['diffusers']}. Waits of `step` and `scale_model_input`, the most of any "
        "step after the first; with a generator on the host where that makes more of them; operations that a step "
        "gives the device; microseconds of a step on the CPU with a single value as latents, so that next to nothing "
        "is computed; and the lines that wait at more than one step."
    )
    return lead + "\n\n" + "\n".join(rows)


def _settings(result: dict[str, Any]) -> str:
    classes = {row["name"]: row["class"] for row in result["schedulers"]}
    rows = ["| scheduler | setting, or another scheduler | waits of a step | with it | image |", "|---" * 5 + "|"]
    for row in result["settings"]:
        before, after = (max(row[key][1:]) for key in ("waits", "waits_with_it"))
        apart, image = row["levels_apart"], "another" if after < before else ""
        if apart is not None:
            image = f"within {apart:.3f} of 255 levels" if apart else "the same"
        rows.append(f"| `{classes[row['scheduler']]}` | {row['setting']} | {before} | {after} | {image} |")
    lead = "**Settings**, in a `StableDiffusionPipeline`, all that its steps wait for counted:"
    return lead + "\n\n" + "\n".join(rows)


def _pipelines(result: dict[str, Any]) -> str:
    cells = {(row["method"], row["pipeline"], row["scheduler"]): row["waits"] for row in result["pipelines"]}
    columns = list(dict.fromkeys((row["pipeline"], row["scheduler"]) for row in result["pipelines"]))
    heads = [f"{PIPELINES[pipeline]}, {scheduler}" for pipeline, scheduler in columns]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for method, name in {"no caching": "no caching", **METHODS}.items():
        waits = [cells[(method, *column)] for column in columns]
        rows.append(f"| {name} | {' | '.join(f'{each[0]}, then {max(each[1:])}' for each in waits)} |")
    lead = "**Whole pipelines**: waits of the first step, and the most of a later one."
    return lead + "\n\n" + "\n".join(rows)


def _median_and_spread(row: dict[str, Any]) -> str:
    low, high = row["spread"]
    return f"{row['microseconds']:.0f} ({low:.0f}–{high:.0f})"


def _places(places: list[dict[str, Any]]) -> str:
    lines: dict[str, list[str]] = {}
    for place in places:
        if place["times"] > 1:
            name, line = place["place"].split(":")
            lines.setdefault(name, []).append(line)
    return "; ".join(f"`{name}` {', '.join(sorted(found, key=int))}" for name, found in lines.items())


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}–{max(values)}"
