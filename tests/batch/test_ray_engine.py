"""The same job by a pool of Ray actors, on a Ray that is started once for all."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchSettings, RayEngine, generate_batch
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.manifest import read_manifest
from tests.batch.counting_worker import ChangingWorkers

pytestmark = pytest.mark.ray

TEN = [{"prompt": letter} for letter in "abcdefghij"]


@pytest.fixture(scope="module")
def ray():
    # Its constructor keeps Ray quiet.
    RayEngine()
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        # Its processes give way to all others otherwise, and the tests beside these take every core.
        _system_config={"worker_niceness": 0},
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def two(ray):
    yield RayEngine(2)
    # It was not this engine that started it.
    assert ray.is_initialized()


class Fail:
    """Fails before a row of this prompt, the first time that it comes."""

    def __init__(self, prompt: str, mark: Path, error: Exception | None = None) -> None:
        self._prompt, self._mark, self._error = prompt, mark, error

    def __call__(self, row):
        if row.prompt == self._prompt and not self._mark.exists():
            self._mark.touch()
            if self._error is not None:
                raise self._error
            os.kill(os.getpid(), signal.SIGKILL)


def test_two_actors_draw_the_same_files_as_this_process(two, tmp_path):
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


def test_every_row_is_drawn_once_by_two_actors(two, job):
    job.ask(*TEN, {"prompt": "wrong"}, {"prompt": ""})
    summary = job.run(engine=two, batch=2)
    assert (summary.done, summary.failed, summary.drawn, summary.left) == (10, 2, 12, 0)
    assert sorted(job.drawn) == [*"abcdefghij", "wrong"]
    assert os.getpid() not in job.workers.noted("by")
    assert [record.prompt for record in job.manifest()] == [*"abcdefghij", "wrong", ""]
    job.check(done=10, failed=2)
    starts = job.starts
    assert job.run(engine=two).drawn == 0
    assert job.starts == starts


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_every_row_is_drawn_once_where_an_actor_is_killed(two, job, tmp_path):
    job.ask(*TEN)
    summary = job.run(engine=two, before=Fail("d", tmp_path / "mark"))
    assert (tmp_path / "mark").exists()
    assert (summary.done, summary.left) == (10, 0)
    assert sorted(job.drawn) == list("abcdefghij")
    job.check(done=10)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("8 rows in succession"), RuntimeError),
        (FileNotFoundError("no disk"), OSError),
        (KeyError("odd"), RuntimeError),
    ],
    ids=["runtime", "disk", "other"],
)
def test_worker_that_cannot_go_on_is_told_and_the_same_command_goes_on(two, job, tmp_path, error, kind):
    job.ask(*TEN)
    with pytest.raises(kind, match=error.args[0]):
        job.run(engine=two, before=Fail("d", tmp_path / "mark", error))
    done = len(job.drawn)
    assert done < 10
    job.check(done=done)
    assert job.run().done == 10
    assert sorted(job.drawn) == list("abcdefghij")
    job.check(done=10)


def test_stop_finishes_what_is_in_hand(two, job):
    job.ask(*({"prompt": str(number)} for number in range(60)))
    summary = job.run(engine=two, stop=lambda: len(job.drawn) >= 3)
    assert 3 <= summary.done < 60
    assert summary.left == 60 - summary.done
    assert len(job.drawn) == summary.done
    job.check(done=summary.done)
    assert job.run().done == 60
    assert len(job.drawn) == len(set(job.drawn)) == 60
    job.check(done=60)


def test_another_model_is_refused(two, job):
    job.ask(*TEN[:2])
    job.run()
    job.ask(*TEN)
    with pytest.raises(ValueError, match="another model: model is 'dots' there and 'lines' here"):
        job.run(engine=two, facts={"model": "lines"})
    assert job.drawn == ["a", "b"]


def test_another_model_of_a_later_worker_is_refused(two, job):
    job.ask(*TEN)
    job.workers = ChangingWorkers(job.folder, job.workers.log)
    with pytest.raises(ValueError, match="another model: model is 'dots' there and 'lines' here"):
        job.run(engine=two)
    assert job.drawn == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": 0}, "workers must be 1 or more, got 0"),
        ({"workers": 3, "most_workers": 2}, "the most workers must be 3 or more, as many as the least, got 2"),
        ({"most_workers": 0}, "the most workers must be 1 or more, as many as the least, got 0"),
        ({"gpus": -1.0}, r"GPUs for each worker must be 0 or more, got -1\.0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        RayEngine(**values)


def test_missing_ray_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"DeepCache\[ray\]"):
        RayEngine()
