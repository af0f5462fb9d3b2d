import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from tests.engine.dummy_unet import DummyUNet, Pipeline

pytestmark = pytest.mark.usefixtures("nothing_is_counted")


def test_the_pipeline_keeps_its_class_name_while_followed():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe)
    assert isinstance(pipe, Pipeline)
    assert (type(pipe).__name__, type(pipe).__module__) == (Pipeline.__name__, Pipeline.__module__)
    remove_deepcache(pipe)
    assert type(pipe) is Pipeline
    assert set(pipe.__dict__) == {"unet", "scheduler"}


@pytest.mark.integration("U-Net swapped while DeepCache is enabled")
def test_restoring_the_first_unet_is_followed_too():
    first, second = DummyUNet(), DummyUNet()
    pipe = Pipeline(first)
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    for unet in (second, first):
        pipe.unet = unet
        assert (pipe.call(1, 0), pipe.call(3, 1)) == (33, 35)
        assert engine.stats.pattern == "F."


@pytest.mark.integration("Scheduler swapped while DeepCache is enabled")
def test_another_scheduler_is_followed():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    pipe.call(1, 0)
    pipe.scheduler = SimpleNamespace(timesteps=torch.tensor([1, 2, 3]))
    assert [pipe.call(1, step) for step in range(3)] == [24, 24, 26]
    assert engine.stats.pattern == "F.F"


def test_an_object_whose_class_cannot_change_works_without_being_followed():
    pipe = SimpleNamespace(unet=DummyUNet(), scheduler=SimpleNamespace(timesteps=torch.tensor([10, 20])))
    helper = DeepCacheSDHelper(pipe)
    helper.enable()
    pipe.unet = DummyUNet()
    helper.enable()
    outputs = [pipe.unet(torch.ones(1), t)[0].item() for t in pipe.scheduler.timesteps]
    assert outputs == [33, 33]
    helper.disable()


@pytest.mark.integration("deepcopy")
@pytest.mark.integration("pickle")
def test_a_copied_or_pickled_pipeline_is_followed_as_well():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(2))
    for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert isinstance(twin, Pipeline)
        assert type(twin).__name__ == "Pipeline"
        assert (twin.call(1, 0), twin.call(3, 1)) == (33, 35)
        assert (pipe.call(2, 0), pipe.call(3, 1)) == (56, 57)
        pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
        twin.unet = DummyUNet()
        assert twin.unet._forward_hooks
        remove_deepcache(twin)
        assert not twin.unet._forward_hooks
        assert type(twin) is Pipeline


def test_a_removed_unet_is_released_and_the_next_is_followed():
    first, second = DummyUNet(), DummyUNet()
    pipe = Pipeline(first)
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    pipe.unet = None
    assert not first._forward_hooks
    assert not engine.attached
    pipe.unet = second
    assert (pipe.call(1, 0), pipe.call(3, 1)) == (33, 35)


def test_a_unet_that_does_not_fit_the_settings_detaches_deepcache():
    first = DummyUNet()
    pipe = Pipeline(first)
    engine = apply_deepcache(pipe, DeepCacheConfig(2, cache_branch_id=3))
    before = set(vars(DummyUNet()))
    with pytest.raises(TypeError, match="cannot cut a Linear"):
        pipe.unet = torch.nn.Linear(1, 1)
    assert not engine.attached
    assert set(vars(first)) == before
    assert not first._forward_hooks
    pipe.unet = first
    assert (pipe.call(1, 0), engine.attached) == (33, True)


def test_an_interrupted_attach_leaves_no_state(monkeypatch):
    pipe = Pipeline(DummyUNet())
    before = type(pipe), set(vars(pipe)), set(vars(pipe.unet))

    def interrupted(pipe, extension):
        raise KeyboardInterrupt

    monkeypatch.setattr("DeepCache.engine.follow.extend_class", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_deepcache(pipe)
    assert (type(pipe), set(vars(pipe)), set(vars(pipe.unet))) == before
