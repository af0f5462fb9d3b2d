"""Ray actors as workers, on one Ray that is started for all tests."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchSettings, RayEngine, generate_batch
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.manifest import read_manifest

pytestmark = pytest.mark.ray

TEN = [{"prompt": letter} for letter in "abcdefghij"]


@pytest.fixture(scope="module")
def ray():
    # The constructor silences Ray.
    RayEngine()
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        # Otherwise other tests take every core from its processes.
        _system_config={"worker_niceness": 0},
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def two(ray):
    yield RayEngine(2)
    # The engine did not start it.
    assert ray.is_initialized()


class Fail:
    """Raises an error, or kills the process, before a row of this prompt, the first `times` times."""

    def __init__(self, prompt: str, mark: Path, error: Exception | None = None, times: int = 1) -> None:
        self._prompt, self._mark, self._error, self._times = prompt, mark, error, times

    def __call__(self, row):
        if row.prompt == self._prompt and (not self._mark.exists() or self._mark.stat().st_size < self._times):
            with self._mark.open("a") as file:
                file.write("x")
            if self._error is not None:
                raise self._error
            os.kill(os.getpid(), signal.SIGKILL)


def test_two_actors_write_the_same_files_as_this_process(two, tmp_path):
    rows = [
        *('{"prompt": "a red circle"}', '{"prompt": "a blue star", "seed": 3}', '{"prompt": "a ring", "size": 72}'),
        *('{"prompt": ""}', '{"prompt": "a red circle", "negative": "x"}', '{"prompt": "y", "size": 65}', '"z"'),
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    settings = BatchSettings(steps=4, cache=DeepCacheConfig(2))
    found = []
    for name, engine in (("local", None), ("ray", two)):
        folder = tmp_path / name
        summary = generate_batch(tmp_path / "prompts.jsonl", folder, settings, batch=2, device="cpu", engine=engine)
        assert (summary.done, summary.failed, summary.left) == (5, 2, 0)
        records = [record for records in read_manifest(BatchFolder(folder)) for record in records]
        files = {path.relative_to(folder): path.read_bytes() for path in folder.glob("**/*.*") if path.is_file()}
        files.pop(Path("manifest.parquet"))
        found.append(([replace(record, seconds=None) for record in records], files))
    assert found[0] == found[1]
    assert len([path for path in found[0][1] if path.suffix == ".png"]) == 5


def test_every_row_is_generated_once_by_two_actors(two, job):
    job.ask(*TEN, {"prompt": "wrong"}, {"prompt": ""})
    summary = job.run(engine=two, batch=2)
    assert (summary.done, summary.failed, summary.drawn, summary.left) == (10, 2, 12, 0)
    assert sorted(job.generated) == [*"abcdefghij", "wrong"]
    assert os.getpid() not in job.noted("by")
    assert [record.prompt for record in job.manifest()] == [*"abcdefghij", "wrong", ""]
    job.check(done=10, failed=2)
    starts = job.noted("started")
    assert job.run(engine=two).drawn == 0
    assert job.noted("started") == starts


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
@pytest.mark.parametrize("prompt", "adj")
def test_every_row_is_generated_once_if_an_actor_is_killed(two, job, tmp_path, prompt):
    job.ask(*TEN)
    summary = job.run(engine=two, before=Fail(prompt, tmp_path / "mark", times=2))
    assert (tmp_path / "mark").stat().st_size == 2
    assert (summary.done, summary.left) == (10, 0)
    assert sorted(job.generated) == list("abcdefghij")
    job.check(done=10)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("8 consecutive rows"), RuntimeError),
        (FileNotFoundError("no disk"), OSError),
        (KeyError("odd"), RuntimeError),
    ],
    ids=["runtime", "disk", "other"],
)
def test_an_error_of_a_worker_is_reported_and_the_run_is_resumed(two, job, tmp_path, error, kind):
    job.ask(*TEN)
    with pytest.raises(kind, match=error.args[0]):
        job.run(engine=two, before=Fail("d", tmp_path / "mark", error))
    done = len(job.generated)
    assert done < 10
    job.check(done=done)
    assert job.run().done == 10
    assert sorted(job.generated) == list("abcdefghij")
    job.check(done=10)


def test_stop_finishes_the_batches_in_flight(two, job):
    job.ask(*({"prompt": str(number)} for number in range(60)))
    summary = job.run(engine=two, stop=lambda: len(job.generated) >= 3)
    assert 3 <= summary.done < 60
    assert summary.left == 60 - summary.done
    assert len(job.generated) == summary.done
    job.check(done=summary.done)
    assert job.run().done == 60
    assert len(job.generated) == len(set(job.generated)) == 60
    job.check(done=60)


def changing_model(make_worker, other, expected):
    """The first worker has another model than the others."""
    return (make_worker if expected is None else other)(expected)


def test_another_model_is_refused(two, job):
    job.ask(*TEN[:2])
    job.run()
    job.ask(*TEN)
    with pytest.raises(ValueError, match=r"another model: \{'model': 'lines'\} instead of \{'model': 'dots'\}"):
        job.run(engine=two, model="lines")
    assert job.generated == ["a", "b"]


def test_another_model_of_a_later_worker_is_refused(two, job):
    job.ask(*TEN)
    make_worker = partial(changing_model, job.make_worker(), job.make_worker("lines"))
    with pytest.raises(ValueError, match=r"another model: \{'model': 'lines'\} instead of \{'model': 'dots'\}"):
        job.run(engine=two, make_worker=make_worker)
    assert job.generated == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers must be >= 1, got 0"),
        ({"workers": 3, "most_workers": 2}, r"most_workers must be >= workers \(3\), got 2"),
        ({"most_workers": 0}, r"most_workers must be >= workers \(1\), got 0"),
        ({"gpus": -1.0}, r"GPUs per worker must be >= 0, got -1\.0"),
        ({"address": "ray://host:10001"}, "must not be that of a Ray Client, got 'ray://host:10001'"),
    ],
)
def test_wrong_arguments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RayEngine(**values)


def test_missing_ray_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"DeepCache\[ray\]"):
        RayEngine()
