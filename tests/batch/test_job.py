"""Every row is generated once, regardless of interruptions."""

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

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchProgress, BatchSettings, batch_row, generate_batch
from DeepCache.batch import job as job_module
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.manifest import Journal
from DeepCache.batch.record import image_path
from DeepCache.prompts import read_rows
from tests.batch.counted_job import SETTINGS, CountedJob

ROOT = Path(__file__).parents[2]
SIX = [{"prompt": letter} for letter in "abcdef"]


class Interruption(BaseException):
    pass


def killed(monkeypatch):
    """Lets runs end as if they were killed: without a manifest."""
    monkeypatch.setattr(job_module._Run, "end", lambda *_: None)


def fail_at(prompt, error):
    def before(row):
        if row.prompt == prompt:
            raise error

    return before


def full_disk(monkeypatch, *names):
    """Fails to write the files whose names start with one of these."""
    create = BatchFolder.create

    def fail(self, name):
        if name.startswith(names):
            raise OSError(28, "No space left on device")
        return create(self, name)

    monkeypatch.setattr(BatchFolder, "create", fail)


def other_job(folder):
    folder.mkdir()
    return CountedJob(folder)


def test_every_row_is_generated_once_and_a_second_run_loads_nothing(job):
    job.ask(*SIX)
    summary = job.run()
    assert (summary.rows, summary.done, summary.failed, summary.drawn, summary.left) == (6, 6, 0, 6, 0)
    before = job.manifest()
    assert [record.prompt for record in before] == job.generated == list("abcdef")
    job.check(done=6)
    summary = job.run()
    assert (summary.done, summary.drawn) == (6, 0)
    assert (len(job.generated), len(job.noted("started"))) == (6, 1)
    assert job.manifest() == before
    job.check(done=6)


@pytest.mark.parametrize("moment", range(11))
def test_a_run_that_is_interrupted_at_any_moment_is_resumed(job, moment):
    job.ask(*SIX)
    moments = count()

    def interrupt(progress):
        if next(moments) == moment:
            raise Interruption

    with pytest.raises(Interruption):
        job.run(on_progress=interrupt)
    assert job.run().done == 6
    assert sorted(job.generated) == list("abcdef")
    job.check(done=6)


def test_progress_is_reported_eleven_times(job):
    job.ask(*SIX)
    reports = []
    job.run(on_progress=reports.append)
    assert len(reports) == 11


@pytest.mark.parametrize("prompt", "abcdef")
@pytest.mark.parametrize("error", [Interruption(), OSError("a disk"), RuntimeError("a worker")], ids=repr)
def test_a_run_whose_worker_fails_is_resumed(job, prompt, error):
    job.ask(*SIX)
    with pytest.raises(type(error)):
        job.run(before=fail_at(prompt, error))
    done = "abcdef".index(prompt)
    job.check(done=done)
    assert job.run().drawn == 6 - done
    assert job.generated == list("abcdef")
    job.check(done=6)


@pytest.mark.parametrize(
    ("journal_rows", "stopped_at", "seconds"),
    # The duration of images without a record is unknown.
    [(1000, "d", [None, None, None, 0.5, 0.5, 0.5]), (2, "f", [0.5, 0.5, 0.5, 0.5, None, 0.5])],
    ids=["no journal", "a journal"],
)
def test_a_killed_run_leaves_images_and_a_journal(job, monkeypatch, journal_rows, stopped_at, seconds):
    monkeypatch.setattr(job_module, "_JOURNAL_ROWS", journal_rows)
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        killed(patch)
        with pytest.raises(Interruption):
            job.run(before=fail_at(stopped_at, Interruption()))
    assert job.manifest() == []
    assert len(list(job.folder.files("journal"))) == (2 if journal_rows == 2 else 0)
    job.run()
    assert job.generated == list("abcdef")
    job.check(done=6)
    records = job.manifest()
    assert [record.seconds for record in records] == seconds
    assert [record.host for record in records] == ["here" if each else "" for each in seconds]


