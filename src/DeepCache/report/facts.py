"""What was measured and on what, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from DeepCache.report.fidelity import unfinished_groups
from DeepCache.report.numerals import size
from DeepCache.report.sources import Source
from DeepCache.report.speed import unfinished_cells

__all__ = ["Overview", "date_in_words", "facts", "overview"]


@dataclass(frozen=True)
class Overview:
    """A result in a line.

    Args:
        kind: what it measures.
        model: the model.
        pipeline: the class of the pipeline.
        schedulers: the classes of the schedulers.
        steps: the numbers of denoising steps.
        device: what it ran on.
        date: when.
        to_go: what is not finished; empty where all is.
    """

    kind: str
    model: str
    pipeline: str
    schedulers: str
    steps: str
    device: str
    date: str
    to_go: str


def overview(source: Source) -> Overview:
    """A result in a line."""
    result, settings = source.result, source.result["settings"]
    if source.is_benchmark:
        left, of = unfinished_cells(source), f"{len(result['cells'])} cells"
        schedulers, steps = [settings["scheduler"]], [settings["steps"]]
    else:
        left, of = unfinished_groups(source), f"{len(result['groups'])} groups"
        schedulers = [group["scheduler_class"] for group in result["groups"]] or settings["schedulers"]
        steps = [group["steps"] for group in result["groups"]] or settings["steps"]
    return Overview(
        kind="speed" if source.is_benchmark else "fidelity and cost",
        model=source.model,
        pipeline=settings["pipeline"],
        schedulers=_listed(schedulers),
        steps=_listed(steps),
        device=source.device,
        date=date_in_words(result["date"]),
        to_go=f"{left} of {of} to go" if left else "",
    )


def facts(source: Source) -> list[tuple[str, str]]:
    """All that is known about how a result came about: names and values."""
    settings, device = source.result["settings"], source.result["device"]
    found = [("Model", settings["model"] + (", random weights" if settings.get("random_weights") else ""))]
    found += [("Pipeline", f"{settings['pipeline']} with {settings['unet']}")]
    if source.is_benchmark:
        grid = settings["grid"]
        found += [
            ("Scheduler", settings["scheduler"]),
            ("Steps", str(settings["steps"])),
            ("Sizes", f"{_listed(size(*map(int, each)) for each in grid['sizes'])} px"),
            ("Batches", _listed(grid["batches"])),
            ("Types", _listed(grid["dtypes"])),
            ("Rounds", f"{settings['rounds']}, after {settings['warm_up']} to warm up"),
        ]
    else:
        found += [
            ("Schedulers", _listed(settings["schedulers"])),
            ("Steps", _listed(settings["steps"])),
            ("Size", f"{size(settings['width'], settings['height'])} px"),
            ("Batch", str(settings["batch"])),
            ("Type", settings["dtype"]),
            ("Prompts", str(len(settings["prompts"]))),
        ]
    guidances = [settings["guidance"]] if source.is_benchmark else settings["guidances"]
    if guidances != [None]:
        found.append(("Guidance", _listed(f"{guidance:g}" for guidance in guidances)))
    seeds = source.result["seed"] if source.is_benchmark else _listed(settings["seeds"])
    found += [
        ("Seed" if source.is_benchmark else "Seeds", str(seeds)),
        ("Device", _device(device)),
        ("Machine", _machine(source.result["machine"])),
        ("Threads", str(settings["threads"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in source.result["versions"].items())),
        ("Date", date_in_words(source.result["date"])),
    ]
    return found


def date_in_words(date: str) -> str:
    """A date of ISO 8601 for people, in UTC; anything else as it is.

    Example:
        >>> date_in_words("2026-11-23T04:41:30+00:00")
        '2026-11-23 04:41 UTC'
    """
    try:
        found = datetime.fromisoformat(date)
    except ValueError:
        return date
    return found.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC") if found.tzinfo is not None else date


def _device(device: Mapping[str, Any]) -> str:
    words = [f"{device['name']} ({device['type']})"]
    for key, form in (
        ("memory_gib", "{:g} GiB"),
        ("compute_capability", "compute capability {}"),
        ("driver", "driver {}"),
        ("cuda", "CUDA {}"),
    ):
        if device.get(key) is not None:
            words.append(form.format(device[key]))
    return ", ".join(words)


def _machine(machine: Mapping[str, Any]) -> str:
    words = [machine["cpu"]]
    if machine["cores"] is not None:
        words.append(f"{machine['cores']} cores")
    if machine["memory_gib"] is not None:
        words.append(f"{machine['memory_gib']:g} GiB")
    return ", ".join([*words, *machine["cpu_features"], machine["system"]])


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
