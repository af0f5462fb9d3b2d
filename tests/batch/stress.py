"""Batch jobs that are killed, stopped and run out of disk space at random moments until they finish. For Linux.

Every round is a job. Its command runs repeatedly, each time with a fault, and at the end without. Then the rows are
counted in the prompt file, the manifest and the images, without `DeepCache.batch`.

    python -m tests.batch.stress --output benchmarks/batch_stress.json
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from tests.batch.faulty_run import (
    DISK,
    FINISHED,
    RUNTIME,
    SEED,
    SIZE,
    STOPPED,
    TAG,
    Faults,
    kill_all,
    pixels_of,
    tagged,
)

SECONDS_FOR_A_RUN = 90.0
SECONDS_FOR_REMAINS = 30.0
# After its server is killed, Ray's agents search for it for a minute and end. They do not work on rows.
AGENTS, SECONDS_FOR_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent"), 90.0

# Faults from outside, and the engines that they apply to.
SIGNALS = {
    "kill -9 of a worker": ("ray",),
    "kill -9 of the read task": ("ray",),
    "kill -9 of the feed": ("ray",),
    "kill -9 of the raylet": ("ray",),
    "kill -9 of the driver": ("local", "ray"),
    "kill -9 of the whole tree": ("local", "ray"),
    "SIGINT": ("local", "ray"),
    "SIGINT of the group": ("local", "ray"),
    "SIGTERM": ("local", "ray"),
    "full disk": ("local", "ray"),
}
PROCESSES = {
    "kill -9 of a worker": "ray::MapWorker",
    "kill -9 of the read task": "ray::ReadFedRows",
    "kill -9 of the feed": "ray::_Feed",
    "kill -9 of the raylet": "raylet",
}
# Faults at moments of a run.
MOMENTS = {
    "generating": ("kill", "exception"),
    **{f"image {when}": ("kill", "kill all", "full disk") for when in ("half written", "before rename")},
    "image after rename": ("kill", "kill all"),
    **{
        f"{name} {when}": ("kill all", "full disk")
        for name in ("journal", "manifest", "job")
        for when in ("half written", "before rename")
    },
    **{f"{name} after rename": ("kill all",) for name in ("journal", "manifest", "job")},
}
DAMAGE = ("image truncated", "image emptied", "partial file left")
STOPS = ("SIGINT", "SIGINT of the group", "SIGTERM")


class Stress:
    """The rounds and their results, in an empty folder `work`, which may contain a small `disk`."""

    def __init__(self, work: Path, disk: Path | None, seed: int) -> None:
        self._work = work
        self._disk = disk
        self._random = random.Random(seed)
        self._round = 0
        self._ended: list[str] = []
        self.faults: Counter[tuple[str, str, str]] = Counter()
        self.came: Counter[tuple[str, str, str]] = Counter()
        self.counts: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest = {"run": 0.0, "processes of a killed run": 0.0}

    def round(self, engine: str, faults: int, shipped: bool = False) -> None:
        """Runs one job with so many faults; `shipped` jobs are commands with the bundled model."""
        self._round += 1
        place, folder = self._work / f"{self._round}", (self._disk or self._work) / f"images-{self._round}"
        job = (_CommandJob if shipped else _Job)(place, folder, engine, self._random)
        wanted = self._choose(engine, faults, shipped)
        for number in range(faults):
            finished = self._run(job, wanted.pop(), f"round {self._round}, run {number + 1}") == FINISHED
            if finished and wanted:
                # The remaining faults need rows.
                job.more_rows()
        last = self._run(job, ("none", "none"), f"round {self._round}, last run")
        if last != FINISHED:
            self.wrong.append(f"round {self._round}: the last run ended with {last}: {job.said()}")
        found = job.count()
        self.counts.update(found["counts"])
        for each in found["wrong"]:
            self.wrong.append(f"round {self._round} ({engine}): {each}")
            print(self.wrong[-1], flush=True)
        self.counts["rounds"] += 1
        self._ended += job.tags
        job.remove()

    def wait_for_agents(self) -> None:
        """Waits for the last processes of all runs."""
        end = time.monotonic() + SECONDS_FOR_AGENTS
        while left := [pid for tag in self._ended for pid in tagged(tag)]:
            if time.monotonic() > end:
                self.wrong.append(f"these processes are left at the end: {list(map(_words, left))}")
                break
            time.sleep(1)
        for tag in self._ended if left else ():
            kill_all(tag)

    def add(self, other: Stress) -> None:
        """Adds the results of other rounds."""
        self.faults += other.faults
        self.counts += other.counts
        self.runs += other.runs
        self.wrong += other.wrong
        self.longest = {name: max(seconds, other.longest[name]) for name, seconds in self.longest.items()}

    def _choose(self, engine: str, number: int, shipped: bool) -> list[tuple[str, str]]:
        every = [(kind, "outside") for kind, engines in SIGNALS.items() if engine in engines]
        if not shipped:
            every += [(what, moment) for moment, whats in MOMENTS.items() for what in whats]
        # The rarest faults so far, so that all occur.
        self._random.shuffle(every)
        every.sort(key=lambda fault: self.came[(engine, *fault)])
        # The file of the job is written once, so its faults come first, and of these the one that leaves it last.
        return sorted(every[:number], key=lambda fault: (fault[1].startswith("job"), fault[1] != "job after rename"))

    def _run(self, job: _Job, fault: tuple[str, str], name: str) -> int:
        """Runs the command once with a fault and returns its exit status."""
        what, moment = fault
        start = time.monotonic()
        job.begin(f"{name}".replace(" ", "-").replace(",", ""))
        came = 0
        if moment == "outside":
            came, stage = self._from_outside(job, what)
        elif moment != "none":
            spread = 25 if moment.startswith(("image", "generating")) else 3 if moment.startswith("journal") else 1
            Faults.ask(job.place, moment, what, self._random.randrange(spread))
        status = job.end(SECONDS_FOR_A_RUN)
        if moment not in ("outside", "none"):
            came, stage = job.forget_fault(moment), moment
        if came:
            self.faults[job.engine, what, stage] += 1
            self.came[job.engine, what, moment] += 1
        self.longest["run"] = max(self.longest["run"], time.monotonic() - start)
        self.runs[f"{what}: {_ending(status)}" if came else "no fault: " + _ending(status)] += 1
        self._judge(job, what if came else "none", status, name)
        waited = self._wait_for_remains(job, name)
        if came:
            print(f"{name:22} {job.engine:5} {what:25} {stage:28} {_ending(status):20} {waited:.0f} s", flush=True)
        if status not in (FINISHED, STOPPED) and self._random.random() < 0.6:
            kind = self._random.choice(DAMAGE)
            if job.damage(kind):
                self.faults[job.engine, kind, "after a run"] += 1
        return status

    def _from_outside(self, job: _Job, what: str) -> tuple[int, str]:
        if what in PROCESSES:
            pids = job.wait_for(PROCESSES[what], 40.0)
            time.sleep(self._random.uniform(0, 1.5))
            pids = job.processes(PROCESSES[what]) or pids
            victims = self._random.sample(pids, min(len(pids), 1))
        elif what == "full disk":
            if self._disk is None:
                return 0, ""
            if self._random.random() < 0.8:
                job.wait_for_images()
            time.sleep(self._random.uniform(0, 0.8))
            stage = job.stage()
            fill(self._disk / "filler", self._random.randrange(600))
            return int(job.lives()), stage
        else:
            # Signals end the command at once until it handles them.
            if what in STOPS:
                job.wait_to_begin()
            running = self._random.random() < 0.7
            if running:
                job.wait_for_images()
            time.sleep(self._random.uniform(0, 1.2 if running else 4.0 if job.engine == "ray" else 0.5))
            victims = [job.pid]
        stage = job.stage()
        if not victims or not job.lives():
            return 0, stage
        if what == "kill -9 of the whole tree":
            kill_all(job.tag)
            return 1, stage
        number = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(what.split(" of ")[0], signal.SIGKILL)
        with suppress(ProcessLookupError):
            if what == "SIGINT of the group":
                os.killpg(job.pid, number)
            else:
                os.kill(victims[0], number)
            return 1, stage
        return 0, stage

    def _judge(self, job: _Job, what: str, status: int, name: str) -> None:
        """Checks the exit status of a run."""
        allowed = {
            "none": {FINISHED},
            "full disk": {FINISHED, DISK},
            "exception": {RUNTIME},
            "kill": {FINISHED} if job.engine == "ray" else {-signal.SIGKILL},
            "kill all": {-signal.SIGKILL},
            "kill -9 of a worker": {FINISHED},
            "kill -9 of the read task": {FINISHED},
            "kill -9 of the feed": {FINISHED, RUNTIME},
            "kill -9 of the driver": {-signal.SIGKILL},
            "kill -9 of the whole tree": {-signal.SIGKILL},
            **{stop: {FINISHED, STOPPED} for stop in STOPS},
        }
        if status not in allowed.get(what, {status}) or status is job.HANGS:
            self.wrong.append(f"{name} ({job.engine}, {what}) ended with {_ending(status)}: {job.said()}")
            print(self.wrong[-1], flush=True)
        if what in STOPS and status in (FINISHED, STOPPED):
            self.wrong += [f"{name} ({job.engine}, {what}): {each}" for each in job.stopped_wrongly()]

    def _wait_for_remains(self, job: _Job, name: str) -> float:
        """Waits for processes that outlive a killed run. Half of the time the next run starts at once."""
        if self._disk is not None:
            (self._disk / "filler").unlink(missing_ok=True)
        start = time.monotonic()
        if self._random.random() < 0.5:
            return 0.0
        while left := [pid for pid in tagged(job.tag) if not _words(pid).startswith(AGENTS)]:
            if time.monotonic() - start > SECONDS_FOR_REMAINS:
                self.wrong.append(
                    f"{name} ({job.engine}): these processes are left after it: {list(map(_words, left))}"
                )
                print(self.wrong[-1], flush=True)
                kill_all(job.tag)
                break
            time.sleep(0.1)
        waited = time.monotonic() - start
        self.longest["processes of a killed run"] = max(self.longest["processes of a killed run"], waited)
        return waited


class _Job:
    """A prompt file, the output folder, and the command that runs."""

    HANGS = 999

    def __init__(self, place: Path, folder: Path, engine: str, chance: random.Random) -> None:
        self.place, self.folder, self.engine = place, folder, engine
        self._random = chance
        self._batch = chance.choice((1, 1, 3, 4))
        self._pause = 0.015 if engine == "local" else 0.03
        self.place.mkdir()
        self._rows: list[dict[str, Any]] = []
        self._lines: list[str] = []
        self.tags: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.tag = ""
        self._size_before = 0
        self._images_before: set[str] = set()
        self.more_rows()

    def more_rows(self) -> None:
        """Adds rows to the file: good ones of several sizes, bad ones, and copies of others."""
        for _ in range(self._random.randrange(40, 120) if self.engine == "local" else self._random.randrange(80, 200)):
            chance = self._random.random()
            if self._lines and chance < 0.06:
                number = self._random.randrange(len(self._lines))
                self._rows.append(self._rows[number])
                self._lines.append(self._lines[number])
                continue
            row: dict[str, Any] = {"prompt": f"an image, number {len(self._rows)}", "good": True}
            if self._random.random() < 0.7:
                row["id"] = f"row {len(self._rows)}"
            if self._random.random() < 0.3:
                row["seed"] = self._random.randrange(10**6)
            if self._random.random() < 0.4:
                row["size"] = self._random.choice(("8x8", "16x8", "24x24"))
            if 0.06 <= chance < 0.12:
                row["good"] = False
                spoil = self._random.choice(("size", "prompt", "worker", "line"))
                row |= {"size": "9x"} if spoil == "size" else {"prompt": ""} if spoil == "prompt" else {}
                row |= {"prompt": f"a row that cannot be generated, {len(self._rows)}"} if spoil == "worker" else {}
                if spoil == "line":
                    self._rows.append({"good": False})
                    self._lines.append(f'{{"prompt": "no end {len(self._rows)}')
                    continue
            self._rows.append(row)
            self._lines.append(json.dumps({name: value for name, value in row.items() if name != "good"}))
        (self.place / "prompts.jsonl").write_text("\n".join(self._lines) + "\n")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def begin(self, name: str) -> None:
        self.tag = f"{self.place.parent.name}-{name}-{time.monotonic_ns()}"
        self.tags.append(self.tag)
        (self.place / "stage").unlink(missing_ok=True)
        self._size_before = self._progress()
        self._images_before = self._images()
        temporary = self.place / "tmp"
        temporary.mkdir(exist_ok=True)
        with (self.place / "said").open("wb") as said:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env=os.environ | {TAG: self.tag, "TMPDIR": str(temporary), "RAY_TMPDIR": str(self.place.parent / "r")},
            )

    def _command(self) -> list[str]:
        arguments = {"prompts": self.place / "prompts.jsonl", "folder": self.folder, "place": self.place}
        arguments |= {"engine": self.engine, "batch": self._batch, "pause": self._pause}
        code = "from tests.batch.faulty_run import main; main()"
        return [
            sys.executable,
            "-c",
            code,
            *(str(part) for name in arguments for part in (f"--{name}", arguments[name])),
        ]

    def end(self, seconds: float) -> int:
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            kill_all(self.tag)
            self._process.wait()
            return self.HANGS

    def lives(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def said(self) -> str:
        return " ".join((self.place / "said").read_text(errors="replace").split())[-600:]

    def stage(self) -> str:
        with suppress(FileNotFoundError):
            return (self.place / "stage").read_text() or "starting"
        return "starting"

    def wait_to_begin(self) -> None:
        self._wait(lambda: self.stage() != "starting", 40.0)

    def wait_for_images(self) -> None:
        self._wait(lambda: self._progress() > self._size_before, 40.0)

    def wait_for(self, role: str, seconds: float) -> list[int]:
        self._wait(lambda: bool(self.processes(role)), seconds)
        return self.processes(role)

    def processes(self, role: str) -> list[int]:
        found = []
        for pid in tagged(self.tag):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if os.path.basename(words[0].decode()).startswith(role) or words[0].decode().startswith(role):
                    found.append(pid)
        return found

    def forget_fault(self, moment: str) -> int:
        """Withdraws a request, and returns 1 if the fault has occurred."""
        try:
            (self.place / f"{moment}.fault").unlink()
        except FileNotFoundError:
            return 1
        return 0

    def _progress(self) -> int:
        with suppress(FileNotFoundError):
            return (self.place / "log").stat().st_size
        return 0

    def _wait(self, there: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.lives() and not there():
            time.sleep(0.01)

    def damage(self, kind: str) -> bool:
        """Damages an image as a power cut may do, and returns whether there was one."""
        images = sorted((self.folder / "pictures").glob("*/*.png"))
        if not images:
            return False
        image = self._random.choice(images)
        data = image.read_bytes()
        if kind == "partial file left":
            image.with_name(f".{image.name}.{self._random.getrandbits(64):x}.partial").write_bytes(data[:50])
        elif kind == "image emptied":
            image.write_bytes(b"")
        else:
            # At the end as often as anywhere else.
            cut = self._random.choice((self._random.randrange(1, 20), self._random.randrange(1, len(data) + 1)))
            image.write_bytes(data[:-cut])
        return True

    def stopped_wrongly(self) -> list[str]:
        """The errors in the folder after a run that was stopped."""
        there = self._images()
        # Images without a record of an earlier run are found when the engine reaches their rows.
        new = there - self._images_before
        if not (self.folder / "manifest.parquet").exists():
            return ["images, and no manifest"] if new else []
        lines = pq.read_table(self.folder / "manifest.parquet", columns=["path"]).column("path").to_pylist()
        recorded = {path for path in lines if path}
        alone = (recorded - there) | (new - recorded)
        wrong = [f"{len(alone)} images in the manifest or the folder alone"] if alone else []
        return wrong + self._left_over()

    def _images(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.glob("pictures/*/*.png")}

    def count(self) -> dict[str, Any]:
        """Counts rows that are lost or duplicated, and lists all errors."""
        counts: Counter[str] = Counter(rows=len(self._rows))
        wrong: list[str] = self._left_over()
        lines = pq.read_table(self.folder / "manifest.parquet").to_pylist()
        counts["rows_twice"] += len(lines) - len({line["id"] for line in lines})
        if len(lines) > len(self._rows):
            counts["rows_twice"] += len(lines) - len(self._rows)
        for number, row in enumerate(self._rows):
            if number >= len(lines):
                counts["rows_lost"] += 1
                wrong.append(f"row {number} is not in the manifest")
            elif reason := self._wrong_with(row, lines[number]):
                counts["rows_lost"] += 1
                wrong.append(f"row {number}: {reason}")
            else:
                counts["pictures" if row["good"] else "bad_rows"] += 1
        recorded = {line["path"] for line in lines if line["path"]}
        there = {
            path.relative_to(self.folder).as_posix() for path in self.folder.glob("pictures/*/*") if path.is_file()
        }
        counts["rows_twice"] += len(there - recorded)
        wrong += [f"{path} is not in the manifest" for path in sorted(there - recorded)]
        results: dict[str, set[str]] = {}
        log = self.place / "log"
        for text in log.read_text().splitlines() if log.exists() else ():
            entry = json.loads(text)
            counts["drawn"] += 1
            counts["rows_twice"] += entry["there"]
            counts["drawn_by_two_at_once"] += entry["at_once"] and not entry["there"]
            if entry["there"]:
                wrong.append(f"{entry['id']} was generated although its image existed")
            results.setdefault(entry["id"], set()).add(entry["sha256"])
        wrong += [f"{name} has {len(every)} results" for name, every in results.items() if len(every) > 1]
        return {"counts": counts, "wrong": wrong}

    def _wrong_with(self, row: dict[str, Any], line: dict[str, Any]) -> str:
        """The error in the result of a row; empty if there is none."""
        if "prompt" in row and row["prompt"] and (row["prompt"], row.get("id", "")) != (line["prompt"], line["row_id"]):
            return f"the manifest has {line['prompt']!r} instead"
        if not row["good"]:
            return "" if line["error"] and not line["path"] else "it is wrong, and the manifest has no error"
        if line["error"]:
            return line["error"]
        data = (self.folder / line["path"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != line["sha256"] or len(data) != line["bytes"]:
            return "the image is not that of the manifest"
        other = self._pixels_differ(row, line, data) or not data.endswith(b"IEND\xaeB`\x82")
        return "the image has other pixels" if other else ""

    def _pixels_differ(self, row: dict[str, Any], line: dict[str, Any], data: bytes) -> bool:
        seed = row.get("seed", int(hashlib.sha256(f"{SEED} {line['id']}".encode()).hexdigest()[:8], 16))
        width, height = map(int, row["size"].split("x")) if "size" in row else SIZE
        with Image.open(io.BytesIO(data)) as image:
            return image.tobytes() != pixels_of(row["prompt"], seed, (width, height))

    def _left_over(self) -> list[str]:
        partial = [path.name for path in self.folder.rglob("*.partial")]
        journal = [path.name for path in self.folder.glob("journal/*")]
        return [f"{name} is left over" for name in partial + journal]

    def remove(self) -> None:
        shutil.rmtree(self.place)
        shutil.rmtree(self.folder, ignore_errors=True)


class _CommandJob(_Job):
    """A job of the command line with the bundled model. The expected images are those of a run without faults."""

    def more_rows(self) -> None:
        if self._rows:
            return
        colors = ("red", "green", "blue", "yellow", "purple", "orange")
        self._rows = [
            {"prompt": f"a {color} {shape}", "good": True} for color in colors for shape in ("circle", "star")
        ]
        self._rows += self._rows[:2]
        self._lines = [json.dumps({"prompt": row["prompt"]}) for row in self._rows]
        (self.place / "prompts.jsonl").write_text("\n".join(self._lines) + "\n")
        folder, self._expected = self.folder, self.folder.with_name(f"{self.folder.name}-expected")
        self.folder, engine, self.engine = self._expected, self.engine, "local"
        subprocess.run(self._command(), check=True, capture_output=True)
        self.folder, self.engine = folder, engine

    def end(self, seconds: float) -> int:
        status = super().end(seconds)
        # The command has one exit status for all errors.
        return status if status != 2 else RUNTIME if "Ray" in self.said() else DISK

    def stage(self) -> str:
        lines = (self.place / "said").read_text(errors="replace").splitlines()
        return lines[-1].split(" …")[0].split(":")[0] if lines else "starting"

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self._expected)

    def _command(self) -> list[str]:
        words = [sys.executable, "-m", "DeepCache", "batch", str(self.place / "prompts.jsonl")]
        words += ["--output", str(self.folder), "--steps", "60", "--engine", self.engine, "--device", "cpu"]
        return words + (["--workers", "2"] if self.engine == "ray" else [])

    def _progress(self) -> int:
        return len(list(self.folder.glob("pictures/*/*.png")))

    def _pixels_differ(self, row: dict[str, Any], line: dict[str, Any], data: bytes) -> bool:
        return data != (self._expected / line["path"]).read_bytes()


def fill(path: Path, room: int) -> None:
    """Fills a disk except for some bytes."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))
    with suppress(OSError):
        os.truncate(path, max(0, path.stat().st_size - room * 100))


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:60]
    return ""


