"""The position of a U-Net call in its run, from timesteps of every kind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.trajectory import Trajectory
from tests.engine.no_transfers import NoTransfers
from tests.engine.tiny_pipeline import tiny_pipeline

pytestmark = pytest.mark.usefixtures("nothing_is_counted")

VALUES = [900, 700, 500, 300, 100]


def _scheduler(values=VALUES, **attributes):
    return SimpleNamespace(timesteps=torch.tensor(values), **attributes)


def _steps(trajectory, timesteps, scheduler):
    """Step and slot of every call, and `*` before the first of a run."""
    words = []
    for timestep in timesteps:
        info = trajectory.locate(timestep, scheduler)
        words.append(f"{'*' if info.starts else ''}{info.step}" + (f".{info.slot}" if info.slot else ""))
    return " ".join(words)


def _kinds(**kinds):
    return [pytest.param(kind, id=name.replace("_", " ")) for name, kind in kinds.items()]


# Each makes a list of timesteps of one kind, from the scheduler's.
VIEWS = _kinds(
    iterated=list,
    indexed=lambda timesteps: [timesteps[index] for index in range(len(timesteps))],
    expanded=lambda timesteps: [timestep.expand(4) for timestep in timesteps],
    with_a_dimension=lambda timesteps: [timestep[None] for timestep in timesteps],
    slices_of_one=lambda timesteps: [timesteps[index : index + 1] for index in range(len(timesteps))],
    expanded_in_two_dimensions=lambda timesteps: [each.reshape(1, 1).expand(2, 3) for each in timesteps],
    detached=lambda timesteps: [timestep.detach() for timestep in timesteps],
)
NUMBERS = _kinds(
    integers=lambda timesteps: [int(timestep) for timestep in timesteps],
    floats=lambda timesteps: [float(timestep) for timestep in timesteps],
    clones=lambda timesteps: [timestep.clone() for timestep in timesteps],
)
BY_VALUE = NUMBERS + _kinds(
    repeated_for_a_batch=lambda timesteps: [timestep.repeat(3) for timestep in timesteps],
    another_dtype=lambda timesteps: [timestep.to(torch.float64) for timestep in timesteps],
)

HEUN = [900, 600, 600, 300, 300]
PNDM = [900, 850, 850, 800, 800, 750, 750, 700]
FIVE = "*0 1 2 3 4"


@pytest.mark.parametrize("kind", VIEWS + BY_VALUE)
class TestTimestepsOfEveryKind:
    @pytest.mark.parametrize(
        ("values", "positions", "expected"),
        [
            pytest.param(VALUES, [0, 1, 2, 3, 4], FIVE, id="steps are counted from the first call"),
            pytest.param(VALUES, [0, 1, 2, 3, 4] * 2, f"{FIVE} {FIVE}", id="the same list again is a new run"),
            pytest.param(VALUES, [2, 3, 4], "*0 1 2", id="a run that omits the first timesteps"),
            pytest.param(VALUES, [0, 1, 2, 3, 2, 3, 4], "*0 1 2 3 *0 1 2", id="a run that starts before the last end"),
            pytest.param(
                VALUES, [0] * 3 + [1] * 3 + [2] * 3, "*0 0.1 0.2 1 1.1 1.2 2 2.1 2.2", id="calls of a step are slots"
            ),
            pytest.param(VALUES[:2], [0, 0, 1, 1] * 2, "*0 0.1 1 1.1 *0 0.1 1 1.1", id="slots over two runs"),
            pytest.param(VALUES, [0, 1, 4], "*0 1 4", id="an omitted step is counted"),
            pytest.param(HEUN, [0, 1, 2, 3, 4] * 2, f"{FIVE} {FIVE}", id="repeated values are separate steps"),
            pytest.param(PNDM, range(8), "*0 1 2 3 4 5 6 7", id="repeated values at the start"),
        ],
    )
    def test_steps_and_slots(self, kind, values, positions, expected):
        scheduler = _scheduler(values)
        timesteps = kind(scheduler.timesteps)
        assert _steps(Trajectory(), [timesteps[position] for position in positions], scheduler) == expected

    def test_a_new_list_is_a_new_run(self, kind):
        trajectory, first, second = Trajectory(), _scheduler(), _scheduler()
        assert _steps(trajectory, kind(first.timesteps)[:2], first) == "*0 1"
        # The same values, and even at a later position.
        assert _steps(trajectory, kind(second.timesteps)[2:], second) == "*0 1 2"

    def test_a_list_of_one_step(self, kind):
        scheduler = _scheduler([999])
        (timestep,) = kind(scheduler.timesteps)
        info = Trajectory().locate(timestep, scheduler)
        assert (info.step, info.slot, info.starts, info.ends) == (0, 0, True, True)

    def test_the_last_of_the_list_ends_the_run(self, kind):
        scheduler, trajectory = _scheduler(), Trajectory()
        ends = [trajectory.locate(timestep, scheduler).ends for timestep in kind(scheduler.timesteps)]
        assert ends == [False, False, False, False, True]

    def test_fractions_and_negative_values(self, kind):
        whole = isinstance(kind(torch.ones(1))[0], int)
        scheduler = _scheduler([4, 2, 1, -1, -3] if whole else [1.0955, 0.7987, 0.4411, -0.0088, -0.6160])
        assert _steps(Trajectory(), kind(scheduler.timesteps) * 2, scheduler) == f"{FIVE} {FIVE}"

    def test_after_reset_the_next_call_starts(self, kind):
        scheduler, trajectory = _scheduler(), Trajectory()
        timesteps = kind(scheduler.timesteps)
        assert _steps(trajectory, timesteps[:2], scheduler) == "*0 1"
        trajectory.reset()
        assert _steps(trajectory, timesteps[2:], scheduler) == "*0 1 2"


@pytest.mark.parametrize("keep", [list, tuple, numpy.array])
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_scheduler_that_keeps_its_timesteps_on_the_host(keep, kind):
    scheduler = SimpleNamespace(timesteps=keep(VALUES))
    assert _steps(Trajectory(), kind(torch.tensor(VALUES)) * 2, scheduler) == "*0 1 2 3 4 *0 1 2 3 4"


def test_a_list_that_is_a_part_of_a_larger_one_is_counted_by_its_stride():
    scheduler = SimpleNamespace(timesteps=torch.arange(20)[3:18:3])
    trajectory = Trajectory()
    assert _steps(trajectory, list(scheduler.timesteps) * 2, scheduler) == "*0 1 2 3 4 *0 1 2 3 4"
    assert [trajectory.locate(timestep, scheduler).ends for timestep in scheduler.timesteps] == [False] * 4 + [True]


def test_a_list_that_is_one_value_expanded():
    scheduler = SimpleNamespace(timesteps=torch.tensor(500).expand(3))
    assert _steps(Trajectory(), list(scheduler.timesteps), scheduler) == "*0 1 2"


def test_timesteps_of_another_list_than_the_schedulers():
    """A pipeline with its own list, and one without a scheduler."""
    own = torch.tensor(VALUES)
    for scheduler in (_scheduler([3, 2, 1]), None):
        assert _steps(Trajectory(), list(own) * 2, scheduler) == "*0 1 2 3 4 *0 1 2 3 4"


def test_a_freed_list_is_not_mistaken_for_the_next_at_its_address():
    trajectory = Trajectory()
    for _ in range(20):
        scheduler = _scheduler()
        assert _steps(trajectory, scheduler.timesteps[:2], scheduler) == "*0 1"


@pytest.mark.parametrize("scheduler", [None, SimpleNamespace(), SimpleNamespace(timesteps=None)])
def test_without_a_list_every_new_value_is_a_step(scheduler):
    assert _steps(Trajectory(), [900, 900, 700, 700, 500], scheduler) == "*0 0.1 1 1.1 2"


def test_the_position_of_a_value_that_is_not_in_the_list_is_the_schedulers_index():
    """The latent upscaler passes the logarithm of sigma to its U-Net."""
    scheduler, trajectory, words = _scheduler(step_index=0), Trajectory(), []
    for run in range(2):
        for index in range(3):
            scheduler.step_index = index
            words.append(_steps(trajectory, [0.25 * index - run], scheduler))
    assert words == ["*0", "1", "2", "*0", "1", "2"]


@pytest.mark.parametrize("scheduler", [None, _scheduler()], ids=["no list", "not in the list"])
def test_unknown_values_that_change_direction_begin_a_new_run(scheduler):
    fractions = [0.9, 0.6, 0.3]
    assert _steps(Trajectory(), fractions * 2, scheduler) == "*0 1 2 *0 1 2"
    assert _steps(Trajectory(), fractions[::-1] * 2, scheduler) == "*0 1 2 *0 1 2"


class TestNoTransfers:
    @pytest.mark.parametrize("read", [torch.Tensor.item, bool, float, int, lambda tensor: tensor.tolist()])
    def test_the_guard_notices(self, read, monkeypatch):
        with NoTransfers(monkeypatch), pytest.raises(AssertionError):
            read(torch.tensor(1))

    @pytest.mark.parametrize("kind", VIEWS)
    def test_in_locate(self, kind, monkeypatch):
        scheduler, trajectory = _scheduler([900, 600, 600, 300]), Trajectory()
        timesteps = kind(scheduler.timesteps) * 2
        with NoTransfers(monkeypatch):
            assert _steps(trajectory, timesteps, scheduler) == "*0 1 2 3 *0 1 2 3"

    @pytest.mark.parametrize("forecast", ["none", "linear", "quadratic", "limited"])
    @pytest.mark.parametrize("interval", [1, 3])
    @torch.no_grad()
    def test_in_full_and_shallow_steps(self, interval, forecast, monkeypatch):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(interval, cache_branch_id=1, forecast=forecast))
        pipe.scheduler.set_timesteps(5)
        sample, prompt = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8)
        with NoTransfers(monkeypatch):
            for timestep in pipe.scheduler.timesteps:
                sample = pipe.unet(sample, timestep, encoder_hidden_states=prompt).sample
        monkeypatch.undo()
        assert engine.stats.pattern == {1: "FFFFF", 3: "F..F."}[interval]


def test_a_copy_of_the_scheduler_begins_a_new_run():
    """Text2Video-Zero generates the first frame, then all frames over the same timesteps with a copy."""
    trajectory, timesteps = Trajectory(), torch.tensor([9, 6, 3])
    first, second = SimpleNamespace(timesteps=timesteps), SimpleNamespace(timesteps=timesteps)
    trajectory.locate(timesteps[0], first)
    trajectory.locate(timesteps[1], first)
    info = trajectory.locate(timesteps[1], second)
    assert (info.starts, info.step, info.slot) == (True, 0, 0)


def _doubts(trajectory, timesteps, scheduler=None, again=True):
    return ["F" if trajectory.locate(timestep, scheduler, again).doubt else "." for timestep in timesteps]


class TestTimestepsThatMayBeAnything:
    def test_an_unordered_list_is_not_a_run(self):
        timesteps = torch.tensor([812, 301, 55, 700, 699, 3, 2])
        assert "".join(_doubts(Trajectory(), timesteps)) == "FFFFFFF"

    def test_a_scheduler_may_list_them_in_any_order(self):
        """RePaint goes back and forth."""
        scheduler = _scheduler([4, 3, 2, 3, 2, 1, 0])
        assert "".join(_doubts(Trajectory(), scheduler.timesteps, scheduler)) == "......."

    @pytest.mark.parametrize("kind", NUMBERS)
    def test_values_in_no_list_are_a_run_once_they_are_evenly_spaced(self, kind):
        assert "".join(_doubts(Trajectory(), kind(torch.tensor([900, 700, 500, 300, 100])))) == "FFF.."
        assert "".join(_doubts(Trajectory(), kind(torch.tensor([100, 300, 500, 700, 900])))) == "FFF.."

    def test_values_that_are_not_evenly_spaced_are_one_once_six_keep_their_direction(self):
        assert "".join(_doubts(Trajectory(), [14.6, 9.7, 6.2, 3.9, 1.3, 0.9, 0.1])) == "FFFFF.."

    def test_random_values_are_not_a_run(self):
        generator, shallow = torch.Generator().manual_seed(0), 0
        trajectory = Trajectory()
        for _ in range(2000):
            shallow += not trajectory.locate(torch.randint(0, 1000, (1,), generator=generator), None).doubt
        assert shallow < 20

    def test_one_value_forever_is_one_step_without_a_next(self):
        trajectory = Trajectory()
        found = [trajectory.locate(torch.tensor([500]), None) for _ in range(300)]
        assert {info.step for info in found} == {0}
        assert all(info.ends for info in found)

    def test_omitted_steps_are_in_doubt_until_as_many_are_omitted_again(self):
        scheduler = _scheduler(range(20, 0, -1))
        timesteps = [scheduler.timesteps[index] for index in (0, 1, 2, 4, 6, 8, 9, 15, 16)]
        assert "".join(_doubts(Trajectory(), timesteps, scheduler)) == "...F...F."

    def test_a_repeated_value_is_the_next_step_only_for_the_same_purpose(self):
        scheduler = _scheduler([900, 600, 600, 300])
        trajectory = Trajectory()
        again = [(900, False), (900, False), (600, False), (600, False), (600, True)]
        found = [trajectory.locate(value, scheduler, seen) for value, seen in again]
        assert [(info.step, info.slot) for info in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
        assert [bool(info.doubt) for info in found] == [False] * 4 + [True]

    def test_the_index_of_the_scheduler_distinguishes_repeated_values(self):
        scheduler = _scheduler([900, 600, 600, 300], step_index=None)
        trajectory, found = Trajectory(), []
        for index, value in enumerate([900, 600, 600, 300]):
            found += [trajectory.locate(value, scheduler) for _ in range(2)]
            scheduler.step_index = index + 1
        assert [(info.step, info.slot) for info in found] == [(step, slot) for step in range(4) for slot in range(2)]
        assert not any(info.doubt for info in found)


@pytest.mark.parametrize("index", [5, 2], ids=["at its end", "in the middle"])
def test_an_index_that_does_not_change_is_ignored(index):
    """A run of the pipeline has left it there, and then the user's loop has other values."""
    scheduler, trajectory = _scheduler(step_index=index), Trajectory()
    found = [trajectory.locate(value, scheduler) for value in (0.9, 0.7, 0.5, 0.3, 0.1, 0.05)]
    assert [info.step for info in found] == [0, 1, 2, 3, 4, 5]
    assert {info.steps for info in found[1:]} == {None}
    assert index == 2 or found[0].steps is None
