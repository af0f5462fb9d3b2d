"""Writes docs/compatibility.md from the cases and marks of the tests: `python -m tests.compatibility.page`."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import transformers
from packaging.version import Version

from benchmarks.versions import RESULT
from DeepCache.engine.layouts import skip_branches
from DeepCache.engine.unets import unets_of
from tests.compatibility import schedulers
from tests.compatibility.guidance import NOT_HALVED
from tests.compatibility.pipelines import BROKEN, CASES, REFUSED

__all__ = ["FILE", "INSTALLED", "integrations", "page", "written_for"]

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "compatibility.md"
INSTALLED = Version(diffusers.__version__)

_HEAD = """\
# Compatibility

This page lists the pipelines and schedulers of diffusers and the features that are tested with DeepCache. \
*It is generated from the tests by `python -m tests.compatibility.page`, with diffusers {diffusers}; \
[Versions](#versions) lists other releases.*

{counts}

Each pipeline runs on small random components through its own `__call__`. The U-Nets have the blocks and layers of the \
published ones where these are known, so their branches are the real ones; the transformers have fewer layers and \
branches. The tests check that:

- `cache_interval=1`, and `disable()`, change no bit of the output;
- at intervals 2 and 3, also with `forecast="linear"`, exactly the scheduled calls run the whole denoiser;
- a second run with other settings starts full and gives the same output as on its own;
- with `guidance_reuse=True`, the half of the batch that a shallow step runs equals that half of the whole batch, or \
the run raises a `ValueError`.

DeepCache recognizes a denoiser by its structure, not by its class. It needs skip connections from the first layers to \
the last. Denoisers that are not listed work if they have one of these structures:

- `down_blocks`, `mid_block` and `up_blocks` whose layers are in lists, and a skip connection from every layer and \
downsampler: the U-Nets of diffusers
- `down_blocks` and `up_blocks` with one skip connection per block: Kandinsky 3, the latent upscaler, Dance Diffusion
- `down_blocks` and `up_blocks` as lists of layers with one skip connection per level: Stable Cascade, Würstchen
- two lists of blocks around a middle block, paired by skip connections: the U-Net of CompVis' `ldm`, U-ViT, UniDiffuser
- one list of `blocks`, the later of which receive skip connections from the earlier ones: HunyuanDiT

For any other structure, `enable()` raises a `TypeError` with the reason. Use the caches of diffusers (`enable_cache`) \
for transformers without long skips.
"""

_VERSIONS = """\
## Versions

DeepCache requires Python 3.10 and torch 2.0 or newer. The helper works with these releases of diffusers and \
transformers. The tests cover the engine, the helper, settings and plans; a test is skipped where a release lacks what \
it needs. DeepCache was installed last, from a wheel, and changed no other version. Torch 2.0 has neither \
`compile=` nor `stats.mac_share`; `compile=` requires torch 2.5, which compiles again after `disable()` and \
`enable()`. `DeepCache[cli]` requires torch 2.6, diffusers 0.40 and transformers 5.6, the row *oldest* \
([versions.json](../benchmarks/versions.json)).
"""


def written_for() -> Version:
    """The version of diffusers that the page was generated with."""
    found = re.search(r"with diffusers (\d[\d.]*\d)", FILE.read_text(encoding="utf-8"))
    assert found is not None
    return Version(found[1])


def page() -> str:
    """The text of docs/compatibility.md."""
    pipelines, noted = _working_pipelines()
    refused = _refused_pipelines()
    features = integrations()
    schedulers_tested, schedulers_not_applicable = _schedulers(), _schedulers_without_pipeline()
    working = {case.pipeline for case in CASES}
    not_applicable = len({case.pipeline for case in REFUSED} - working)
    counts = _table(
        ("", "found", "works", "refused, or not applicable", "broken in diffusers"),
        [
            ("pipelines", len(working) + not_applicable + len(BROKEN), len(working), not_applicable, len(BROKEN)),
            (
                "schedulers",
                len(schedulers_tested) + len(schedulers_not_applicable),
                len(schedulers_tested),
                len(schedulers_not_applicable),
                0,
            ),
            ("integrations and pairs of them", len(features), len(features), "", ""),
        ],
    )
    sections = [
        _HEAD.format(diffusers=diffusers.__version__, counts=counts.strip()),
        _VERSIONS + "\n" + _table(("", "Python", "torch", "diffusers", "transformers", "tests"), versions()),
        "## Pipelines that work\n",
        _table(("denoiser", "`cache_branch_id`", "`guidance_reuse`", "pipelines"), pipelines),
        "Notes:\n",
        _table(("pipelines", "note"), noted),
        "## Pipelines that are refused\n\n`enable()` raises a `TypeError`: the pipeline has no denoiser with skip "
        "connections from its first layers to its last, or it is not a torch module.\n",
        _table(("pipelines", "why"), refused),
    ]
    if BROKEN:
        sections += [
            "## Pipelines that fail in diffusers, without DeepCache too\n",
            _table(("pipeline", "why"), sorted((case.pipeline, case.why) for case in BROKEN)),
        ]
    sections += [
        "## Schedulers\n\nThe pattern of full and shallow steps is exact with each scheduler, at intervals 2 and 3, in "
        "a run of one step, and with custom timesteps or sigmas where the scheduler accepts them.\n",
        _table(("scheduler", "also tested with", "note"), schedulers_tested),
        "No pipeline above can use these:\n",
        _table(("scheduler", "why"), schedulers_not_applicable),
        "## Integrations\n\nFeatures used together with DeepCache, alone and in pairs. Each has a test that fails if "
        "the feature is ignored.\n",
        _table(("feature", "note"), [(name, "; ".join(notes)) for name, notes in features.items()]),
    ]
    return "\n".join(sections)


def versions() -> list[tuple[str, ...]]:
    """The tested versions, from the committed result."""
    environments = json.loads(RESULT.read_text(encoding="utf-8"))["environments"]
    rows = []
    for name, environment in environments.items():
        installed = environment["versions"]
        found = (installed[each] for each in ("python", "torch", "diffusers", "transformers"))
        failed = f", {environment['failed']} failed" if environment["failed"] else ""
        skipped = f", {environment['skipped']} skipped" if environment["skipped"] else ""
        whole = " (all tests)" if "core.txt" not in environment["tests"] else ""
        rows.append((name, *found, f"{environment['passed']} passed{failed}{skipped}{whole}"))
    return rows


def integrations() -> dict[str, list[str]]:
    """The notes of every mark `integration`, by its name."""
    notes: dict[str, list[str]] = defaultdict(list)
    for mark in _integration_marks():
        name, *rest = mark.args
        noted = notes[name]
        noted.extend(note for note in rest if note not in noted)
    return dict(sorted(notes.items(), key=lambda entry: entry[0].lower()))


def _working_pipelines() -> tuple[list[tuple[str, ...]], list[tuple[str, str]]]:
    """Rows of pipelines grouped by their denoiser, and rows of notes."""
    groups: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    notes: dict[str, set[str]] = defaultdict(set)
    for pipeline in {case.pipeline: None for case in CASES}:
        cases = [case for case in CASES if case.pipeline == pipeline]
        with _quiet():
            unets = unets_of(cases[0].build())
        kinds = ", ".join(_named(name, type(unet).__name__, unets) for name, unet in unets.items())
        branches = ", ".join(_named(name, _branches(unet), unets) for name, unet in unets.items())
        groups[kinds, branches, _guidance_reuse(pipeline)].add(pipeline)
        for note in {case.note for case in cases if case.note}:
            notes[note].add(pipeline)
    # The denoisers with the most pipelines first.
    sizes: dict[str, int] = defaultdict(int)
    for group, names in groups.items():
        sizes[group[0]] += len(names)
    order = sorted(groups, key=lambda group: (-sizes[group[0]], group[0], -len(groups[group]), group))
    return [(*group, _listed(groups[group])) for group in order], _by_note(notes)


def _by_note(notes: dict[str, set[str]]) -> list[tuple[str, str]]:
    return sorted((_listed(names), note) for note, names in notes.items())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _guidance_reuse(pipeline: str) -> str:
    reasons = [NOT_HALVED.get(str(case)) for case in CASES if case.pipeline == pipeline]
    if None in reasons:
        return "yes"
    return "no: " + "; ".join(dict.fromkeys(reason.note for reason in reasons if reason is not None))


def _branches(denoiser: Any) -> str:
    last = len(skip_branches(denoiser)) - 1
    return f"0–{last}" if last else "0"


def _named(name: str, text: str, unets: dict[str, Any]) -> str:
    return text if len(unets) == 1 else f"{name}: {text}"


def _refused_pipelines() -> list[tuple[str, str]]:
    # A pipeline that is refused with one kind of denoiser only is listed where it works, with a note.
    working = {case.pipeline for case in CASES}
    notes: dict[str, set[str]] = defaultdict(set)
    for case in REFUSED:
        if case.pipeline not in working:
            notes[case.note].add(case.pipeline)
    return _by_note(notes)


def _schedulers() -> list[tuple[str, str, str]]:
    variants: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)
    for case in schedulers.CASES:
        variants[case.scheduler].append({**case.options, **case.call})
        if case.note and case.note not in notes[case.scheduler]:
            notes[case.scheduler].append(case.note)
    for name, pipelines in schedulers.OWN_PIPELINES.items():
        notes[name].append("with its own pipelines, " + ", ".join(pipelines))
    names = {*variants, *schedulers.OWN_PIPELINES}
    return [(name, _settings(variants[name]), "; ".join(notes[name])) for name in sorted(names)]


def _settings(variants: list[Mapping[str, Any]]) -> str:
    """The variants of a scheduler, those of one and the same setting together."""
    values: dict[str, list[str]] = defaultdict(list)
    for settings in variants:
        if len(settings) == 1:
            ((name, value),) = settings.items()
            values[name].append(str(value))
        elif settings:
            values[", ".join(f"{name}={value}" for name, value in settings.items())] = []
    shown = [f"`{name}={'/'.join(found)}`" if found else f"`{name}`" for name, found in values.items()]
    return "<br>".join(shown)


def _schedulers_without_pipeline() -> list[tuple[str, str]]:
    return sorted((entry.scheduler, entry.reason) for entry in schedulers.NOT_TAKEN)


def _integration_marks() -> Iterator[pytest.Mark]:
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.integration(" in file.read_text(encoding="utf-8"):
            module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            yield from _marks_of(module)
            for member in vars(module).values():
                if getattr(member, "__module__", "") != module.__name__:
                    continue
                yield from _marks_of(member)
                if inspect.isclass(member):
                    for method in vars(member).values():
                        yield from _marks_of(method)


def _marks_of(item: Any) -> Iterator[pytest.Mark]:
    marks = getattr(item, "pytestmark", [])
    for mark in marks if isinstance(marks, list) else [marks]:
        mark = getattr(mark, "mark", mark)
        if mark.name == "integration":
            yield mark
        elif mark.name == "parametrize":
            for values in mark.args[1]:
                yield from (inner.mark for inner in getattr(values, "marks", ()) if inner.name == "integration")


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


class _quiet(warnings.catch_warnings):
    """Ignores warnings while a pipeline is built; the tests of the pipelines check them."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    FILE.write_text(page(), encoding="utf-8")
    print(FILE.relative_to(ROOT))
