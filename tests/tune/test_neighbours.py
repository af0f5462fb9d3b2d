import random

import pytest

from DeepCache.schedule import FORECASTS, Step, StepSchedule
from DeepCache.tune.search import neighbours

FULL, SHALLOW = Step(True), Step(False)
FORECASTS_OF_SHALLOW = tuple(forecast for forecast in FORECASTS if forecast != "response")


def pattern(schedule):
    return schedule.pattern(len(schedule.each)) if len(schedule.branches) < 2 else schedule.to_dict()["full"]


def of_pattern(text, **values):
    return StepSchedule(tuple(FULL if character == "F" else Step(False, **values) for character in text))


SKIPPED = ("none", "limited", "response")


def any_schedule(seed, branches, guided, skipped, steps=9):
    chance = random.Random(seed)
    each = [FULL]
    for _ in range(steps - 1):
        reuse = guided and chance.random() < 0.3
        if chance.random() < 0.4:
            each.append(Step(True, forecast="linear", guidance_reuse=True) if reuse else FULL)
        elif skipped and chance.random() < 0.5:
            each.append(Step(False, forecast=chance.choice(skipped), skipped=True))
        else:
            each.append(Step(False, chance.choice(branches), chance.choice(FORECASTS_OF_SHALLOW), reuse))
    return StepSchedule(tuple(each))


def full_steps(schedule):
    return {number for number, step in enumerate(schedule.each) if step.full}


def spans(schedule):
    ends = [*sorted(full_steps(schedule)), len(schedule.each)]
    return [set(range(first + 1, last)) for first, last in zip(ends, ends[1:], strict=False)]


def suits(step, name, decided):
    if name != "forecast":
        return step.shallow
    return decided.forecast in (SKIPPED if step.skipped else FORECASTS_OF_SHALLOW)


def decision(before, after):
    """The one decision in which two schedules differ."""
    changed = {
        number: (old, new) for number, (old, new) in enumerate(zip(before.each, after.each, strict=True)) if old != new
    }
    gone, come = full_steps(before) - full_steps(after), full_steps(after) - full_steps(before)
    if gone or come:
        assert set(changed) == gone | come
        if gone and come:
            assert len(gone) == len(come) == 1
            assert abs(gone.pop() - come.pop()) == 1
            return "moved"
        assert len(changed) == 1
        return "removed" if gone else "added"
    olds, news = zip(*changed.values(), strict=True)
    if any(step.full for step in olds):
        assert len(changed) == 1
        assert olds[0].guidance_reuse != news[0].guidance_reuse
        return "guidance reuse at a full step"
    others = set(range(len(before.each))) - full_steps(before)
    if any(old.skipped != new.skipped for old, new in changed.values()):
        (skipped,) = {new.skipped for new in news}
        assert len(set(news)) == 1
        alike = {number for number, step in enumerate(before.each) if step.skipped == skipped}
        assert len(changed) == 1 or any(set(changed) == span - alike for span in [others, *spans(before)])
        return "kind"
    names = [
        name
        for name in ("branch", "forecast", "guidance_reuse")
        if any(getattr(old, name) != getattr(new, name) for old, new in changed.values())
    ]
    assert len(names) == 1
    assert len({getattr(new, names[0]) for new in news}) == 1
    # Those that are as decided already need no change, and some decisions do not suit the kind of a step.
    alike = {
        number
        for number, step in enumerate(before.each)
        if not step.full
        and (getattr(step, names[0]) == getattr(news[0], names[0]) or not suits(step, names[0], news[0]))
    }
    whole = [span for span in [others, *spans(before)] if set(changed) == span - alike]
    assert whole or (names == ["branch"] and len(changed) == 1)
    return names[0]