def test_a_manifest_that_cannot_be_written_loses_no_record(job, monkeypatch):
    job.ask(*SIX)
    with monkeypatch.context() as patch:
        full_disk(patch, "manifest")
        with pytest.raises(OSError, match="No space left"):
            job.run()
    assert job.manifest() == []
    assert job.run().drawn == 0
    assert [record.seconds for record in job.manifest()] == [0.5] * 6
    job.check(done=6)


def test_a_journal_that_was_not_removed_changes_nothing(job, monkeypatch):
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
def test_a_killed_process_is_resumed(job, at):
    job.ask(*SIX)
    code = (
        "import os, sys; from pathlib import Path; from tests.batch.counted_job import CountedJob\n"
        f"kill = lambda row: os.kill(os.getpid(), {int(signal.SIGKILL)}) if row.prompt == {at!r} else None\n"
        "CountedJob(Path(sys.argv[1])).run(before=kill)"
    )
    done = subprocess.run([sys.executable, "-c", code, job.prompts.parent], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert job.generated == list("abcdef")[: "abcdef".index(at)]
    assert job.run().done == 6
    assert job.generated == list("abcdef")
    job.check(done=6)


@pytest.mark.parametrize("damage", ["gone", "cut off", "empty"])
def test_an_incomplete_image_is_generated_again(job, damage):
    job.ask(*SIX)
    job.run()
    complete = job.files()
    (path,) = (Path(job.folder.path(record.path)) for record in job.manifest() if record.prompt == "c")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -1])
    summary = job.run()
    assert (summary.done, summary.drawn) == (6, 1)
    assert job.generated == [*"abcdef", "c"]
    assert job.files() == complete
    job.check(done=6)