def _ending(status: int) -> str:
    named = {FINISHED: "finished", STOPPED: "stopped", DISK: "no room", RUNTIME: "gave up", _Job.HANGS: "hangs"}
    return named.get(status, f"killed by {-status}" if status < 0 else f"status {status}")


class Lane(threading.Thread):
    """The rounds of one engine, in a folder that is removed at the end."""

    def __init__(self, engine: str, rounds: int, options: argparse.Namespace) -> None:
        super().__init__()
        self._engine, self._rounds, self._options = engine, rounds, options
        # Ray's sockets need short paths.
        self._work = Path(tempfile.mkdtemp(prefix="dcs-", dir="/tmp"))
        self.disk = small_disk(self._work / "disk")
        self.stress = Stress(self._work, self.disk, options.seed)

    def run(self) -> None:
        try:
            for _ in range(self._options.command):
                self.stress.round(self._engine, 3, shipped=True)
            for _ in range(self._rounds):
                self.stress.round(self._engine, self._options.faults)
            self.stress.wait_for_agents()
        except Exception as error:
            self.stress.wrong.append(f"the rounds of {self._engine} ended: {error!r}")
            raise
        finally:
            if self.disk is not None:
                subprocess.run(["umount", "--lazy", self.disk], check=True)
            shutil.rmtree(self._work, ignore_errors=True)