@pytest.mark.parametrize("skipped", [(), SKIPPED], ids=["shallow", "skipped"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("branches", [(0,), (1, 0, 3)], ids=str)
def test_each_neighbour_differs_in_one_decision_without_duplicates(branches, guided, skipped):
    kinds = set()
    for seed in range(30):
        schedule = any_schedule(seed, branches, guided, skipped)
        found = list(neighbours(schedule, branches, guided, skipped))
        assert len(set(found)) == len(found)
        assert schedule not in found
        for each in found:
            assert len(each.each) == len(schedule.each)
            assert each.each[0] == FULL
            assert set(each.branches) <= set(branches)
            assert guided or not any(step.guidance_reuse for step in each.each)
            assert all(step.forecast in skipped for step in each.each if step.skipped)
            kinds.add(decision(schedule, each))
    expected = {"moved", "removed", "added", "forecast"}
    expected |= {"branch"} if len(branches) > 1 else set()
    expected |= {"guidance_reuse", "guidance reuse at a full step"} if guided else set()
    expected |= {"kind"} if skipped else set()
    assert kinds == expected


def test_steps_become_skipped_or_shallow_one_by_one_per_span_and_all():
    found = {pattern(each) for each in neighbours(of_pattern("F.F.."), [0], guided=False, skipped=SKIPPED)}
    assert {"F-F--", "F-F..", "F.F--", "F.F-.", "F.F.-"} <= found
    skipped = StepSchedule(
        tuple(FULL if sign == "F" else Step(False, forecast="none", skipped=True) for sign in "F-F--")
    )
    found = {pattern(each) for each in neighbours(skipped, [0], guided=False, skipped=SKIPPED)}
    assert {"F.F..", "F.F--", "F-F..", "F-F.-", "F-F-.", "F----", "F-.--"} <= found


def test_full_steps_are_moved_removed_and_added():
    found = {pattern(each) for each in neighbours(of_pattern("F..F.."), [0], guided=False)}
    moved, removed = {"F.F...", "F...F."}, {"F....."}
    added = {"FF.F..", "F.FF..", "F..FF.", "F..F.F"}
    assert found == moved | removed | added | {"F..F.."}


def test_a_full_step_is_not_moved_onto_another_or_beyond_the_end():
    found = {pattern(each) for each in neighbours(of_pattern("FF.F"), [0], guided=False)}
    assert found == {"F..F", "F.FF", "FF..", "FFF.", "FFFF", "FF.F"}


def test_a_step_that_becomes_shallow_is_like_the_shallow_step_before_it():
    schedule = StepSchedule((FULL, Step(False, 0, "linear"), FULL, Step(False, 1, "quadratic")))
    removed = next(each for each in neighbours(schedule, [0, 1], guided=False) if pattern(each) == "F...")
    assert removed.each[2] == Step(False, 0, "linear")
    schedule = StepSchedule((FULL, FULL, Step(False, 1, "quadratic")))
    removed = next(each for each in neighbours(schedule, [0, 1], guided=False) if pattern(each) == "F..")
    assert removed.each[1] == Step(False, 1, "quadratic")


def test_each_full_step_but_the_first_may_become_shallow():
    found = [pattern(each) for each in neighbours(of_pattern("FFFF"), [0], guided=False)]
    assert sorted(found) == ["F.FF", "FF.F", "FFF."]


def test_forecasts_are_changed_for_one_span_and_for_all():
    found = [each.to_dict()["forecast"] for each in neighbours(of_pattern("F.F.."), [0], guided=False)]
    assert {"01011", "02022", "01000", "02000", "00011", "00022"} <= set(found)


def test_branches_are_changed_for_one_step_a_span_and_all():
    found = {each.to_dict()["branch"] for each in neighbours(of_pattern("F.F.."), [0, 4], guided=False)}
    assert found == {"00000", "04044", "04000", "00044", "00040", "00004"}


def test_guidance_reuse_is_toggled_with_guidance():
    found = {each.to_dict()["guidance_reuse"] for each in neighbours(of_pattern("F.F.."), [0], guided=True)}
    assert found == {".....", ".x.xx", ".x...", "...xx", "..x.."}
    schedule = of_pattern("F..", guidance_reuse=True)
    assert "..." in {each.to_dict()["guidance_reuse"] for each in neighbours(schedule, [0], guided=True)}
    full = StepSchedule((FULL, SHALLOW, Step(True, forecast="linear", guidance_reuse=True)))
    found = {each.to_dict()["guidance_reuse"] for each in neighbours(full, [0], guided=True) if each.each[2].full}
    assert "..." in found