def test_an_incomplete_image_without_a_record_is_replaced(job):
    job.ask(*SIX)
    with pytest.raises(Interruption):
        job.run(before=fail_at("d", Interruption()))
    row = batch_row(next(row for row in read_rows(job.prompts) if row.values["prompt"] == "e"))
    path = Path(job.folder.path(image_path(row.id)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG")
    path.with_name(f".{path.name}.0123.partial").write_bytes(b"\x89PN")
    job.run()
    job.check(done=6)


def test_identical_rows_have_one_image_each(job):
    job.ask(*[{"prompt": "x"}] * 3, {"prompt": "x", "seed": 5}, {"prompt": "x", "seed": 5})
    job.run()
    records = job.manifest()
    assert len({record.path for record in records}) == 5
    assert len({record.seed for record in records[:3]}) == 3
    assert [record.seed for record in records[3:]] == [5, 5]
    job.check(done=5)
    job.run()
    assert len(job.generated) == 5


def test_only_rows_that_were_added_are_generated(job):
    job.ask(*SIX[1:3])
    job.run()
    job.ask(*SIX[::-1])
    assert job.run().drawn == 4
    assert job.generated == list("bc" + "feda")
    assert [record.prompt for record in job.manifest()] == list("fedcba")
    job.check(done=6)


def test_removed_rows_keep_their_images(job):
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


def test_files_do_not_depend_on_the_batch(tmp_path):
    found = []
    for batch in (1, 4, 6, 100):
        job = other_job(tmp_path / str(batch))
        job.ask(*SIX, {"prompt": "large", "size": 64}, {"prompt": ""})
        job.run(batch=batch)
        job.check(done=7, failed=1)
        found.append(job.files())
    assert found == [found[0]] * 4
    assert job.noted("together") == [list("abcdef"), ["large"]]


def test_files_do_not_depend_on_order_and_retries(tmp_path):
    found = []
    for name, rows in (("forward", SIX), ("backward", SIX[::-1]), ("retried", SIX)):
        job = other_job(tmp_path / name)
        job.ask(*rows)
        if name == "retried":
            with pytest.raises(OSError, match="a disk"):
                job.run(before=fail_at("c", OSError("a disk")), batch=2)
        job.run()
        found.append(job.files())
    assert found == [found[0]] * 3


BAD = [
    {"prompt": "a"},
    {"prompt": " "},
    {"prompt": "b", "seed": "soon"},
    {"prompt": "wrong c"},
    {"prompt": "d", "size": "big"},
    [],
    {"prompt": "e"},
]


def test_errors_of_rows_are_in_the_manifest_and_retried_on_request(job):
    job.ask(*BAD)
    summary = job.run()
    assert (summary.rows, summary.done, summary.failed, summary.drawn, summary.left) == (7, 2, 5, 7, 0)
    assert job.generated == ["a", "wrong c", "e"]
    before = job.manifest()
    assert [record.prompt for record in before] == ["a", " ", "b", "wrong c", "d", "", "e"]
    errors = [record.error for record in before]
    assert (errors[0], errors[3], errors[6]) == ("", "this cannot be generated", "")
    for line, words in ((2, "prompt must not be empty"), (3, "'soon'"), (5, "'big'"), (6, "must be a JSON object")):
        assert errors[line - 1].startswith(f"line {line}")
        assert words in errors[line - 1]
    job.check(done=2, failed=5)
    summary = job.run()
    assert (summary.failed, summary.drawn, len(job.generated)) == (5, 0, 3)
    summary = job.run(retry_errors=True)
    assert (summary.done, summary.failed, summary.drawn) == (2, 5, 5)
    assert job.generated == ["a", "wrong c", "e", "wrong c"]
    assert job.manifest() == before


def test_the_model_is_not_loaded_for_wrong_rows(job):
    job.ask({"prompt": ""}, {"prompt": "x", "seed": -1})
    assert job.run().failed == 2
    assert job.noted("started") == []
    job.check(done=0, failed=2)


def test_a_corrected_row_is_generated_and_loses_its_error(job):
    job.ask({"prompt": "a"}, {"prompt": ""})
    job.run()
    job.ask({"prompt": "a"}, {"prompt": "b"})
    summary = job.run()
    assert (summary.done, summary.failed, summary.drawn) == (2, 0, 1)
    job.check(done=2)


def test_changed_settings_are_refused_with_the_differences(job):
    job.ask(*SIX)
    with pytest.raises(Interruption):
        job.run(before=fail_at("a", Interruption()))
    with pytest.raises(ValueError, match="steps was 6 and is 7 now"):
        job.run(settings=SETTINGS | {"steps": 7})
    job.run()
    before, manifest = job.files(), job.manifest()
    with pytest.raises(ValueError, match=r"different settings: deepcache\.interval was 3 and is 5 now\. Use another"):
        job.run(settings=SETTINGS | {"deepcache": {"interval": 5}})
    assert (job.files(), job.manifest()) == (before, manifest)
    assert len(job.noted("started")) == 2


def test_another_model_is_refused_even_if_nothing_is_left_to_do(job):
    job.ask(*SIX)
    job.run()
    with pytest.raises(ValueError, match=r"another model: .*\(requested: model was 'dots' and is './lines' now\)"):
        job.run(asked={"model": "./lines"}, model="lines")
    # Options that earlier versions did not have are None.
    starts = job.noted("started")
    assert job.run(asked={"model": "dots", "vae": None}).drawn == 0
    assert job.noted("started") == starts
    # The same model at another path.
    assert job.run(asked={"model": "./dots"}).drawn == 0
    assert len(job.generated) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read job.json"),
        ("[]", "cannot read job.json"),
        ('{"format": "x"}', "its format is 'x', not 'DeepCache batch 1'"),
        ('{"format": "DeepCache batch 1"}', "cannot read job.json"),
    ],
)
def test_folders_of_other_programs_are_refused(job, content, message):
    job.ask(*SIX)
    job.folder.write("job.json", content.encode())
    with pytest.raises(ValueError, match=message):
        job.run()
    assert job.files() == {"job.json": content.encode()}


