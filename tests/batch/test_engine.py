from __future__ import annotations

from DeepCache.batch import BatchRow, LocalEngine

ROWS = [[BatchRow(letter * 12, prompt=letter)] for letter in "abc"]


def test_batches_are_taken_one_by_one_as_records_are_requested(job):
    engine = LocalEngine()
    assert engine.start(job.make_worker(), None) == {"model": "dots"}
    taken = []
    answers = engine.draw(taken.append(batch) or batch for batch in ROWS)
    (record,) = next(answers)
    assert (record.prompt, taken) == ("a", ROWS[:1])
    assert [record.prompt for (record,) in answers] == ["b", "c"]
    assert job.generated == ["a", "b", "c"]


def test_an_engine_can_be_closed_at_any_time(job):
    engine = LocalEngine()
    engine.close()
    engine.start(job.make_worker(), {"model": "dots"})
    engine.close()
    engine.close()
    assert len(job.noted("started")) == 1
