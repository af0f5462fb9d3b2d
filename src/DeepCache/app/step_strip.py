"""The strip of steps: which were full, shallow or skipped, and which are to come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape

from DeepCache.schedule import Step, pattern_of

__all__ = ["step_strip"]

_LONG = 100
_LISTED = 10
_CELLS = {"F": "<b>F</b>", "-": "<s>-</s>"}


def step_strip(steps: Sequence[Step] | str, done: int | None = None) -> str:
    """The steps of a trajectory as a strip of HTML; the styles are in `step_strip.css`.

    Full steps are high and have an F, shallow ones are low and have the number of their branch where there are several,
    skipped ones are flat and have a `-`. Steps to come are hollow.

    Args:
        steps: the steps, or their pattern (see `DeepCache.schedule.pattern_of`).
        done: how many are done; all by default.

    Returns:
        HTML with a cell for each step, which says in words what they are.

    Raises:
        ValueError: there is no step, the pattern has another character, or fewer or more are done than there are.

    Example:
        >>> print(step_strip("F."))
        <div class="step-strip" role="img" aria-label="1 full and 1 shallow step: full step 1"><b>F</b><i>.</i></div>
        >>> print(step_strip("F-"))
        <div class="step-strip" role="img" aria-label="1 full and 1 skipped step: full step 1"><b>F</b><s>-</s></div>
    """
    pattern = steps if isinstance(steps, str) else pattern_of(steps)
    if re.fullmatch(r"[F.0-9a-z-]+", pattern) is None:
        raise ValueError(f"a pattern has one character a step: F, ., - or that of a branch, got {pattern[:100]!r}")
    if done is None:
        done = len(pattern)
    if not 0 <= done <= len(pattern):
        raise ValueError(f"of {len(pattern)} steps 0 to {len(pattern)} can be done, got {done}")
    kind = "step-strip long" if len(pattern) > _LONG else "step-strip"
    to_come = f'<span class="to-come">{_cells(pattern[done:])}</span>' if done < len(pattern) else ""
    label = escape(_in_words(pattern, done))
    return f'<div class="{kind}" role="img" aria-label="{label}">{_cells(pattern[:done])}{to_come}</div>'


def _cells(pattern: str) -> str:
    # Short elements: a strip of a thousand steps is sent after every one of them.
    return "".join(_CELLS.get(sign, f"<i>{sign}</i>") for sign in pattern)


def _in_words(pattern: str, done: int) -> str:
    full = [str(number) for number, sign in enumerate(pattern, start=1) if sign == "F"]
    shallow, skipped = Counter(sign for sign in pattern if sign not in "F-"), pattern.count("-")
    branches = [f"{count} at branch {int(sign, 36)}" for sign, count in sorted(shallow.items()) if sign != "."]
    kinds = [f"{len(full)} full"]
    if shallow or not skipped:
        kinds.append(f"{shallow.total()} shallow")
    if skipped:
        kinds.append(f"{skipped} skipped")
    *before, last = kinds
    words = f"{', '.join(before)} and {last} step{'' if last.startswith('1 ') else 's'}"
    if branches:
        words += f" ({', '.join(branches)})"
    if full:
        shown = full if len(full) <= _LISTED else [*full[: _LISTED - 1], "…", full[-1]]
        words += f": full step{'s' if len(full) > 1 else ''} {', '.join(shown)}"
    if done < len(pattern):
        words += f"; {done} of {len(pattern)} steps are done"
    return words
