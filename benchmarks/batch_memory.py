"""Memory of a long batch: 100,000 rows of a worker that only writes a few bytes, in one process and by Ray.

What is measured is the batch itself: the prompt file is read, rows are handed out, small files are written, and records
come back and are kept. Of the local engine it is the resident memory of its process; of Ray that of the driver, and of
all its processes together by what is theirs alone (USS), since Ray's processes share much.

    python -m benchmarks.batch_memory --output benchmarks/batch_memory.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from DeepCache.batch.engine import LocalEngine
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.job import run_batch
from DeepCache.batch.ray_engine import RayEngine
from DeepCache.batch.record import BatchRecord, image_path, with_file
from DeepCache.batch.row import BatchRow

ROWS = (10_000, 100_000)
ENGINES = ("local", "ray")
BATCH, WORKERS = 16, 2
POINTS = 40
MIB = 2**20


def main() -> None:
    options = _options()
    if options.one:
        engine, rows = options.one
        print(json.dumps(measured(engine, int(rows))))
        return
    # Importing torch takes memory, and the runs are without.
    from DeepCache.bench.provenance import provenance
    from DeepCache.bench.result_file import write_result

    result = provenance(0) | {"batch": BATCH, "workers": WORKERS, "runs": []}
    result["versions"] |= {name: version(name) for name in ("ray", "pyarrow", "psutil")}
    for engine in ENGINES:
        for rows in ROWS:
            # Each in a process of its own, so that none inherits the memory of another.
            command = [sys.executable, "-m", "benchmarks.batch_memory", "--one", engine, str(rows)]
            run = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            result["runs"].append(run)
            driver = run["driver"]
            print(
                f"{engine:5} {rows:7,} rows: {run['per_second']:.0f} a second, the driver has {driver['peak_mib']} MiB "
                f"at most and grows by {driver['growth_mib']} MiB from 20 % on, {driver['growth_drawing_mib']} of it "
                "while generating",
                flush=True,
            )
    write_result(options.output, result)
    print(options.output)


@dataclass(frozen=True)
class DummyMaker:
    """Makes dummies. See `WorkerMaker`."""

    folder: BatchFolder

    def __call__(self, expected: dict[str, Any] | None) -> Dummy:
        return Dummy(self.folder)


class Dummy:
    """Writes a few bytes for each row, as an image. See `Worker`."""

    def __init__(self, folder: BatchFolder) -> None:
        self.facts: dict[str, Any] = {"model": "dummy"}
        self._folder = folder

    def generate(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        return [self._written(row) for row in rows]

    def _written(self, row: BatchRow) -> BatchRecord:
        data = row.id.encode()
        path = Path(self._folder.path(image_path(row.id)))
        # Without flushing to disk, the slowest part of writing an image.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return with_file(BatchRecord(row.id, row.row_id, row.prompt, seed=row.seed_for(0), settings="{}"), data)


class Sampler:
    """Takes the memory of this process, and of all that it has started, every now and then.

    Args:
        seconds: from one sample to the next.
    """

    def __init__(self, seconds: float) -> None:
        self.samples: list[dict[str, Any]] = []
        self.stage, self.done = "starting", 0
        self._seconds = seconds
        self._start = time.perf_counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        here = psutil.Process()
        while not self._over.wait(self._seconds):
            tree, started = 0, here.children(recursive=True)
            for process in started:
                with suppress(psutil.Error):
                    tree += process.memory_full_info().uss
            driver = here.memory_info().rss
            self.samples.append(
                {
                    "seconds": round(time.perf_counter() - self._start, 1),
                    "stage": self.stage,
                    "rows": self.done,
                    "driver_mib": round(driver / MIB, 1),
                    "tree_mib": round((here.memory_full_info().uss + tree) / MIB, 1),
                    "processes": 1 + len(started),
                }
            )


def measured(engine: str, rows: int) -> dict[str, Any]:
    """A run, and its memory as it went."""
    with tempfile.TemporaryDirectory() as place:
        prompts, folder = Path(place) / "prompts.jsonl", BatchFolder(f"{place}/pictures")
        with prompts.open("w") as file:
            for number in range(rows):
                row = {"id": f"row {number}", "prompt": f"an image of many words that says what is number {number}"}
                file.write(json.dumps(row) + "\n")
        sampler = Sampler(1.0 if rows > ROWS[0] else 0.25)

        def note(progress: Any) -> None:
            sampler.stage, sampler.done = progress.stage, progress.done

        summary = run_batch(
            prompts,
            folder,
            {},
            {},
            DummyMaker(folder),
            batch=BATCH,
            engine=RayEngine(WORKERS) if engine == "ray" else LocalEngine(),
            on_progress=note,
        )
        sampler.end()
    assert summary.done == rows, summary
    samples = sampler.samples
    # Not after the last row, when Ray's processes end.
    generating = [sample for sample in samples if sample["stage"] == "generating" and sample["rows"] < rows]
    step = -(-len(samples) // POINTS)
    return {
        "engine": engine,
        "rows": rows,
        "seconds": round(summary.seconds, 1),
        "per_second": round(rows / summary.seconds, 1),
        "driver": _figures(samples, generating, "driver_mib"),
        "tree": _figures(samples, generating, "tree_mib"),
        "samples": samples[::step],
    }


def _figures(samples: list[dict[str, Any]], generating: list[dict[str, Any]], name: str) -> dict[str, float]:
    """The peak, and the growth from 20 % of the rows on: to the last row, and to the end, when the manifest is written
    and Ray's processes are gone."""
    rows = generating[-1]["rows"]
    early, last = (next(sample[name] for sample in generating if sample["rows"] >= part * rows) for part in (0.2, 1))
    return {
        "peak_mib": max(sample[name] for sample in samples),
        "at_20_percent_mib": early,
        "at_the_last_row_mib": last,
        "at_the_end_mib": samples[-1][name],
        "growth_drawing_mib": round(last - early, 1),
        "growth_mib": round(samples[-1][name] - early, 1),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "ROWS"), help="one run, told to stdout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
