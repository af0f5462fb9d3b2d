from __future__ import annotations

from DeepCache.batch import BatchRow, LocalEngine

ROWS = [[BatchRow(letter * 12, prompt=letter)] for letter in "abc"]


def test_batches_are_taken_one_by_one_as_their_records_are_asked_for(job):
    engine = LocalEngine()
    assert engine.start(job.workers, None) == {"model": "dots"}
    taken = []
    answers = engine.draw(taken.append(batch) or batch for batch in ROWS)
    (record,) = next(answers)
    assert (record.prompt, taken) == ("a", ROWS[:1])
    assert [record.prompt for (record,) in answers] == ["b", "c"]
    assert job.drawn == ["a", "b", "c"]


def test_it_can_be_closed_at_any_time(job):
    engine = LocalEngine()
    engine.close()
    engine.start(job.workers, {"model": "dots"})
    engine.close()
    engine.close()
    assert job.starts == 1
