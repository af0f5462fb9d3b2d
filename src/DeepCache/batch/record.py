"""What became of one row: a line of the manifest."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchRecord"]


@dataclass(frozen=True)
class BatchRecord:
    """What became of one row.

    Args:
        id: the row's id.
        row_id: what the file calls the row; empty where it does not say.
        prompt: its prompt.
        negative_prompt: what the picture should not show.
        seed: the seed that it was drawn with; None where the row cannot be read.
        width: of the picture, in pixels; None where there is none.
        height: of the picture, in pixels; None where there is none.
        settings: what all rows have in common, as JSON.
        model: what tells the model from others.
        path: of the picture, from the folder; empty where there is none.
        sha256: of the picture's file, in hexadecimal digits; empty where there is none.
        bytes: length of the picture's file; 0 where there is none.
        seconds: the pipeline's, as this picture's share of its batch; None where there is no picture, or where it was
            found without its record because the run that drew it was cut off.
        batch: rows that were drawn together, with those that filled the batch up; None where `seconds` is None.
        full_steps: steps that ran the whole U-Net.
        shallow_steps: steps that ran only the layers above the skip branch.
        skipped_steps: steps at which no layer of the U-Net ran.
        host: the machine that drew it; empty where `seconds` is None.
        error: why there is no picture; else empty.
    """

    id: str
    row_id: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    settings: str = ""
    model: str = ""
    path: str = ""
    sha256: str = ""
    bytes: int = 0
    seconds: float | None = None
    batch: int | None = None
    full_steps: int | None = None
    shallow_steps: int | None = None
    skipped_steps: int | None = None
    host: str = ""
    error: str = ""
