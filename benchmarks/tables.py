"""Writes the results in README.md and in the pages of docs from the result files, so that no figure there is typed by
hand, and the keys of result files in docs/benchmarks.md from their schemas; plots the frontiers.

    python -m benchmarks.tables
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.batch_table import batch_costs, batch_tried
from benchmarks.comfyui_table import compared_in_comfyui, conditions_in_comfyui
from benchmarks.cpu_table import cpu_page
from benchmarks.families_table import families_page
from benchmarks.frontier_tables import compared_page, guidance_page, in_readme, plot_compared, plot_frontier
from benchmarks.host_work_table import host_work
from benchmarks.shallow_step_table import shallow_step
from DeepCache.bench.result_file import ABLATION_FORMAT, BENCHMARK_FORMAT, schema
from DeepCache.files import read_json_text

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
SCHEDULES = HERE.parent / "docs" / "schedules.md"
BETWEEN = HERE.parent / "docs" / "between-the-steps.md"
COMPILING = HERE.parent / "docs" / "compiling.md"
SHALLOW = HERE.parent / "docs" / "shallow-step.md"
BATCH = HERE.parent / "docs" / "batch.md"
MEASURING = HERE.parent / "docs" / "benchmarks.md"
GUIDANCE = HERE.parent / "docs" / "guidance.md"
COMPARED = HERE.parent / "docs" / "compared.md"
LAYOUTS = HERE.parent / "docs" / "layouts.md"
CPU = HERE.parent / "docs" / "cpu.md"
COMFYUI = HERE.parent / "docs" / "comfyui.md"
BEGIN, END = "<!-- results: made by python -m benchmarks.tables -->", "<!-- end of results -->"


def main() -> None:
    for path, text in pages().items():
        before, _, after = split(path.read_text(encoding="utf-8"))
        path.write_text(before + text + after, encoding="utf-8")
    plot_frontier()
    plot_compared()


def pages() -> dict[Path, str]:
    """The results as Markdown, by the page that has them."""
    fidelity = _fidelity(_read("fidelity")).replace("](benchmarks/", "](../benchmarks/")
    keys = _keys(schema(BENCHMARK_FORMAT)) + "\n\n" + _keys(schema(ABLATION_FORMAT), schema(BENCHMARK_FORMAT))
    between = host_work(_read("host_work"))
    compiled = _compiled(_read("compiled_cpu"))
    shallow = shallow_step(_read("shallow_step")) + "\n\n" + _whole_pipelines()
    batch = batch_costs(_read("sd15_512_cpu")) + "\n\n" + batch_tried(_read("batch_stress"), _read("batch_memory"))
    comfyui = compared_in_comfyui(_read("comfyui")) + "\n\n" + conditions_in_comfyui(_read("comfyui_conditions"))
    runtimes = [_read(name) for name in ("cpu_runtimes_float32", "cpu_runtimes_bfloat16", "cpu_runtimes_shapes")]
    cpu = cpu_page(_read("cpu_steps"), runtimes, _read("cpu_memory_format"), _read("cpu_dtypes"))
    made = {
        CPU: cpu,
        GUIDANCE: guidance_page(),
        COMPARED: compared_page(),
        COMFYUI: comfyui,
        LAYOUTS: families_page(_read("families")),
        SCHEDULES: fidelity,
        BETWEEN: between,
        MEASURING: keys,
        COMPILING: compiled,
        SHALLOW: shallow,
        BATCH: batch,
    }
    return {README: results()} | {page: f"\n\n{text}\n\n" for page, text in made.items()}


def split(text: str) -> tuple[str, str, str]:
    """A page before, within and after the place of its results."""
    before, rest = text.split(BEGIN)
    within, after = rest.split(END)
    return before + BEGIN, within, END + after


def results() -> str:
    """The results in the README."""
    return f"\n\n{in_readme()}\n\n{_compiled_in_short(_read('compiled_cpu'))}\n\n"


def _whole_pipelines() -> str:
    """Latency, memory and parity, for a page of docs."""
    parts = [_speed(_read("sd15_512_cpu")), _cost(_read("sd15_cpu")), _parity(_read("parity"))]
    return "\n\n".join(parts).replace("](benchmarks/", "](../benchmarks/").replace("](docs/", "](")


def _read(name: str) -> dict[str, Any]:
    (path,) = HERE.glob(f"{name}.json*")
    result: dict[str, Any] = json.loads(read_json_text(path, "result"))
    return result


def _parity(result: dict[str, Any]) -> str:
    return (
        f"**The same bits as the reference package** in {result['identical']} of {result['of']} runs: "
        f"{len(result['summary'])} kinds of U-Net, every skip branch, intervals 1 to 6, sizes that are a multiple of "
        "the U-Net's factor and, where diffusers takes them, sizes that are not "
        "([parity.json.gz](benchmarks/parity.json.gz))."
    )


def _speed(result: dict[str, Any]) -> str:
    settings, grid = result["settings"], result["settings"]["grid"]
    (size,), (batch,), (dtype,) = grid["sizes"], grid["batches"], grid["dtypes"]
    lead = (
        f"**Latency.** Stable Diffusion 1.5 at full size with random weights, {size[0]} px, batch {batch}, {dtype}, on "
        f"{_threads(settings['threads'])} of an {result['machine']['cpu']}. Of {settings['steps']} steps about the "
        "same share are full as of 50 ([how and why](docs/benchmarks.md#how-many-steps-it-takes)). Seconds and "
        "speed-ups are medians of rounds in which all ran in turn; the limit is the U-Net's, by its "
        "multiply-accumulates "
        "([sd15_512_cpu.json](benchmarks/sd15_512_cpu.json))."
    )
    cells = {cell["scope"]: cell for cell in result["cells"]}
    rows = [
        "| | whole pipeline | | U-Net alone | | limit |",
        "|---|---|---|---|---|---|",
    ]
    for whole, alone in zip(cells["pipeline"]["rows"], cells["unet"]["rows"], strict=True):
        name = {"no caching": "no caching", "fewer steps": f"*{whole['variant']}, no caching*"}.get(
            whole["method"], f"{whole['method']}, {whole['variant']}"
        )
        figures = [f"{row['median']:.1f} s | {row['speed_up']:.2f}×" for row in (whole, alone)]
        rows.append(f"| {name} | {' | '.join(figures)} | {alone['limit']:.2f}× |")
    closing = (
        "No figure of a GPU is here yet; [benchmarks/gpu.py](benchmarks/gpu.py) measures the published table on any "
        "CUDA card."
    )
    return "\n\n".join([lead, "\n".join(rows), closing])


def _compiled(result: dict[str, Any]) -> str:
    lead = (
        f"{_compiled_unet(result)}, without a GPU: {result['steps']} steps of {result['variant']} "
        "(I is the interval, B the branch), of which a third are full. Medians of rounds in which all ran in turn. A "
        "speed-up is over no caching in the same mode, compiled against compiled; the limit by multiply-accumulates is "
        f"{result['limit']:.2f}×. Cold start: what the first run takes beyond the second, with an empty cache of "
        "compiled code ([compiled_cpu.json](../benchmarks/compiled_cpu.json))."
    )
    rows = [
        "| | | seconds | speed-up | of the limit | over eager without caching | cold start |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        share = "" if row["share_of_limit"] is None else f"{row['share_of_limit']:.0%}"
        cold = result["cold_start"][row["mode"]]["cold_start"]
        shown = f"{cold:.0f} s" if row["method"] == "DeepCache" and row["mode"] != "eager" else ""
        rows.append(
            f"| {row['mode']} | {row['method']} | {row['median']:.2f} | {row['speed_up']:.2f}× | {share} | "
            f"{row['speed_up_over_eager']:.2f}× | {shown} |"
        )
    return "\n\n".join([lead, "\n".join(rows)])


def _compiled_in_short(result: dict[str, Any]) -> str:
    whole = next(row for row in result["rows"] if (row["method"], row["mode"]) == ("DeepCache", "compiled"))
    return (
        f'**Compiled against compiled.** {_compiled_unet(result)}: with `compile="default"` and {result["variant"]} '
        f"it is {whole['speed_up']:.2f}× as fast as compiled without caching, {whole['share_of_limit']:.0%} of the "
        f"limit, and {whole['speed_up_over_eager']:.2f}× as fast as it comes ([Compiling](docs/compiling.md), "
        "[compiled_cpu.json](benchmarks/compiled_cpu.json))."
    )


def _compiled_unet(result: dict[str, Any]) -> str:
    return (
        f"Stable Diffusion 1.5's U-Net at full size with random weights, {result['pixels']} px, batch "
        f"{result['batch']}, {result['dtype']}, on {_threads(result['threads'])} of an {result['machine']['cpu']}"
    )


def _threads(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


def _keys(described: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """The keys of a result file as a list, from its schema; of those before, only the names."""
    lines = [f"### {described['title'].replace('A result', 'The result')}", "", described["description"], ""]
    known = before["properties"] if before is not None else {}
    same = [name for name, node in described["properties"].items() if known.get(name) == node]
    if same:
        lines += [f"- {', '.join(f'`{name}`' for name in same)}: as above."]

    def add(node: Mapping[str, Any], depth: int) -> None:
        for key, value in node.get("properties", {}).items():
            if node is described and key in same:
                continue
            lines.append(f"{'  ' * depth}- `{key}`: {value['description']}")
            if "const" in value:
                lines[-1] += f" `{value['const']}`."
            elif "enum" in value:
                lines[-1] += f" One of {', '.join(f'`{option}`' for option in value['enum'])}."
            elif "$ref" in value:
                lines[-1] += f" A {value['$ref'].rpartition('/')[2]}."
            add(value.get("items", {}) if value.get("type") == "array" else value, depth + 1)

    add(described, 0)
    for name, definition in described.get("$defs", {}).items():
        lines += ["", f"A {name}:", ""]
        add(definition, 0)
    return "\n".join(lines)


def _cost(result: dict[str, Any]) -> str:
    ours, theirs = (result["summary"][name] for name in ("ours", "reference"))
    rows = [
        "| | DeepCache | reference package | limit |",
        "|---|---|---|---|",
        f"| shallow step / full step, SD 1.5, {result['pixels']} px, CPU, median of pairs "
        f"| {ours['ratio_median']:.3f} | {theirs['ratio_median']:.3f} "
        f"| {result['multiply_accumulates']['ratio']:.3f} (multiply-accumulates) |",
    ]
    names = {"sd15": "SD 1.5", "sdxl": "SDXL"}
    for kept in result["bytes_kept"]:
        how = "measured" if kept["how"] == "measured" else "from shapes"
        rows.append(
            f"| kept between steps, {names[kept['unet']]}, {kept['pixels']} px, {kept['dtype']}, "
            f"batch {kept['batch']}, {how} | {kept['ours'] / 1e6:.1f} MB | {kept['reference'] / 1e6:.1f} MB | |"
        )
    machine = f"{result['machine']['cores']} cores of an {result['machine']['cpu']}"
    lead = (
        f"**Close to the limit, one tensor of memory.** A U-Net of full size with random weights, measured in turn in "
        f"one run on {machine} ([sd15_cpu.json](benchmarks/sd15_cpu.json)):"
    )
    return lead + "\n\n" + "\n".join(rows)


def _fidelity(result: dict[str, Any]) -> str:
    plain = {cell["steps"]: cell for cell in result["plain"]}
    branches = sorted({cell["branch"] for cell in result["cached"]})
    rows = [
        "| | " + " | ".join(f"B={branch}" for branch in branches) + " |",
        "|---" * (1 + len(branches)) + "|",
    ]
    for interval in sorted({cell["interval"] for cell in result["cached"]}):
        cells = {cell["branch"]: cell for cell in result["cached"] if cell["interval"] == interval}
        rows.append(f"| I={interval} | " + " | ".join(_cell(cells[branch], plain) for branch in branches) + " |")
    lead = (
        f"**Fidelity to the pipeline without caching.** The bundled model, {len(result['prompts'])} held-out "
        f"prompts, {result['steps']} DDIM steps, guidance {result['guidance']:g}. Each cell: share of the U-Net's "
        "multiply-accumulates, PSNR, SSIM; below, *fewer steps without caching* at a like cost. I is the interval, B "
        "the branch ([fidelity.json.gz](benchmarks/fidelity.json.gz)):"
    )
    return lead + "\n\n" + "\n".join(rows)


def _cell(cell: dict[str, Any], plain: dict[int, Any]) -> str:
    steps = cell["plain_steps_of_like_cost"]
    text = f"{cell['mac_share']:.0%}: **{_means(cell)}**"
    return text + (f"<br>*{steps} steps: {_means(plain[steps])}*" if steps in plain else "")


def _means(cell: dict[str, Any]) -> str:
    return f"{cell['psnr']['mean']:.1f} dB, {cell['ssim']['mean']:.4f}"


if __name__ == "__main__":
    main()
