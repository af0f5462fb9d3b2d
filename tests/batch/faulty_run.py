"""A run of a batch in which things go wrong: what `tests.batch.stress` starts. For Linux.

Pictures are painted, not drawn by a model. What is to go wrong is asked for by files in the folder of faults, one for
each moment; whichever process comes to that moment first takes the file away and lets it happen.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from DeepCache.batch import job, ray_engine
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.local_engine import LocalEngine
from DeepCache.batch.picture import filed, picture_bytes, picture_path, picture_record
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow
from DeepCache.cli.batch import stop_on_signal

TAG = "DEEPCACHE_STRESS_TAG"
FINISHED, DISK, RUNTIME, STOPPED = 0, 3, 4, 130
SIZE = (12, 12)
SEED = 7


def painted(prompt: str, seed: int, size: tuple[int, int]) -> bytes:
    """The pixels of a picture, which depend on its row alone."""
    width, height = size
    return hashlib.shake_256(f"{prompt} {seed} {width}x{height}".encode()).digest(3 * width * height)


def tagged(tag: str) -> list[int]:
    """The processes of a run: the driver and all that came of it."""
    wanted = f"{TAG}={tag}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def kill_all(tag: str) -> None:
    """Ends a whole run at once, this process last if it is of it."""
    here = os.getpid()
    # Again, for those that were just being started.
    while others := [pid for pid in tagged(tag) if pid != here]:
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if os.environ.get(TAG) == tag:
        os.kill(here, signal.SIGKILL)


class Faults:
    """What goes wrong by itself when a process comes to a certain moment.

    Args:
        place: the folder with the faults that are asked for, the list of those that came, and the log of pictures.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._seen: Counter[str] = Counter()

    @staticmethod
    def ask(place: Path, moment: str, what: str, skip: int) -> None:
        """Asks for a fault: `kill` of the process, `kill all` of the run, `full disk` or `exception`, at the first such
        moment after `skip` of them in one process."""
        partial = place / "asked"
        partial.write_text(json.dumps({"what": what, "skip": skip}))
        partial.rename(place / f"{moment}.fault")

    def at(self, moment: str, path: Path | None = None) -> None:
        self._seen[moment] += 1
        asked = self._place / f"{moment}.fault"
        try:
            fault = json.loads(asked.read_text())
            if self._seen[moment] <= fault["skip"]:
                return
            asked.unlink()
        except FileNotFoundError:
            return
        note(self._place / "came", {"moment": moment, "what": fault["what"]})
        if fault["what"].startswith("kill"):
            if path is not None:
                os.truncate(path, path.stat().st_size // 2)
            if fault["what"] == "kill all":
                kill_all(os.environ[TAG])
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["what"] == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise RuntimeError("an exception that was asked for")

    def install(self) -> None:
        """Watches this process write files: each is half written, about to be renamed, and renamed."""
        fsync, replace = os.fsync, Path.replace

        def watched_fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_file():
                self.at(f"{_kind(path)} half written", path)
            fsync(descriptor)

        def watched_replace(path: Path, target: Path) -> Path:
            self.at(f"{_kind(target)} before rename")
            found = replace(path, target)
            self.at(f"{_kind(target)} after rename")
            return found

        os.fsync = watched_fsync
        Path.replace = watched_replace  # type: ignore[method-assign, assignment]


def _kind(path: Path) -> str:
    if path.parent.name == "journal":
        return "journal"
    return next((kind for kind in ("manifest", "job") if f"{kind}." in path.name), "picture")


def note(path: Path, what: dict[str, Any]) -> None:
    """Adds a line to a file that many processes add to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, json.dumps(what).encode() + b"\n")
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class PainterMaker:
    """Makes painters. See `WorkerMaker`."""

    folder: BatchFolder
    place: Path
    pause: float

    def __call__(self, expected: dict[str, Any] | None) -> Painter:
        if expected not in (None, Painter.facts):
            raise ValueError("another painter")
        return Painter(self)


class Painter:
    """Paints pictures, slowly. See `Worker`."""

    facts: ClassVar[dict[str, Any]] = {"model": "painter"}
    _faults: Faults | None = None

    def __init__(self, made_for: PainterMaker) -> None:
        self._made_for = made_for
        # In the process of a local run, too, it is watched once.
        if Painter._faults is None:
            Painter._faults = Faults(made_for.place)
            Painter._faults.install()

    def draw(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        return [self._found(row) or self._drawn(row) for row in rows]

    def _found(self, row: BatchRow) -> BatchRecord | None:
        data = self._made_for.folder.read(picture_path(row.id))
        return None if data is None else picture_record(data, row.id)

    def _drawn(self, row: BatchRow) -> BatchRecord:
        folder, place = self._made_for.folder, self._made_for.place
        size, seed = row.size or SIZE, row.seed_for(SEED)
        record = BatchRecord(row.id, row.row_id, row.prompt, row.negative_prompt or "", seed, settings="{}")
        if "cannot" in row.prompt:
            return BatchRecord(row.id, row.row_id, row.prompt, error="it cannot be painted")
        image = Image.frombytes("RGB", size, painted(row.prompt, seed, size))
        data = picture_bytes(image, record, {})
        there = folder.read(picture_path(row.id)) == data
        assert Painter._faults is not None
        Painter._faults.at("drawing")
        time.sleep(self._made_for.pause * (1 + row.seed_for(0) % 100) / 50)
        at_once = folder.read(picture_path(row.id)) == data
        folder.write(picture_path(row.id), data)
        note(
            place / "log",
            {"id": row.id, "sha256": hashlib.sha256(data).hexdigest(), "there": there, "at_once": at_once},
        )
        return filed(BatchRecord(**vars(record) | {"width": size[0], "height": size[1], "seconds": 0.0}), data)


def main() -> None:
    options = _options()
    Faults(options.place)
    Painter._faults = Faults(options.place)
    Painter._faults.install()
    # So that small jobs have journals and more than one pipeline.
    job._JOURNAL_ROWS, job._JOURNAL_SECONDS = 5, 0.2
    ray_engine._BATCHES_OF_A_WORKER = 50
    folder = BatchFolder(options.folder)
    engine = ray_engine.RayEngine(options.workers) if options.engine == "ray" else LocalEngine()
    stage = options.place / "stage"
    with stop_on_signal(print) as stop:
        try:
            summary = job.run_batch(
                options.prompts,
                folder,
                {"seed": SEED},
                {},
                PainterMaker(folder, options.place, options.pause),
                batch=options.batch,
                engine=engine,
                on_progress=lambda progress: stage.write_text(progress.stage) and None,
                stop=stop,
            )
        except OSError as error:
            sys.exit(_told(error, DISK))
        except RuntimeError as error:
            sys.exit(_told(error, RUNTIME))
    sys.exit(STOPPED if summary.left else FINISHED)


def _told(error: Exception, status: int) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--prompts", "--folder", "--engine"):
        parser.add_argument(name, required=True)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.01)
    return parser.parse_args()
