"""Every row once, whatever interrupts the run: with a worker that counts what it draws."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from itertools import count
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from DeepCache.batch import BatchProgress, batch_row, generate_batch
from DeepCache.batch import job as job_module
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.manifest import Journal
from DeepCache.batch.picture import picture_path
from DeepCache.prompts import read_rows
from tests.batch.counted_job import COMMON, CountedJob

ROOT = Path(__file__).parents[2]
SIX = [{"prompt": letter} for letter in "abcdef"]


class Interruption(BaseException):
    pass


def killed(monkeypatch):
    """Lets runs end as if they were killed: nothing is done any more."""
    monkeypatch.setattr(job_module._Run, "end", lambda *_: None)


def fail_at(prompt, error):
    def before(row):
        if row.prompt == prompt:
            raise error

    return before


def paths(job):
    return {record.prompt: Path(job.folder.path(record.path)) for record in job.manifest()}


def full_disk(monkeypatch, *names):
    """Lets no file be written whose name begins like one of these."""
    write = BatchFolder.write

    def fail(self, name, data):
        if name.startswith(names):
            raise OSError(28, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(BatchFolder, "write", fail)


def test_every_row_is_drawn_once_and_in_the_manifest(job):
    job.ask(*SIX)
    summary = job.run()
    assert (summary.rows, summary.done, summary.failed, summary.drawn, summary.left) == (6, 6, 0, 6, 0)
    assert job.drawn == list("abcdef")
    assert [record.prompt for record in job.manifest()] == list("abcdef")
    job.check(done=6)


def test_same_command_again_draws_nothing_and_loads_nothing(job):
    job.ask(*SIX)
    job.run()
    before = job.manifest()
    summary = job.run()
    assert (summary.done, summary.drawn) == (6, 0)
    assert (len(job.drawn), job.starts) == (6, 1)
    assert job.manifest() == before
    job.check(done=6)


@pytest.mark.parametrize("moment", range(11))
def test_run_that_is_interrupted_at_any_moment_goes_on(job, moment):
    job.ask(*SIX)
    moments = count()

    def interrupt(progress):
        if next(moments) == moment:
            raise Interruption

    with pytest.raises(Interruption):
        job.run(on_progress=interrupt)
    assert job.run().done == 6
    assert sorted(job.drawn) == list("abcdef")
    job.check(done=6)


def test_those_are_all_the_moments(job):
    job.ask(*SIX)
    told = []
    job.run(on_progress=told.append)
    assert len(told) == 11


@pytest.mark.parametrize("prompt", "abcdef")
@pytest.mark.parametrize("error", [Interruption(), OSError("a disk"), RuntimeError("a worker")], ids=repr)
def test_run_whose_worker_fails_goes_on(job, prompt, error):
    job.ask(*SIX)
    with pytest.raises(type(error)):
        job.run(before=fail_at(prompt, error))
    done = "abcdef".index(prompt)
    job.check(done=done)
    assert job.run().drawn == 6 - done
    assert job.drawn == list("abcdef")
    job.check(done=6)


def test_picture_without_a_record_is_found_and_not_drawn_again(job, monkeypatch):
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        killed(patch)
        with pytest.raises(Interruption):
            job.run(before=fail_at("d", Interruption()))
    assert job.manifest() == []
    job.run()
    assert job.drawn == list("abcdef")
    job.check(done=6)
    # Of those that are found, nobody knows how long they took.
    assert [(record.seconds, record.host) for record in job.manifest()] == [(None, "")] * 3 + [(0.5, "here")] * 3


def test_journal_without_a_manifest_is_read(job, monkeypatch):
    monkeypatch.setattr(job_module, "_JOURNAL_ROWS", 2)
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        killed(patch)
        with pytest.raises(Interruption):
            job.run(before=fail_at("f", Interruption()))
    assert list(job.folder.sizes("journal"))
    job.run()
    assert job.drawn == list("abcdef")
    # The fifth had no part of the journal yet.
    assert [record.seconds for record in job.manifest()] == [0.5] * 4 + [None, 0.5]
    job.check(done=6)


def test_manifest_that_cannot_be_written_loses_no_record(job, monkeypatch):
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("a full disk")))
        with pytest.raises(OSError, match="a full disk"):
            job.run()
    assert job.manifest() == []
    assert job.run().drawn == 0
    assert [record.seconds for record in job.manifest()] == [0.5] * 6
    job.check(done=6)


def test_journal_that_outlived_its_manifest_changes_nothing(job, monkeypatch):
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "clear", lambda _: None)
        job.run()
    before = job.manifest()
    job.run()
    assert job.manifest() == before
    job.check(done=6)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
@pytest.mark.parametrize("at", ["a", "d", "f"])
def test_killed_process_is_gone_on_with(job, at):
    job.ask(*SIX)
    code = (
        "import os, sys; from pathlib import Path; from tests.batch.counted_job import CountedJob\n"
        f"kill = lambda row: os.kill(os.getpid(), {int(signal.SIGKILL)}) if row.prompt == {at!r} else None\n"
        "CountedJob(Path(sys.argv[1])).run(before=kill)"
    )
    done = subprocess.run([sys.executable, "-c", code, job.prompts.parent], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert job.drawn == list("abcdef")[: "abcdef".index(at)]
    assert job.run().done == 6
    assert job.drawn == list("abcdef")
    job.check(done=6)


@pytest.mark.parametrize("broken", ["gone", "cut off", "empty"])
def test_picture_that_is_not_whole_is_drawn_again(job, broken):
    job.ask(*SIX)
    job.run()
    whole = job.files()
    path = paths(job)["c"]
    if broken == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if broken == "empty" else -1])
    summary = job.run()
    assert (summary.done, summary.drawn) == (6, 1)
    assert job.drawn == [*"abcdef", "c"]
    assert job.files() == whole
    job.check(done=6)


def test_picture_that_was_never_whole_and_has_no_record_is_drawn_again(job):
    job.ask(*SIX)
    with pytest.raises(Interruption):
        job.run(before=fail_at("d", Interruption()))
    row = batch_row(next(row for row in read_rows(job.prompts) if row.values["prompt"] == "e"))
    path = Path(job.folder.path(picture_path(row.id)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG")
    path.with_name(f".{path.name}.0123.partial").write_bytes(b"\x89PN")
    job.run()
    job.check(done=6)


def test_rows_that_are_the_same_have_a_picture_each(job):
    job.ask(*[{"prompt": "x"}] * 3, {"prompt": "x", "seed": 5}, {"prompt": "x", "seed": 5})
    job.run()
    records = job.manifest()
    assert len({record.path for record in records}) == 5
    assert len({record.seed for record in records[:3]}) == 3
    assert [record.seed for record in records[3:]] == [5, 5]
    job.check(done=5)
    job.run()
    assert len(job.drawn) == 5


def test_rows_that_come_later_are_drawn_and_the_others_are_not(job):
    job.ask(*SIX[1:3])
    job.run()
    job.ask(*SIX[::-1])
    assert job.run().drawn == 4
    assert job.drawn == list("bc" + "feda")
    assert [record.prompt for record in job.manifest()] == list("fedcba")
    job.check(done=6)


def test_pictures_stay_of_rows_that_are_taken_away(job):
    job.ask(*SIX)
    job.run()
    job.ask(*SIX[2:])
    summary = job.run()
    assert (summary.rows, summary.done, summary.drawn) == (4, 4, 0)
    assert [record.prompt for record in job.manifest()][:4] == list("cdef")
    assert {record.prompt for record in job.manifest()} == set("abcdef")
    job.check(done=6)
    job.ask(*SIX)
    assert job.run().drawn == 0


def test_batch_does_not_matter_for_what_is_there(tmp_path):
    found = []
    for batch in (1, 4, 6, 100):
        (tmp_path / str(batch)).mkdir()
        job = CountedJob(tmp_path / str(batch))
        job.ask(*SIX, {"prompt": "large", "size": 64}, {"prompt": ""})
        job.run(batch=batch)
        job.check(done=7, failed=1)
        found.append(job.files())
    assert found == [found[0]] * 4
    assert job.together == [list("abcdef"), ["large"]]


def test_order_does_not_matter_for_what_is_there(tmp_path):
    found = []
    for name, rows in (("there", SIX), ("back", SIX[::-1])):
        (tmp_path / name).mkdir()
        job = CountedJob(tmp_path / name)
        job.ask(*rows)
        job.run()
        found.append(job.files())
    assert found[0] == found[1]


def test_retry_after_a_failure_does_not_matter_for_what_is_there(tmp_path):
    found = []
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
        job = CountedJob(tmp_path / name)
        job.ask(*SIX)
        if name == "twice":
            with pytest.raises(OSError, match="a disk"):
                job.run(before=fail_at("c", OSError("a disk")), batch=2)
        job.run()
        found.append(job.files())
    assert found[0] == found[1]


BAD = [
    {"prompt": "a"},
    {"prompt": " "},
    {"prompt": "b", "seed": "soon"},
    {"prompt": "wrong c"},
    {"prompt": "d", "size": "big"},
    [],
    {"prompt": "e"},
]


def test_bad_rows_are_told_in_the_manifest_and_stop_nothing(job):
    job.ask(*BAD)
    summary = job.run()
    assert (summary.rows, summary.done, summary.failed, summary.drawn, summary.left) == (7, 2, 5, 7, 0)
    assert job.drawn == ["a", "wrong c", "e"]
    assert [(record.prompt, record.error) for record in job.manifest()] == [
        ("a", ""),
        (" ", "line 2: the prompt must not be empty"),
        ("b", "line 3: the seed must be a whole number from 0 to 2**63 - 1, got 'soon'"),
        ("wrong c", "this cannot be drawn"),
        ("d", "line 5: a size must be WIDTHxHEIGHT such as 512x768, or one number, got 'big'"),
        ("", "line 6 must be a JSON object or a JSON string, got []"),
        ("e", ""),
    ]
    job.check(done=2, failed=5)


def test_bad_rows_are_tried_again_only_if_asked_for(job):
    job.ask(*BAD)
    job.run()
    before = job.manifest()
    summary = job.run()
    assert (summary.failed, summary.drawn, len(job.drawn)) == (5, 0, 3)
    summary = job.run(retry_errors=True)
    assert (summary.done, summary.failed, summary.drawn) == (2, 5, 5)
    assert job.drawn == ["a", "wrong c", "e", "wrong c"]
    assert job.manifest() == before


def test_only_bad_rows_take_no_model(job):
    job.ask({"prompt": ""}, {"prompt": "x", "seed": -1})
    assert job.run().failed == 2
    assert job.starts == 0
    job.check(done=0, failed=2)


def test_row_that_is_put_right_is_drawn_and_its_error_goes(job):
    job.ask({"prompt": "a"}, {"prompt": ""})
    job.run()
    job.ask({"prompt": "a"}, {"prompt": "b"})
    summary = job.run()
    assert (summary.done, summary.failed, summary.drawn) == (2, 0, 1)
    job.check(done=2)


def test_changed_settings_are_refused_with_what_differs(job):
    job.ask(*SIX)
    job.run()
    before, manifest = job.files(), job.manifest()
    with pytest.raises(ValueError, match=r"begun with other settings: deepcache\.interval is 3 there and 5 here; take"):
        job.run(common=COMMON | {"deepcache": {"interval": 5}})
    assert (job.files(), job.manifest()) == (before, manifest)
    assert job.starts == 1


def test_changed_settings_are_refused_in_a_folder_that_is_not_finished(job):
    job.ask(*SIX)
    with pytest.raises(Interruption):
        job.run(before=fail_at("a", Interruption()))
    with pytest.raises(ValueError, match="steps is 6 there and 7 here"):
        job.run(common=COMMON | {"steps": 7})


def test_another_model_is_refused_even_where_nothing_is_left_to_do(job):
    job.ask(*SIX)
    job.run()
    with pytest.raises(ValueError, match="another model: model is 'dots' there and 'lines' here"):
        job.run(asked={"model": "./lines"}, facts={"model": "lines"})
    with pytest.raises(ValueError, match=r"\(what is asked for: model is 'dots' there and './lines' here\)"):
        job.run(asked={"model": "./lines"}, facts={"model": "lines"})
    # What earlier versions did not ask for is None.
    starts = job.starts
    assert job.run(asked={"model": "dots", "vae": None}).drawn == 0
    assert job.starts == starts
    # Called otherwise, it is the same.
    assert job.run(asked={"model": "./dots"}).drawn == 0
    assert len(job.drawn) == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": "x"}', "its format is 'x' and not 'DeepCache batch 1'"),
        ('{"format": "DeepCache batch 1"}', "cannot be read"),
    ],
)
def test_folder_of_something_else_is_refused(job, content, said):
    job.ask(*SIX)
    job.folder.write("job.json", content.encode())
    with pytest.raises(ValueError, match=said):
        job.run()
    assert job.files() == {"job.json": content.encode()}


def test_settings_and_model_are_in_the_folder(job):
    job.ask(*SIX)
    job.run()
    assert json.loads(job.folder.read("job.json")) == {
        "format": "DeepCache batch 1",
        "settings": COMMON,
        "asked": {"model": "dots"},
        "loaded": {"model": "dots"},
    }


def test_second_run_in_the_same_folder_is_refused(job):
    job.ask(*SIX)
    refused = []

    def run_another(progress):
        if progress.stage == "drawing" and not refused:
            with pytest.raises(RuntimeError, match="another run is at work in the folder"):
                job.run()
            refused.append(progress)

    assert job.run(on_progress=run_another).done == 6
    assert refused
    assert (job.drawn, job.starts) == (list("abcdef"), 1)
    job.run()


def test_full_disk_under_the_pictures_stops_and_is_gone_on_with(job, monkeypatch):
    job.ask(*SIX)
    job.run(stop=lambda: len(job.drawn) >= 2)
    with monkeypatch.context() as patch:
        full_disk(patch, "pictures")
        with pytest.raises(OSError, match="No space left"):
            job.run()
    job.check(done=2)
    assert job.run().done == 6
    # The picture that found no room was drawn in vain.
    assert job.drawn == list("abccdef")
    job.check(done=6)


@pytest.mark.parametrize("names", [("journal",), ("journal", "pictures"), ("job.json",)])
def test_full_disk_under_the_rest_stops_and_is_gone_on_with(job, monkeypatch, names):
    monkeypatch.setattr(job_module, "_JOURNAL_ROWS", 2)
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        full_disk(patch, *names)
        with pytest.raises(OSError, match="No space left"):
            job.run()
    drawn = len(job.drawn)
    assert job.run().done == 6
    assert len(job.drawn) == (7 if "pictures" in names else 6)
    assert drawn < 6
    job.check(done=6)


def test_stop_ends_after_what_is_in_hand_and_the_same_goes_on(job):
    job.ask(*SIX, {"prompt": ""})
    summary = job.run(stop=lambda: len(job.drawn) >= 4, batch=2)
    assert (summary.rows, summary.done, summary.failed, summary.left) == (7, 4, 0, 3)
    job.check(done=4)
    summary = job.run(batch=2)
    assert (summary.done, summary.failed, summary.drawn, summary.left) == (6, 1, 3, 0)
    assert job.drawn == list("abcdef")
    job.check(done=6, failed=1)


def test_stop_before_anything_leaves_a_folder_that_is_as_good_as_new(job):
    job.ask(*SIX)
    summary = job.run(stop=lambda: True)
    assert (summary.done, summary.left, job.starts) == (0, 6, 0)
    assert job.files() == {}
    assert job.run(common=COMMON | {"steps": 7}).done == 6


def test_progress_is_told(job):
    job.ask({"prompt": "a"}, {"prompt": "wrong b"}, {"prompt": ""}, {"prompt": "d"})
    told = []
    job.run(on_progress=told.append)
    assert [(each.stage, each.rows, each.done, each.failed, each.drawn) for each in told] == [
        ("reading the prompts", 4, 0, 0, 0),
        ("looking at what is there", 4, 0, 0, 0),
        ("loading the model", 4, 0, 0, 0),
        ("drawing", 4, 0, 0, 0),
        ("drawing", 4, 1, 0, 1),
        ("drawing", 4, 1, 1, 2),
        ("drawing", 4, 2, 1, 3),
        ("drawing", 4, 2, 2, 4),
        ("writing the manifest", 4, 2, 2, 4),
    ]
    told.clear()
    job.run(on_progress=told.append)
    assert [(each.stage, each.rows, each.done, each.failed, each.drawn) for each in told] == [
        ("reading the prompts", 4, 0, 0, 0),
        ("looking at what is there", 4, 0, 0, 0),
        ("writing the manifest", 4, 2, 2, 0),
    ]


def test_time_left_is_worked_out_from_this_run():
    progress = BatchProgress("drawing", rows=100, done=50, failed=10, drawn=20, seconds=5.0)
    assert (progress.per_second, progress.seconds_left) == (4.0, 10.0)
    assert (BatchProgress("drawing").per_second, BatchProgress("drawing", rows=3).seconds_left) == (0.0, None)


def test_folder_that_is_no_folder_of_a_disk(tmp_path):
    job = CountedJob(tmp_path, f"memory://{uuid.uuid4().hex}/below")
    job.ask(*SIX, {"prompt": ""})
    with pytest.raises(Interruption):
        job.run(before=fail_at("d", Interruption()))
    job.check(done=3)
    assert job.run().done == 6
    assert job.drawn == list("abcdef")
    job.check(done=6, failed=1)
    assert not (tmp_path / "output").exists()


def test_prompts_of_a_table(job, tmp_path):
    table = pyarrow.table(
        {
            "id": ["x", "y", "z"],
            "prompt": ["a", None, "c"],
            "seed": pyarrow.array([7, None, None], pyarrow.int64()),
            "negative_prompt": [None, None, "n"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "prompts.parquet")
    summary = job.run(prompts=tmp_path / "prompts.parquet")
    assert (summary.done, summary.failed) == (2, 1)
    assert [(record.row_id, record.prompt) for record in job.manifest()] == [("x", "a"), ("y", ""), ("z", "c")]
    assert job.manifest()[0].seed == 7
    assert job.manifest()[1].error == "row 2: the prompt must be text, got None"
    job.check(done=2, failed=1)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "tsv"])
def test_same_rows_in_another_format_are_the_same_rows(job, tmp_path, ending):
    job.ask({"prompt": "a"}, {"prompt": "b"})
    job.run()
    texts = {"txt": "a\nb\n", "jsonl": '"a"\n"b"\n', "csv": "prompt\na\nb\n", "tsv": "prompt\tseed\na\t\nb\t\n"}
    (tmp_path / f"other.{ending}").write_text(texts[ending])
    assert job.run(prompts=tmp_path / f"other.{ending}").drawn == 0


def test_missing_prompts_make_no_folder(job, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no prompt file"):
        job.run()
    job.prompts.write_text("")
    with pytest.raises(ValueError, match="holds no prompt"):
        job.run()
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_rows_that_an_engine_loses_are_told(job):
    class Careless:
        def start(self, make_worker, expected):
            self.worker = make_worker(expected)
            return self.worker.facts

        def draw(self, batches):
            for number, batch in enumerate(batches):
                if number % 2:
                    yield self.worker.draw(batch)

        def close(self):
            pass

    job.ask(*SIX)
    with pytest.raises(RuntimeError, match="3 of 6 rows got lost"):
        job.run(engine=Careless())
    assert job.run().done == 6
    job.check(done=6)


def test_engine_is_closed_whatever_happens(job):
    closed = []

    class Engine:
        def start(self, make_worker, expected):
            raise ValueError("no model")

        def close(self):
            closed.append(self)

    job.ask(*SIX)
    with pytest.raises(ValueError, match="no model"):
        job.run(engine=Engine())
    assert len(closed) == 1
    assert job.files() == {}


@pytest.mark.parametrize("name", ["batch", "threads"])
def test_numbers_below_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        generate_batch(tmp_path / "prompts.txt", tmp_path / "output", **{name: 0})