def main() -> None:
    options = _options()
    result = provenance(options.seed) | {
        "rounds": {"local": options.local, "ray": options.ray, "command": options.command}
    }
    result["versions"] |= {name: version(name) for name in ("ray", "pyarrow")}
    start = time.monotonic()
    # In parallel, because Ray mostly waits when it starts. Each lane fills a disk of its own.
    lanes = [Lane("local", options.local, options), Lane("ray", options.ray, options)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    stress = lanes[0].stress
    stress.add(lanes[1].stress)
    rows = [
        {"engine": engine, "kind": what, "stage": stage, "number": number}
        for (engine, what, stage), number in sorted(stress.faults.items())
    ]
    result |= {
        "seconds": round(time.monotonic() - start),
        "disk": "a small tmpfs that is filled" if all(lane.disk for lane in lanes) else "an error that is raised",
        "faults_injected": stress.faults.total(),
        **{name: stress.counts[name] for name in ("rows", "rows_lost", "rows_twice", "pictures", "bad_rows")},
        **{name: stress.counts[name] for name in ("drawn", "drawn_by_two_at_once")},
        "wrong": stress.wrong,
        "longest_seconds": {name: round(seconds, 1) for name, seconds in stress.longest.items()},
        "by_kind": dict(sorted(_sum(stress, 1).items())),
        "by_engine": dict(sorted(_sum(stress, 0).items())),
        "endings": dict(sorted(stress.runs.items())),
        "faults": rows,
    }
    write_result(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name not in ("faults", "machine")}, indent=2))
    sys.exit(bool(stress.wrong))


def _sum(stress: Stress, part: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for fault, number in stress.faults.items():
        found[fault[part]] += number
    return found


def small_disk(path: Path) -> Path | None:
    """A small disk to fill; None if this user cannot create one."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=False, capture_output=True)
    return path if made.returncode == 0 else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--local", type=int, default=14, help="rounds of the local engine")
    parser.add_argument("--ray", type=int, default=4, help="rounds of Ray")
    parser.add_argument(
        "--command", type=int, default=1, help="rounds of each engine with the command and the bundled model"
    )
    parser.add_argument("--faults", type=int, default=12, help="faults in each round")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
