"""The steps of a denoising run as a strip of HTML."""

from __future__ import annotations

import re
from collections import Counter
from html import escape

__all__ = ["kinds_of_steps", "step_strip"]

_LONG = 100
_LISTED = 10
_CELLS = {"F": "<b>F</b>", "-": "<s>-</s>"}


def step_strip(pattern: str, done: int | None = None) -> str:
    """The steps as cells of HTML, with a label in words; styles are in `step_strip.css`.

    Full steps are high and contain an F. Shallow steps are low and contain the number of their branch if there are
    several. Skipped steps are flat and contain a `-`. Steps still to come are hollow.

    Args:
        pattern: one character per step, see `DeepCache.schedule.pattern_of`.
        done: the number of steps that are done; all by default.

    Example:
        >>> print(step_strip("F."))
        <div class="step-strip" role="img" aria-label="1 full and 1 shallow step: full step 1"><b>F</b><i>.</i></div>
        >>> print(step_strip("F-"))
        <div class="step-strip" role="img" aria-label="1 full and 1 skipped step: full step 1"><b>F</b><s>-</s></div>
    """
    if re.fullmatch(r"[F.0-9a-z-]+", pattern) is None:
        raise ValueError(f"a pattern has one character per step: F, ., - or a branch, got {pattern[:100]!r}")
    done = len(pattern) if done is None else done
    if not 0 <= done <= len(pattern):
        raise ValueError(f"done must be between 0 and {len(pattern)}, got {done}")
    kind = "step-strip long" if len(pattern) > _LONG else "step-strip"
    to_come = f'<span class="to-come">{_cells(pattern[done:])}</span>' if done < len(pattern) else ""
    label = escape(_in_words(pattern, done))
    return f'<div class="{kind}" role="img" aria-label="{label}">{_cells(pattern[:done])}{to_come}</div>'


def kinds_of_steps(pattern: str) -> str:
    """How many steps are of each kind.

    Example:
        >>> kinds_of_steps("F..F-"), kinds_of_steps("F")
        ('2 full, 2 shallow, 1 skipped', '1 full')
    """
    full, skipped = pattern.count("F"), pattern.count("-")
    kinds = {"full": full, "shallow": len(pattern) - full - skipped, "skipped": skipped}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)


def _cells(pattern: str) -> str:
    # Short elements: a strip of a thousand steps is sent after each of them.
    return "".join(_CELLS.get(sign, f"<i>{sign}</i>") for sign in pattern)


def _in_words(pattern: str, done: int) -> str:
    *before, last = kinds_of_steps(pattern).split(", ")
    words = " and ".join([", ".join(before), last] if before else [last])
    words += " step" if last.startswith("1 ") else " steps"
    shallow = Counter(sign for sign in pattern if sign not in "F-.")
    if shallow:
        branches = [f"{count} at branch {int(sign, 36)}" for sign, count in sorted(shallow.items())]
        words += f" ({', '.join(branches)})"
    full = [str(number) for number, sign in enumerate(pattern, start=1) if sign == "F"]
    if full:
        shown = full if len(full) <= _LISTED else [*full[: _LISTED - 1], "…", full[-1]]
        words += f": full step{'s' if len(full) > 1 else ''} {', '.join(shown)}"
    if done < len(pattern):
        words += f"; {done} of {len(pattern)} steps are done"
    return words
