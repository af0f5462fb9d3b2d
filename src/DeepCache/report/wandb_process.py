"""The process that logs to Weights & Biases; `log_to_wandb` starts it, and says what to log on its standard input."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from DeepCache.report.fidelity import fidelity_groups
from DeepCache.report.findings import finding
from DeepCache.report.frontier_chart import frontier_chart
from DeepCache.report.gallery import AMPLIFIED, Gallery, gallery
from DeepCache.report.heat_map import heat_map_charts
from DeepCache.report.numerals import seconds
from DeepCache.report.sources import Source, read_sources
from DeepCache.report.speed import speed_tables
from DeepCache.report.speed_chart import speed_charts
from DeepCache.report.tables import Table, fidelity_table, measurements_table, speed_table
from DeepCache.report.writing import default_title

__all__: list[str] = []

_SECONDS_TO_REACH_SERVER = 30.0
_ORIGIN = ("format", "command", "date", "machine", "versions", "seed", "device", "settings")


def _main() -> None:
    job = json.load(sys.stdin)
    sources = read_sources([Path(path) for path in job["paths"]])
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        init_timeout=_SECONDS_TO_REACH_SERVER,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=job["project"],
        name=job["title"] or default_title(sources),
        notes="\n\n".join(map(finding, sources)),
        job_type="report",
        dir=job["folder"],
        config={"results": {source.name: {key: source.result[key] for key in _ORIGIN} for source in sources}},
        settings=settings,
    )
    # One step, whatever the number of results.
    run.log({_key(source.name, *place): value for source in sources for place, value in _logged(source)})
    url = None if run.offline else run.url
    folder = Path(run.dir).parent
    run.finish()
    print(json.dumps({"folder": str(folder), "url": url}))


def _key(*names: str) -> str:
    """A name for the panels and a path for the files of wandb, which no name in a result leads out of the folder."""
    return "/".join(re.sub(r"[^\w ,=-]+", "-", name) for name in names)


def _logged(source: Source) -> Iterator[tuple[tuple[str, str], Any]]:
    """All of a result, each with the table or group that it belongs to and its own name."""
    if source.is_benchmark:
        for number, table in enumerate(speed_tables(source), start=1):
            yield (table.title, "speed"), _table(speed_table(table))
            yield (table.title, "every measurement"), _table(measurements_table(table))
            for chart in speed_charts(table, f"chart-{number}"):
                yield (table.title, chart.title), _picture(chart.png(), chart.title)
        return
    for number, group in enumerate(fidelity_groups(source), start=1):
        if group.reference is None:
            continue
        yield (group.title, "every setting"), _table(fidelity_table(group))
        frontier = frontier_chart(group, f"frontier-{number}")
        for chart in [*([frontier] if frontier is not None else []), *heat_map_charts(group, f"map-{number}")]:
            yield (group.title, chart.title), _picture(chart.png(), chart.title)
        pictures = list(_samples(gallery(source, group)))
        if pictures:
            yield (group.title, "samples"), pictures


def _table(table: Table) -> wandb.Table:
    return wandb.Table(columns=list(table.columns), data=table.rows)


def _picture(png: bytes, caption: str) -> wandb.Image:
    with Image.open(io.BytesIO(png)) as image:
        return wandb.Image(image.convert("RGB"), caption=caption)


def _samples(found: Gallery) -> Iterator[wandb.Image]:
    for prompt in found.prompts:
        drawn = f"{prompt.text} (seed {prompt.seed})"
        assert found.original_seconds is not None
        yield wandb.Image(
            prompt.original.image, caption=f"{drawn}: original, {seconds(found.original_seconds)} s per image"
        )
        for sample in prompt.samples:
            named = f"{drawn}: {sample.label}"
            yield wandb.Image(sample.cached.image, caption=f"{named}, {seconds(sample.seconds)} s per image")
            yield wandb.Image(sample.difference.image, caption=f"{named}, difference × {AMPLIFIED}")


if __name__ == "__main__":
    try:
        _main()
    # Whatever it is, the process that waits for this one tells it in a line.
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
