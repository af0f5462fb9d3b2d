"""Writes docs/compatibility.md from the tests: `python -m tests.compatibility.page`.

Every line of it is a case or a marked test of the suite, so it says what the suite holds true and no more.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import transformers
from packaging.version import Version

from benchmarks.versions import RESULT
from DeepCache import DeepCacheSDHelper
from DeepCache.engine.layouts import skip_branches
from DeepCache.engine.unets import unets_of
from tests.compatibility import schedulers
from tests.compatibility.guidance import NOT_HALVED
from tests.compatibility.pipelines import BROKEN, CASES, REFUSED

__all__ = ["FILE", "INSTALLED", "companions", "page", "written_for"]

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "compatibility.md"
INSTALLED = Version(diffusers.__version__)

_HEAD = """\
# Compatibility

*Made by `python -m tests.compatibility.page` from the tests, with diffusers {diffusers}. The tests fail when this \
page is not in step with them, and when diffusers has a pipeline or a scheduler that is not on it. \
Below, [versions](#versions) are those of releases that were tried.*

{counts}

Each pipeline ran through its own `__call__` on small random components. The U-Nets have the blocks and layers of the \
published ones as far as these are known, so their branches are those that a user sees; the transformers have fewer \
layers and therefore fewer branches. Tested of each: with \
`cache_interval=1` no bit differs from the pipeline without DeepCache; at intervals 2 and 3 exactly the denoiser calls \
that the schedule says run the whole denoiser; a second call with other settings starts full and gives what it gives \
alone; after `disable()` no bit differs; with `forecast="linear"` the same calls run the whole denoiser; with \
`guidance_reuse=True` the half of a batch that a shallow step runs comes out as it does where the whole batch runs, or \
the run is refused with a `ValueError` that says why.

DeepCache recognizes a denoiser by its structure and never by its class. It needs skip connections from the first \
layers to the last, as U-Nets and transformers with long skips have them. A denoiser that is not listed works if it \
has one of these structures:

- `down_blocks`, `mid_block` and `up_blocks`, blocks that keep their layers in lists, and a skip connection from every \
layer and downsampler: diffusers' U-Nets
- `down_blocks` and `up_blocks` with one skip connection per block: Kandinsky 3, the latent upscaler, Dance Diffusion
- `down_blocks` and `up_blocks` as lists of layers with one skip connection per level: Stable Cascade, Würstchen
- two lists of blocks around a middle block, paired by skip connections: the U-Net of CompVis' `ldm`, U-ViT, UniDiffuser
- one list of `blocks`, the later of which take skip connections from the earlier ones: HunyuanDiT

For any other structure, `enable()` raises a `TypeError` that says why. The caches of diffusers (`enable_cache`) are \
made for transformers without long skips.
"""

_VERSIONS = """\
## Versions

The package takes Python 3.10 and torch 2.0 or newer, and the helper works with these releases of diffusers and \
transformers, some of which programs pin. The tests are those of the engine, the helper, settings and plans; some are \
left out where a release lacks what they need. The package was installed last, from a wheel, and changed the version \
of no other. Torch 2.0 has neither `compile=` nor the share of multiply-accumulates; `compile=` works with torch 2.5 \
and newer, where 2.5 compiles once more after `disable()` and `enable()`. \
What comes with `DeepCache[cli]` takes torch 2.6, diffusers 0.40 and \
transformers 5.6, the row *oldest* ([versions.json](../benchmarks/versions.json)).
"""


def written_for() -> Version:
    """The version of diffusers that the page is about."""
    found = re.search(r"with diffusers (\d[\d.]*\d)", FILE.read_text(encoding="utf-8"))
    assert found is not None
    return Version(found[1])


def page() -> str:
    """The text of docs/compatibility.md."""
    works, refused = _pipelines_that_work(), _pipelines_that_are_refused()
    companion_notes = companions()
    taken, not_taken = _schedulers_that_work(), _schedulers_that_are_not_taken()
    counts = _table(
        ("", "found", "works", "refused, or not applicable", "broken in diffusers"),
        [
            ("pipelines", len(works) + len(refused) + len(BROKEN), len(works), len(refused), len(BROKEN)),
            ("schedulers", len(taken) + len(not_taken), len(taken), len(not_taken), 0),
            ("companions and pairs of them", len(companion_notes), len(companion_notes), "", ""),
        ],
    )
    sections = [
        _HEAD.format(diffusers=diffusers.__version__, counts=counts.strip()),
        "## Pipelines that work\n",
        _table(("pipeline", "denoiser", "`cache_branch_id`", "`guidance_reuse`", "note"), works),
        "## Pipelines that are refused\n\n`enable()` raises a `TypeError` that begins with this reason.\n",
        _table(("pipeline", "reason", "note"), refused),
    ]
    sections.insert(
        1, _VERSIONS + "\n" + _table(("", "Python", "torch", "diffusers", "transformers", "tests"), versions())
    )
    if BROKEN:
        sections += [
            "## Pipelines that fail in diffusers itself, without DeepCache too\n",
            _table(("pipeline", "why"), sorted((case.pipeline, case.why) for case in BROKEN)),
        ]
    sections += [
        "## Schedulers\n\nThe pattern of full and shallow steps is exact with each, at intervals 2 and 3, in a run "
        "of one step, and with timesteps or sigmas of the caller's where the scheduler takes them.\n",
        _table(("scheduler", "also tried with", "note"), taken),
        "No pipeline above takes these:\n",
        _table(("scheduler", "why"), not_taken),
        "## Companions\n\nWhat people use beside DeepCache, alone and in pairs. Each has tests that fail if it were "
        "ignored.\n",
        _table(("companion", "note"), [(name, "; ".join(notes)) for name, notes in companion_notes.items()]),
    ]
    return "\n".join(sections)


def versions() -> list[tuple[str, ...]]:
    """What ran with which versions, from the committed result."""
    environments = json.loads(RESULT.read_text(encoding="utf-8"))["environments"]
    rows = []
    for name, environment in environments.items():
        installed = environment["versions"]
        found = (installed[each] for each in ("python", "torch", "diffusers", "transformers"))
        failed = f", {environment['failed']} failed" if environment["failed"] else ""
        skipped = f", {environment['skipped']} left out" if environment["skipped"] else ""
        whole = " of everything" if "core.txt" not in environment["tests"] else ""
        rows.append((name, *found, f"{environment['passed']} passed{failed}{skipped}{whole}"))
    return rows


def companions() -> dict[str, list[str]]:
    """The notes on every companion that a test is marked with, by its name."""
    notes: dict[str, list[str]] = defaultdict(list)
    for mark in _companion_marks():
        name, *rest = mark.args
        noted = notes[name]
        noted.extend(note for note in rest if note not in noted)
    return dict(sorted(notes.items(), key=lambda entry: entry[0].lower()))


def _pipelines_that_work() -> list[tuple[Any, ...]]:
    built: dict[str, tuple[str, str]] = {}
    notes: dict[str, list[str]] = defaultdict(list)
    for case in CASES:
        if case.note and case.note not in notes[case.pipeline]:
            notes[case.pipeline].append(case.note)
        if case.pipeline not in built:
            with _quiet():
                unets = unets_of(case.build())
            built[case.pipeline] = (
                ", ".join(_named(name, type(unet).__name__, unets) for name, unet in unets.items()),
                ", ".join(_named(name, _branches(unet), unets) for name, unet in unets.items()),
            )
    return [(name, *built[name], _guidance_reuse(name), "; ".join(notes[name])) for name in sorted(built)]


def _guidance_reuse(pipeline: str) -> str:
    """Whether guidance reuse works on a pipeline, and why not."""
    reasons = [NOT_HALVED.get(str(case)) for case in CASES if case.pipeline == pipeline]
    if None in reasons:
        return "yes"
    return "no: " + "; ".join(dict.fromkeys(reason.note for reason in reasons if reason is not None))


def _branches(denoiser: Any) -> str:
    last = len(skip_branches(denoiser)) - 1
    return f"0–{last}" if last else "0"


def _named(name: str, text: str, unets: dict[str, Any]) -> str:
    return text if len(unets) == 1 else f"{name}: {text}"


def _pipelines_that_are_refused() -> list[tuple[Any, ...]]:
    rows, working = [], {case.pipeline for case in CASES}
    for case in REFUSED:
        if case.pipeline in working:
            # Refused with one kind of denoiser only, which its note says where it works.
            continue
        with _quiet(), pytest.raises(TypeError) as refusal:
            DeepCacheSDHelper(case.build()).enable()
        rows.append((case.pipeline, str(refusal.value), case.note))
    return sorted(rows)


def _schedulers_that_work() -> list[tuple[Any, ...]]:
    variants: dict[str, list[str]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)
    for case in schedulers.CASES:
        settings = ", ".join(f"{name}={value}" for name, value in {**case.options, **case.call}.items())
        if settings:
            variants[case.scheduler].append(f"`{settings}`")
        if case.note and case.note not in notes[case.scheduler]:
            notes[case.scheduler].append(case.note)
    for name, pipelines in schedulers.OWN_PIPELINES.items():
        notes[name].append("with the pipeline it belongs to, " + ", ".join(pipelines))
    names = {case.scheduler for case in schedulers.CASES} | set(schedulers.OWN_PIPELINES)
    return [(name, "<br>".join(variants[name]), "; ".join(notes[name])) for name in sorted(names)]


def _schedulers_that_are_not_taken() -> list[tuple[str, str]]:
    return sorted((entry.scheduler, entry.reason) for entry in schedulers.NOT_TAKEN)


def _companion_marks() -> Iterator[pytest.Mark]:
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.companion(" in file.read_text(encoding="utf-8"):
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
        if mark.name == "companion":
            yield mark
        elif mark.name == "parametrize":
            for values in mark.args[1]:
                yield from (inner.mark for inner in getattr(values, "marks", ()) if inner.name == "companion")


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


class _quiet(warnings.catch_warnings):
    """What diffusers warns about while a pipeline is made is checked by the tests of the pipelines."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    FILE.write_text(page(), encoding="utf-8")
    print(FILE.relative_to(ROOT))
