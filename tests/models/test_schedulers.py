from __future__ import annotations

import pytest

from DeepCache.models import SCHEDULER_ALIASES, load_pipeline, set_scheduler

# NumPy deprecates how diffusers' schedulers pass tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

NEEDS_OTHER_PACKAGES = {"lms", "dpm++-sde"}


@pytest.mark.parametrize("name", sorted(SCHEDULER_ALIASES.keys() - NEEDS_OTHER_PACKAGES))
def test_every_short_name_works(name):
    pipe = load_pipeline("shapes", device="cpu", scheduler=name, progress_bar=False)
    assert type(pipe.scheduler).__name__ == SCHEDULER_ALIASES[name]
    assert len(pipe("a red circle", num_inference_steps=2, output_type="latent").images) == 1


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "eulerdiscrete", "EULER", " euler "])
def test_class_names_work_in_any_case(name):
    pipe = load_pipeline("shapes", device="cpu")
    set_scheduler(pipe, name)
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"


def test_configuration_is_kept():
    pipe = load_pipeline("shapes", device="cpu")
    before = pipe.scheduler.config
    set_scheduler(pipe, "dpm++")
    assert pipe.scheduler.config.beta_schedule == before.beta_schedule
    assert pipe.scheduler.config.prediction_type == before.prediction_type