def test_settings_and_model_are_in_the_folder(job):
    job.ask(*SIX)
    job.run()
    assert json.loads(job.folder.read("job.json")) == {
        "format": "DeepCache batch 1",
        "settings": SETTINGS,
        "asked": {"model": "dots"},
        "loaded": {"model": "dots"},
    }


def test_a_second_run_in_the_same_folder_is_refused(job):
    job.ask(*SIX)
    refused = []

    def run_another(progress):
        if progress.stage == "generating" and not refused:
            with pytest.raises(RuntimeError, match="another run uses the folder"):
                job.run()
            refused.append(progress)

    assert job.run(on_progress=run_another).done == 6
    assert refused
    assert (job.generated, len(job.noted("started"))) == (list("abcdef"), 1)
    job.run()


@pytest.mark.parametrize("names", [("pictures",), ("journal",), ("journal", "pictures"), ("job.json",)])
def test_a_run_on_a_full_disk_is_resumed(job, monkeypatch, names):
    monkeypatch.setattr(job_module, "_JOURNAL_ROWS", 2)
    job.ask(*SIX)
    if names == ("pictures",):
        job.run(stop=lambda: len(job.generated) >= 2)
    with monkeypatch.context() as patch:
        full_disk(patch, *names)
        with pytest.raises(OSError, match="No space left"):
            job.run()
    if names == ("pictures",):
        job.check(done=2)
    assert len(job.generated) < 6
    assert job.run().done == 6
    # The image that could not be written is generated again.
    assert len(job.generated) == (7 if "pictures" in names else 6)
    job.check(done=6)


def test_stop_finishes_the_current_batch_and_the_run_is_resumed(job):
    job.ask(*SIX, {"prompt": ""})
    summary = job.run(stop=lambda: len(job.generated) >= 4, batch=2)
    assert (summary.rows, summary.done, summary.failed, summary.left) == (7, 4, 0, 3)
    job.check(done=4)
    summary = job.run(batch=2)
    assert (summary.done, summary.failed, summary.drawn, summary.left) == (6, 1, 3, 0)
    assert job.generated == list("abcdef")
    job.check(done=6, failed=1)


def test_a_run_that_is_stopped_at_once_leaves_an_empty_folder(job):
    job.ask(*SIX)
    summary = job.run(stop=lambda: True)
    assert (summary.done, summary.left, job.noted("started")) == (0, 6, [])
    assert job.files() == {}
    assert job.run(settings=SETTINGS | {"steps": 7}).done == 6


def test_progress_is_reported_with_its_stage(job):
    job.ask({"prompt": "a"}, {"prompt": "wrong b"}, {"prompt": ""}, {"prompt": "d"})
    reports = []
    job.run(on_progress=reports.append)
    assert [(each.stage, each.rows, each.done, each.failed, each.drawn) for each in reports] == [
        ("reading the prompts", 4, 0, 0, 0),
        ("checking existing images", 4, 0, 0, 0),
        ("loading the model", 4, 0, 0, 0),
        ("generating", 4, 0, 0, 0),
        ("generating", 4, 1, 0, 1),
        ("generating", 4, 1, 1, 2),
        ("generating", 4, 2, 1, 3),
        ("generating", 4, 2, 2, 4),
        ("writing the manifest", 4, 2, 2, 4),
    ]
    reports.clear()
    job.run(on_progress=reports.append)
    assert [(each.stage, each.rows, each.done, each.failed, each.drawn) for each in reports] == [
        ("reading the prompts", 4, 0, 0, 0),
        ("checking existing images", 4, 0, 0, 0),
        ("writing the manifest", 4, 2, 2, 0),
    ]


