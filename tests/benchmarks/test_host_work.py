"""Where schedulers and pipelines would make the host wait, what compiled calls are timed with, and the page."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

from benchmarks import host_work
from benchmarks.host_work_waits import make_scheduler, pipeline_waits, scheduler_waits, timesteps_on_host
from benchmarks.simulated_device import READ, TO_DEVICE
from benchmarks.tables import BETWEEN
from DeepCache.engine.layouts import layout_of
from DeepCache.engine.patch import ShallowPatch
from DeepCache.files import read_json_text

# Some schedulers are of another age than the numpy they meet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

HERE = (Path(__file__),)
RESULT = json.loads(read_json_text(Path(host_work.__file__).with_suffix(".json.gz"), "result"))


class Reading:
    """A scheduler that looks its timestep up in a table on the host."""

    def __init__(self):
        self.levels = torch.linspace(1, 0, 10)

    def set_timesteps(self, steps, device):
        self.timesteps = torch.arange(steps).to(device)

    def scale_model_input(self, sample, timestep):
        return sample

    def step(self, prediction, timestep, sample):
        level = self.levels[timestep]  # here
        return SimpleNamespace(prev_sample=sample - level * prediction)


class Counting(Reading):
    """The same, which counts its steps itself."""

    def set_timesteps(self, steps, device):
        super().set_timesteps(steps, device)
        self.count = 0

    def step(self, prediction, timestep, sample):
        self.count += 1
        return SimpleNamespace(prev_sample=sample - self.levels[self.count - 1] * prediction)


def test_a_scheduler_that_reads_is_found_with_its_line():
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if text.endswith("# here")]
    watched = scheduler_waits(Reading(), HERE, steps=3)
    assert watched.each_step() == [1, 1, 1]
    assert watched.places() == [{"place": f"{Path(__file__).name}:{line}", "what": READ, "times": 3}]


def test_a_scheduler_that_does_not_read_is_not_found():
    watched = scheduler_waits(Counting(), HERE, steps=3)
    assert watched.each_step() == [0, 0, 0]
    assert watched.places() == []
    # A product and a difference.
    assert [watched.operations[step] for step in range(3)] == [2, 2, 2]


@pytest.mark.skipif(version("diffusers") != RESULT["versions"]["diffusers"], reason="lines are those of one version")
@pytest.mark.parametrize("row", RESULT["schedulers"], ids=lambda row: row["name"])
def test_the_committed_waits_are_those_of_the_scheduler(row):
    watched = scheduler_waits(make_scheduler(row["name"]))
    assert watched.each_step() == row["waits"]
    assert watched.places() == row["places"]


@pytest.mark.parametrize("method", host_work.METHODS)
@pytest.mark.parametrize("kind", [StableDiffusionPipeline, StableDiffusionXLPipeline])
def test_nothing_waits_after_the_first_step_where_the_scheduler_does_not(kind, method):
    watched = pipeline_waits(kind, make_scheduler("dpm++"), host_work.METHODS[method], steps=5)
    assert watched.each_step()[1:] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["ddim", "lcm", "pndm"])
def test_with_timesteps_on_the_host_the_unet_copies_one_number(name):
    scheduler = timesteps_on_host(make_scheduler(name))
    watched = pipeline_waits(StableDiffusionPipeline, scheduler, steps=3)
    assert set(watched.each_step()) == {1}
    assert {wait.what for wait in watched.waits} == {TO_DEVICE}


def test_scheduler_with_a_given_begin_index_does_not_search():
    begun = make_scheduler("euler")
    set_timesteps = begun.set_timesteps
    begun.set_timesteps = lambda *args, **options: (set_timesteps(*args, **options), begun.set_begin_index(0))
    assert scheduler_waits(make_scheduler("euler"), steps=3).each_step() == [2, 0, 0]
    assert scheduler_waits(begun, steps=3).each_step() == [0, 0, 0]


@pytest.mark.parametrize(("to_one", "ends"), [(False, "sigma_min"), (True, "zero")])
def test_euler_takes_the_steps_of_ddim_in_units_of_its_own(to_one, ends):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(scheduler):
        scheduler.set_timesteps(20)
        sample = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            prediction = torch.tanh(scheduler.scale_model_input(sample, timestep) + timestep / 1000)
            sample = scheduler.step(prediction, timestep, sample).prev_sample
        return sample

    ddim = make_scheduler("ddim", set_alpha_to_one=to_one)
    euler = run(make_scheduler("euler", final_sigmas_type=ends))
    torch.testing.assert_close(euler * ddim.final_alpha_cumprod.sqrt(), run(ddim), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_call_has_one_graph_for_each_kind_of_step():
    rows = host_work.compiled_work("tiny", runs=1)
    assert {(row["method"], row["kind"]): row["graphs"] for row in rows} == {
        ("no caching", "full"): 1,
        ("re-use", "full"): 2,
        ("re-use", "shallow"): 2,
        ("re-use, without the other class", "full"): 2,
        ("re-use, without the other class", "shallow"): 2,
    }


def test_without_the_other_class_all_keep_their_own():
    unet = UNet2DConditionModel(**host_work.UNETS["tiny"])
    classes = type(unet), type(unet.up_blocks[-1])

    def on_a_shallow_step():
        layout = layout_of(unet)
        patch = ShallowPatch(layout, layout.branches[0])
        patch.apply(None)
        found = type(unet), type(unet.up_blocks[-1])
        patch.remove()
        return [new is old for new, old in zip(found, classes, strict=True)]

    with host_work.class_kept():
        assert on_a_shallow_step() == [True, True]
    assert on_a_shallow_step() == [False, False]
    assert (type(unet), type(unet.up_blocks[-1])) == classes


def test_every_code_block_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", BETWEEN.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["image"].size == (64, 64)
    assert isinstance(names["pipe"].scheduler, diffusers.EulerDiscreteScheduler)
    assert names["pipe"].scheduler.begin_index == 0
