"""A batch job with a worker that generates one pixel per row and counts what it generates."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from DeepCache.batch import BatchRecord, BatchRow, BatchSummary, LocalEngine
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.job import run_batch
from DeepCache.batch.manifest import read_manifest
from DeepCache.batch.record import decode_record, encode_image, image_path, with_file

SETTINGS = {"steps": 6, "deepcache": {"interval": 3}}
ASKED = {"model": "dots"}


def nothing(row: BatchRow) -> None:
    pass


class CountingWorker:
    """Logs what it generates to a file, because it may be in another process. Calls `before` for every row."""

    def __init__(
        self,
        folder: BatchFolder,
        log: Path,
        facts: dict[str, Any],
        before: Callable[[BatchRow], None],
        expected: dict[str, Any] | None,
    ) -> None:
        self._folder, self._log, self._before = folder, log, before
        self.facts = facts
        self._note(started=os.getpid())
        if expected not in (None, facts):
            raise ValueError(f"another model: {facts} instead of {expected}")

    def generate(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        self._note(together=[row.prompt for row in rows])
        return [self._existing(row) or self._generated(row) for row in rows]

    def _existing(self, row: BatchRow) -> BatchRecord | None:
        data = self._folder.read(image_path(row.id))
        return None if data is None else decode_record(data, row.id)

    def _generated(self, row: BatchRow) -> BatchRecord:
        self._before(row)
        self._note(generated=row.prompt, by=os.getpid())
        record = BatchRecord(row.id, row.row_id, row.prompt, seed=row.seed_for(0), settings="{}", model="dots")
        if row.prompt.startswith("wrong"):
            return replace(record, error="this cannot be generated")
        record = replace(record, width=1, height=1, full_steps=1, shallow_steps=0, skipped_steps=0)
        data = encode_image(Image.new("RGB", (1, 1), (record.seed or 0) % 2**24), record, {})
        self._folder.write(image_path(row.id), data)
        return replace(with_file(record, data), seconds=0.5, batch=1, host="here")

    def _note(self, **what: Any) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")


class CountedJob:
    """Prompts and log are in the folder `place`, and so is the output if it has no `url`."""

    def __init__(self, place: Path, url: str | None = None) -> None:
        self.prompts, self.log = place / "prompts.jsonl", place / "log"
        self.folder = BatchFolder(place / "output" if url is None else url)

    def ask(self, *rows: Any) -> None:
        """Writes the prompt file."""
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(
        self,
        *,
        before: Callable[[BatchRow], None] = nothing,
        prompts: Path | None = None,
        settings: dict[str, Any] = SETTINGS,
        asked: dict[str, Any] = ASKED,
        model: str = "dots",
        make_worker: Any = None,
        batch: int = 1,
        engine: Any = None,
        **options: Any,
    ) -> BatchSummary:
        return run_batch(
            prompts or self.prompts,
            self.folder,
            settings,
            asked,
            make_worker or self.make_worker(model, before),
            batch=batch,
            engine=engine or LocalEngine(),
            **options,
        )

    def make_worker(self, model: str = "dots", before: Callable[[BatchRow], None] = nothing) -> Any:
        return partial(CountingWorker, self.folder, self.log, {"model": model}, before)

    def noted(self, name: str) -> list[Any]:
        """What workers have logged under this name."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [line[name] for line in map(json.loads, lines) if name in line]

    @property
    def generated(self) -> list[str]:
        """The prompts that were generated in all runs."""
        return self.noted("generated")

    def manifest(self) -> list[BatchRecord]:
        return [record for records in read_manifest(self.folder) for record in records]

    def files(self) -> dict[str, bytes]:
        """The files of the folder that do not depend on time."""
        names = [name for part in ("pictures", "journal") for name, _ in self.folder.files(part)]
        return {name: data for name in ["job.json", *names] if (data := self.folder.read(name)) is not None}

    def check(self, *, done: int, failed: int = 0) -> None:
        """Checks that the manifest has so many rows, each once, that every image is correct, and that there is nothing
        else."""
        records = self.manifest()
        assert len({record.id for record in records}) == len(records) == done + failed
        assert sum(bool(record.error) for record in records) == failed
        files = self.files()
        for record in records:
            if record.error:
                assert (record.path, record.sha256, record.bytes) == ("", "", 0), asdict(record)
            else:
                assert hashlib.sha256(files[record.path]).hexdigest() == record.sha256
        assert len([name for name in files if name != "job.json"]) == done
