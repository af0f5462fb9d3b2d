"""A batch that `CountingWorkers` draw, with all that there is to ask of it afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from DeepCache.batch import BatchRecord, BatchRow, BatchSummary, LocalEngine
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.job import run_batch
from DeepCache.batch.manifest import read_manifest
from tests.batch.counting_worker import CountingWorkers

COMMON = {"steps": 6, "deepcache": {"interval": 3}}
ASKED = {"model": "dots"}


class CountedJob:
    """Args:
    place: an empty folder for the prompts and the notes, and for the output where it has no URL.
    url: the output's.
    """

    def __init__(self, place: Path, url: str | None = None) -> None:
        self.prompts = place / "prompts.jsonl"
        self.folder = BatchFolder(place / "output" if url is None else url)
        self.workers = CountingWorkers(self.folder, place / "log")

    def ask(self, *rows: Any) -> None:
        """Writes the prompt file."""
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(
        self,
        *,
        before: Callable[[BatchRow], None] | None = None,
        prompts: Path | None = None,
        common: dict[str, Any] = COMMON,
        asked: dict[str, Any] = ASKED,
        facts: dict[str, Any] | None = None,
        batch: int = 1,
        engine: Any = None,
        **options: Any,
    ) -> BatchSummary:
        workers = self.workers if before is None else replace(self.workers, before=before)
        workers = workers if facts is None else replace(workers, facts=facts)
        return run_batch(
            prompts or self.prompts,
            self.folder,
            common,
            asked,
            workers,
            batch=batch,
            engine=engine or LocalEngine(),
            **options,
        )

    @property
    def drawn(self) -> list[str]:
        """The prompts that were drawn until now, in all runs."""
        return self.workers.noted("drawn")

    @property
    def together(self) -> list[list[str]]:
        return self.workers.noted("together")

    @property
    def starts(self) -> int:
        return len(self.workers.noted("started"))

    def manifest(self) -> list[BatchRecord]:
        return [record for records in read_manifest(self.folder) for record in records]

    def files(self) -> dict[str, bytes]:
        """What is in the folder, but for what has a time in it."""
        names = [name for name, _ in self.folder.sizes("") if name not in ("manifest.parquet", ".lock")]
        for top in ("pictures", "journal"):
            below = [f"{top}/{name}" for name in self.folder.folders(top)]
            names += [f"{each}/{name}" for each in (top, *below) for name, _ in self.folder.sizes(each)]
        return {name: data for name in names if (data := self.folder.read(name)) is not None}

    def check(self, *, done: int, failed: int = 0) -> None:
        """That there are as many rows in the manifest, each once, a good picture for each that is done, and nothing
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
