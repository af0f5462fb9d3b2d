"""A worker that draws one pixel and notes what it draws, in a file, since it may be in a process of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from DeepCache.batch import BatchRecord, BatchRow
from DeepCache.batch.differences import differences
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.picture import filed, picture_bytes, picture_path, picture_record


def nothing(row: BatchRow) -> None:
    pass


@dataclass(frozen=True)
class CountingWorkers:
    """Makes such workers.

    Args:
        folder: where they write.
        log: the file for their notes.
        facts: theirs.
        before: called before a row is drawn; what it raises, the worker raises.
    """

    folder: BatchFolder
    log: Path
    facts: dict[str, Any] = field(default_factory=lambda: {"model": "dots"})
    before: Callable[[BatchRow], None] = nothing

    def __call__(self, expected: dict[str, Any] | None) -> CountingWorker:
        return CountingWorker(self, expected)

    def note(self, **what: Any) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def noted(self, name: str) -> list[Any]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [line[name] for line in map(json.loads, lines) if name in line]


class ChangingWorkers(CountingWorkers):
    """The first of them has another model than the rest."""

    def __call__(self, expected: dict[str, Any] | None) -> CountingWorker:
        facts = self.facts if expected is None else {"model": "lines"}
        return CountingWorker(replace(self, facts=facts), expected)


class CountingWorker:
    def __init__(self, made_for: CountingWorkers, expected: dict[str, Any] | None) -> None:
        self._made_for = made_for
        self.facts = made_for.facts
        made_for.note(started=os.getpid())
        if expected is not None and (changed := differences(expected, self.facts)):
            raise ValueError(f"another model: {changed}")

    def draw(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        self._made_for.note(together=[row.prompt for row in rows])
        return [self._found(row) or self._drawn(row) for row in rows]

    def _found(self, row: BatchRow) -> BatchRecord | None:
        data = self._made_for.folder.read(picture_path(row.id))
        return None if data is None else picture_record(data, row.id)

    def _drawn(self, row: BatchRow) -> BatchRecord:
        self._made_for.before(row)
        self._made_for.note(drawn=row.prompt, by=os.getpid())
        record = BatchRecord(row.id, row.row_id, row.prompt, seed=row.seed_for(0), settings="{}", model="dots")
        if row.prompt.startswith("wrong"):
            return replace(record, error="this cannot be drawn")
        record = replace(record, width=1, height=1, full_steps=1, shallow_steps=0, skipped_steps=0)
        data = picture_bytes(Image.new("RGB", (1, 1), (record.seed or 0) % 2**24), record, {})
        self._made_for.folder.write(picture_path(row.id), data)
        return replace(filed(record, data), seconds=0.5, batch=1, host="here")
