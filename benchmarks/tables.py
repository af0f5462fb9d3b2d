"""Writes the results in README.md from the result files, so that no figure there is typed by hand.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: made by python -m benchmarks.tables -->", "<!-- end of results -->"


def main() -> None:
    before, _, after = split(README.read_text(encoding="utf-8"))
    README.write_text(before + results() + after, encoding="utf-8")


def split(text: str) -> tuple[str, str, str]:
    """The README before, within and after the place of the results."""
    before, rest = text.split(BEGIN)
    within, after = rest.split(END)
    return before + BEGIN, within, END + after


def results() -> str:
    """The results as Markdown."""
    parity, cost, fidelity = (_read(name) for name in ("parity", "sd15_cpu", "fidelity"))
    return "\n\n".join(["", _parity(parity), _cost(cost), _fidelity(fidelity), ""])


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _parity(result: dict[str, Any]) -> str:
    return (
        f"**The same bits as the reference package** in {result['identical']} of {result['of']} runs: "
        f"{len(result['summary'])} kinds of U-Net, every skip branch, intervals 1 to 6, sizes that are a multiple of "
        "the U-Net's factor and, where diffusers takes them, sizes that are not "
        "([parity.json](benchmarks/parity.json))."
    )


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
        f"**Fidelity to the pipeline without caching.** The model in the box, {len(result['prompts'])} held-out "
        f"prompts, {result['steps']} DDIM steps, guidance {result['guidance']:g}. Each cell: share of the U-Net's "
        "multiply-accumulates, PSNR, SSIM; below, *fewer steps without caching* at a like cost "
        "([fidelity.json](benchmarks/fidelity.json)):"
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