def test_the_remaining_time_is_estimated_from_this_run():
    progress = BatchProgress("generating", rows=100, done=50, failed=10, drawn=20, seconds=5.0)
    assert (progress.per_second, progress.seconds_left) == (4.0, 10.0)
    assert (BatchProgress("generating").per_second, BatchProgress("generating", rows=3).seconds_left) == (0.0, None)


def test_the_folder_may_be_an_object_store(tmp_path):
    job = CountedJob(tmp_path, f"memory://{uuid.uuid4().hex}/below")
    job.ask(*SIX, {"prompt": ""})
    with pytest.raises(Interruption):
        job.run(before=fail_at("d", Interruption()))
    job.check(done=3)
    assert job.run().done == 6
    assert job.generated == list("abcdef")
    job.check(done=6, failed=1)
    assert not (tmp_path / "output").exists()


def test_prompts_may_be_a_table(job, tmp_path):
    table = {"id": ["x", "y", "z"], "prompt": ["a", None, "c"], "negative_prompt": [None, None, "n"]}
    table["seed"] = pyarrow.array([7, None, None], pyarrow.int64())
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "prompts.parquet")
    summary = job.run(prompts=tmp_path / "prompts.parquet")
    assert (summary.done, summary.failed) == (2, 1)
    records = job.manifest()
    assert [(record.row_id, record.prompt) for record in records] == [("x", "a"), ("y", ""), ("z", "c")]
    assert records[0].seed == 7
    assert records[1].error == "row 2: the prompt must be text, got None"
    job.check(done=2, failed=1)


@pytest.mark.parametrize(
    ("name", "text"),
    [("x.txt", "a\nb\n"), ("x.jsonl", '"a"\n"b"\n'), ("x.csv", "prompt\na\nb\n"), ("x.tsv", "prompt\tid\na\t\nb\t\n")],
)
def test_the_same_rows_in_another_format_are_the_same_rows(job, tmp_path, name, text):
    job.ask({"prompt": "a"}, {"prompt": "b"})
    job.run()
    (tmp_path / name).write_text(text)
    assert job.run(prompts=tmp_path / name).drawn == 0


def test_no_folder_is_created_without_prompts(job, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no prompt file"):
        job.run()
    job.prompts.write_text("")
    with pytest.raises(ValueError, match="contains no prompt"):
        job.run()
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_rows_that_an_engine_loses_are_reported(job):
    class Careless:
        def start(self, make_worker, expected):
            self.worker = make_worker(expected)
            return self.worker.facts

        def draw(self, batches):
            for number, batch in enumerate(batches):
                if number % 2:
                    yield self.worker.generate(batch)

        def close(self):
            pass

    job.ask(*SIX)
    with pytest.raises(RuntimeError, match="3 of 6 rows were lost"):
        job.run(engine=Careless())
    assert job.run().done == 6
    job.check(done=6)


def test_the_engine_is_always_closed(job):
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
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        generate_batch(tmp_path / "prompts.txt", tmp_path / "output", **{name: 0})


def test_the_folder_notes_the_options_that_choose_the_model(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    generate_batch(tmp_path / "prompts.txt", tmp_path / "output", BatchSettings(steps=2, dtype="float32"))
    job = json.loads((tmp_path / "output" / "job.json").read_text())
    asked = {"model": "shapes", "vae": None, "guidance": None, "scheduler": None, "dtype": "float32"}
    assert job["asked"] == asked
    settings = {"negative_prompt": "", "steps": 2, "size": None, "seed": 0, "deepcache": DeepCacheConfig().to_dict()}
    assert job["settings"] == settings


def test_missing_packages_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("DeepCache.extras.why_missing", lambda extra: f"pip install 'DeepCache[{extra}]'")
    with pytest.raises(ImportError, match=r"generate_batch cannot be used here: pip install 'DeepCache\[batch\]'"):
        generate_batch(tmp_path / "prompts.txt", tmp_path / "output")
