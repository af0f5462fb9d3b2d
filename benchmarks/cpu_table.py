"""The results of `benchmarks.cpu_steps`, `cpu_runtimes`, `cpu_memory_format` and `cpu_dtypes` as Markdown, for
docs/cpu.md."""

from __future__ import annotations

from typing import Any

__all__ = ["cpu_page"]

_LAYERS = {"convolution": "convolution", "linear": "linear layer", "attention": "attention"}


def cpu_page(
    steps: dict[str, Any], runtimes: list[dict[str, Any]], formats: dict[str, Any], dtypes: dict[str, Any]
) -> str:
    """What each setting gives on a CPU, in which runtime, memory format and dtype.

    Args:
        steps: of `cpu_steps`.
        runtimes: of `cpu_runtimes`, one for each dtype.
        formats: of `cpu_memory_format`.
        dtypes: of `cpu_dtypes`.
    """
    parts = [_steps(steps), *map(_runtimes, runtimes), _int8(runtimes), _sdxl(runtimes), _formats(formats)]
    return "\n\n".join([*parts, _dtypes(dtypes)])


def _threads(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


def _steps(result: dict[str, Any]) -> str:
    rows = ["| | seconds an image | speed-up |", "|---|---|---|"]
    for row in result["rows"]:
        low, high = row["speed_up_spread"]
        rows.append(f"| {row['name']} | {row['median']:.1f} | {row['speed_up']:.2f}× ({low:.2f}–{high:.2f}) |")
    return (
        "## Step by step\n\n"
        f"Whole pipeline calls of {result['model'].replace('sd15', 'Stable Diffusion 1.5')}, {result['pixels']} px, "
        f"{result['steps']} DDIM steps, guidance {result['guidance']:g}, {result['dtype']}, on "
        f"{_threads(result['threads'])} of an {result['machine']['cpu']}: medians of {result['rounds']} rounds in "
        "which all ran in turn, and the smallest and largest speed-up "
        "([cpu_steps.json](../benchmarks/cpu_steps.json)).\n\n" + "\n".join(rows)
    )


def _runtimes(result: dict[str, Any]) -> str:
    rows = [
        "| runtime | full step | shallow step | shallow / full | no caching | I=3 | I=5 "
        "| reference package, I=3, I=5 |",
        "|---" * 8 + "|",
    ]
    for runtime in dict.fromkeys(row["runtime"] for row in result["rows"]):
        found = {(row["method"], row["settings"]): row for row in result["rows"] if row["runtime"] == runtime}
        plain, cached = found["no caching", "no caching"], found["DeepCache", "I=3"]
        reference = [found.get(("reference package", name)) for name in ("I=3", "I=5")]
        cells = [
            runtime,
            _time(_median(plain["full_step"])),
            _time(_median(cached["shallow_step"])),
            f"{cached['shallow_over_full']:.3f}",
            _speed_up(plain),
            _speed_up(cached),
            _speed_up(found["DeepCache", "I=5"]),
            ", ".join(_speed_up(row) for row in reference if row is not None),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    fewer = [row for row in result["rows"] if row["method"] == "fewer steps" and row["runtime"] == "eager"]
    steps = {"1 steps": "1 step"}
    shown = ", ".join(f"{steps.get(row['settings'], row['settings'])} {_speed_up(row)}" for row in fewer)
    model = result["unet"].removesuffix(", random weights")
    name = f"cpu_runtimes_{'shapes' if model == 'shapes' else result['dtype']}.json"
    shown_model = {"sd15": "Stable Diffusion 1.5 with random weights", "shapes": "the bundled model"}[model]
    return (
        f"## {shown_model[0].upper()}{shown_model[1:]}, {result['dtype']}\n\n"
        f"The U-Net alone, {result['pixels']} px, batch {result['batch']}, loops of {result['steps']} calls, branch 0, "
        f"on {_threads(result['threads'])} of an "
        f"{result['machine']['cpu']}. Speed-ups of whole loops are over eager PyTorch without caching: medians of "
        f"{result['rounds']} rounds in which all ran in turn, and the smallest and largest. By multiply-accumulates a "
        f"shallow step is {result['shallow_share_of_macs']:.3f} of a full one. Fewer steps without caching, eager: "
        f"{shown} ([{name}](../benchmarks/{name})).\n\n" + "\n".join(rows)
    )


def _ratio(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _speed_up(row: dict[str, Any]) -> str:
    low, high = row["speed_up_spread"]
    return f"{row['speed_up']:.2f}× ({low:.2f}–{high:.2f})"


def _int8(results: list[dict[str, Any]]) -> str:
    found = next(result["int8_fidelity"] for result in results if "int8_fidelity" in result)
    low, high = found["psnr"]["confidence"]
    return (
        f"**Weights of 8 bits.** Images of the bundled model with `--int8` against the same graphs in float32: PSNR "
        f"{found['psnr']['mean']:.1f} dB (95 % interval {low:.1f} to {high:.1f}; {found['prompts']} prompts, "
        f"{found['steps']} steps, guidance {found['guidance']:g}, {found['scheduler']})."
    )


def _sdxl(results: list[dict[str, Any]]) -> str:
    found = next(result["sdxl"] for result in results if "sdxl" in result)
    low, high = found["spread"]
    return (
        f"**SDXL.** A shallow step at branch 0 takes {found['shallow_over_full']:.3f} of a full one ({low:.3f} to "
        f"{high:.3f}; {found['pixels']} px, {found['dtype']}, eager), {found['share_of_macs']:.3f} by "
        "multiply-accumulates."
    )


def _formats(result: dict[str, Any]) -> str:
    parts = list(result["cells"][0]["parts"])
    rows = [f"| instructions | dtype | {' | '.join(parts)} |", "|---" * (2 + len(parts)) + "|"]
    for cell in result["cells"]:
        found = [cell["parts"][part] for part in parts]
        shown = [f"{each['ratio']:.2f} ({each['ratio_smallest']:.2f}–{each['ratio_largest']:.2f})" for each in found]
        rows.append(f"| {cell['level']} | {cell['dtype']} | {' | '.join(shown)} |")
    return (
        "## channels_last\n\n"
        f"Time with `channels_last` as a share of that without: Stable Diffusion 1.5 with random weights at "
        f"{result['pixels']} px, guided, on one core of an {result['machine']['cpu']} with PyTorch's libraries limited "
        f"to the instructions of a level; medians of {result['rounds']} rounds in which both ran in turn, and the "
        "smallest and largest. It pays with AMX in bfloat16, most of all for the VAE, and not everywhere "
        "([cpu_memory_format.json](../benchmarks/cpu_memory_format.json)).\n\n" + "\n".join(rows)
    )


def _dtypes(result: dict[str, Any]) -> str:
    rows = ["| instructions | layer | float32 | bfloat16 | float16 |", "|---|---|---|---|---|"]
    for level, found in result["levels"].items():
        for layer, name in _LAYERS.items():
            cells = found["layers"][layer]
            shown = [f"{cells[dtype]['median_ms']:.0f} ms" for dtype in ("float32", "bfloat16", "float16")]
            shown[1:] = [
                f"{text} ({_ratio(cells[dtype]['to_float32'])}×)"
                for text, dtype in zip(shown[1:], ("bfloat16", "float16"), strict=True)
            ]
            rows.append(f"| {level} | {name} | {' | '.join(shown)} |")
    return (
        "## Dtypes\n\n"
        f"Layers of Stable Diffusion 1.5 at 512 px on one core of an {result['machine']['cpu']}, with PyTorch's "
        "libraries limited to the instructions of a level; medians, and the ratio to float32. A level is not another "
        "processor: compare within a level ([cpu_dtypes.json](../benchmarks/cpu_dtypes.json)).\n\n" + "\n".join(rows)
    )
