"""The figures of docs/batch.md: images per hour and their cost, from published and measured seconds."""

from __future__ import annotations

from typing import Any

from DeepCache.report.published import PUBLISHED, PUBLISHED_PAGE, PUBLISHED_STEPS

__all__ = ["batch_costs", "batch_tried", "cost_of_thousand", "images_per_hour"]


def images_per_hour(batch: int, seconds: float) -> float:
    """Images that one worker generates in an hour.

    Args:
        batch: images in one pipeline call.
        seconds: what that call takes.
    """
    return 3600 * batch / seconds


def cost_of_thousand(batch: int, seconds: float, price: float) -> float:
    """The cost of 1,000 images.

    Args:
        batch: images in one pipeline call.
        seconds: what that call takes.
        price: of one worker's hour.
    """
    return price * 1000 / images_per_hour(batch, seconds)


def batch_costs(measured: dict[str, Any]) -> str:
    """Images per hour against the interval, as Markdown.

    Args:
        measured: the result of `deepcache benchmark` on the CPU.
    """
    return "\n\n".join([_published(), _measured(measured)])


def batch_tried(stress: dict[str, Any], memory: dict[str, Any]) -> str:
    """What came of batches that were killed at random, and of long ones, as Markdown.

    Args:
        stress: the result of `tests.batch.stress`.
        memory: the result of `benchmarks.batch_memory`.
    """
    kinds = len(stress["by_kind"])
    killed = (
        f"**Killed at random.** {stress['faults_injected']} faults of {kinds} kinds at random moments (kill -9 of a "
        "worker, of the driver, of everything; full disks; files cut short; signals), with both engines, in "
        f"{sum(stress['rounds'].values())} jobs of {stress['rows']:,} rows: {stress['rows_lost']} rows lost, "
        f"{stress['rows_twice']} generated twice ([batch_stress.json](../benchmarks/batch_stress.json))."
    )
    runs = {(run["engine"], run["rows"]): run for run in memory["runs"]}
    parts = []
    for engine, name in (("local", "in one process"), ("ray", "with two Ray workers")):
        some, many = (runs[engine, rows] for rows in (10_000, 100_000))
        parts.append(
            f"{name} {many['per_second']:,.0f} rows a second, and the driver grows by "
            f"{many['driver']['growth_drawing_mib']:.0f} MiB from the 20,000th row to the last "
            f"(10,000 rows: {some['driver']['growth_drawing_mib']:.0f} MiB from the 2,000th)"
        )
    long = (
        "**Long ones.** 100,000 rows of a worker that generates nothing, which leaves the overhead: "
        + "; ".join(parts)
        + ". Writing the manifest takes "
        + " and ".join(f"{_manifest_mib(runs[engine, 100_000]):.0f} MiB" for engine in ("local", "ray"))
        + " more ([batch_memory.json](../benchmarks/batch_memory.json))."
    )
    return f"{killed}\n\n{long}"


def _manifest_mib(run: dict[str, Any]) -> float:
    return float(run["driver"]["at_the_end_mib"] - run["driver"]["at_the_last_row_mib"])


def _published() -> str:
    settings = list(next(iter(PUBLISHED.values())).by_setting)
    heads = ["no caching", *(f"I={interval} B={branch}" for interval, branch in settings)]
    rows = ["| pixels | batch | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for (pixels, batch), row in sorted(PUBLISHED.items()):
        seconds = [row.original, *(row.by_setting[setting].seconds for setting in settings)]
        cells = [f"{images_per_hour(batch, each):,.0f} ({_thousand(batch, each)})" for each in seconds]
        rows.append(f"| {pixels} | {batch} | " + " | ".join(cells) + " |")
    lead = (
        f"**Published.** Images per GPU-hour of Stable Diffusion 2.1 in {PUBLISHED_STEPS} steps on an RTX A5000, "
        f"worked out from the seconds a batch in the [documentation of diffusers]({PUBLISHED_PAGE}), which are of the "
        "reference package; in brackets the cost of 1,000 images at 1 per hour. I is the interval, "
        "B the branch:"
    )
    return f"{lead}\n\n" + "\n".join(rows)


def _measured(result: dict[str, Any]) -> str:
    (cell,) = [cell for cell in result["cells"] if cell["scope"] == "pipeline"]
    steps, batch = result["settings"]["steps"], cell["batch"]
    cores = "one core" if result["settings"]["threads"] == 1 else f"{result['settings']['threads']} cores"
    lead = (
        f"**Measured by us.** Stable Diffusion 1.5 at full size with random weights, {cell['width']} px, batch "
        f"{batch}, {cell['dtype']}, {steps} steps, on {cores} of an {result['machine']['cpu']} "
        "([sd15_512_cpu.json](../benchmarks/sd15_512_cpu.json)):"
    )
    rows = ["| | seconds | images per hour | cost of 1,000 images at 1 per hour |", "|---|---|---|---|"]
    for row in cell["rows"]:
        if row["method"] not in ("no caching", "DeepCache"):
            continue
        name = "no caching" if row["method"] == "no caching" else row["variant"]
        rows.append(
            f"| {name} | {row['median']:.1f} | {images_per_hour(batch, row['median']):.0f} | "
            f"{_thousand(batch, row['median'])} |"
        )
    return f"{lead}\n\n" + "\n".join(rows)


def _thousand(batch: int, seconds: float) -> str:
    return f"{cost_of_thousand(batch, seconds, price=1.0):.2f}"
