"""The process that logs to Weights & Biases. `log_to_wandb` starts it and writes the job to its standard input."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from DeepCache.report.charts import Chart, frontier_chart, speed_charts
from DeepCache.report.fidelity import fidelity_groups
from DeepCache.report.findings import headline
from DeepCache.report.gallery import AMPLIFIED, Gallery, gallery
from DeepCache.report.numerals import seconds
from DeepCache.report.page import default_title
from DeepCache.report.sources import Source, read_sources
from DeepCache.report.speed import speed_tables
from DeepCache.report.tables import Table, fidelity_table, measurements_table, speed_table

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
        notes="\n".join(f"{number} {words}" for source in sources for number, words in headline(source)),
        job_type="report",
        dir=job["folder"],
        config={"results": {source.name: {key: source.result[key] for key in _ORIGIN} for source in sources}},
        settings=settings,
    )
    # One step, regardless of the number of results.
    run.log({_key(source.name, *place): value for source in sources for place, value in _logged(source)})
    url = None if run.offline else run.url
    folder = Path(run.dir).parent
    run.finish()
    print(json.dumps({"folder": str(folder), "url": url}))


def _key(*names: str) -> str:
    """A name for panels and a path for files, which no name in a result leads out of the folder."""
    return "/".join(re.sub(r"[^\w ,=-]+", "-", name) for name in names)


def _logged(source: Source) -> Iterator[tuple[tuple[str, str], Any]]:
    """The values of a result, each with the title of its table or group and its own name."""
    if source.is_benchmark:
        for table in speed_tables(source):
            yield (table.title, "speed"), _table(speed_table(table))
            yield (table.title, "every measurement"), _table(measurements_table(table))
            for chart in speed_charts(table):
                yield (table.title, chart.title), _image_of(chart)
        return
    style = (files("DeepCache.report") / "templates" / "heat_map.css").read_text(encoding="utf-8")
    for group in fidelity_groups(source):
        if group.reference is None:
            continue
        yield (group.title, "every setting"), _table(fidelity_table(group, "", group.cells))
        frontier = frontier_chart(group)
        if frontier is not None:
            yield (group.title, frontier.title), _image_of(frontier)
        maps = "".join(each.html() for each in group.heat_maps)
        if maps:
            yield (group.title, "interval by branch"), wandb.Html(f"<style>{style}</style>{maps}", inject=False)
        samples = list(_samples(gallery(source, group)))
        if samples:
            yield (group.title, "samples"), samples


def _table(table: Table) -> wandb.Table:
    columns, rows = table.plain()
    return wandb.Table(columns=list(columns), data=rows)


def _image_of(chart: Chart) -> wandb.Image:
    with Image.open(io.BytesIO(chart.png())) as image:
        return wandb.Image(image.convert("RGB"), caption=chart.title)


def _samples(found: Gallery) -> Iterator[wandb.Image]:
    for prompt in found.prompts:
        name = f"{prompt.text} (seed {prompt.seed})"
        assert found.original_seconds is not None
        yield wandb.Image(prompt.original, caption=f"{name}: original, {seconds(found.original_seconds)} s per image")
        for sample in prompt.samples:
            caption = f"{name}: {sample.label}"
            yield wandb.Image(sample.cached, caption=f"{caption}, {seconds(sample.seconds)} s per image")
            yield wandb.Image(sample.difference, caption=f"{caption}, difference × {AMPLIFIED}")


if __name__ == "__main__":
    try:
        _main()
    # The process that waits for this one shows the error in one line.
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
