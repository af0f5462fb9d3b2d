"""How a call becomes named tensors and constants."""

from __future__ import annotations

import pytest
import torch

from DeepCache.export.call import CallReader


def forward(self, sample, timestep, text, scale=1.0, added=None, residuals=None, return_dict=True): ...


READ = CallReader(forward)
SAMPLE, TEXT = torch.zeros(2, 4), torch.ones(2, 3)


@pytest.mark.parametrize(
    "timestep", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 7.0]), torch.arange(9)[7]]
)
def test_a_timestep_becomes_one_number_for_each_sample(timestep):
    tensors = READ((SAMPLE, timestep), {"text": TEXT}).tensors
    assert torch.equal(tensors["timestep"], torch.tensor([7.0, 7.0]))


def test_timesteps_of_their_own_stay():
    assert READ((SAMPLE, torch.tensor([3, 9]), TEXT), {}).tensors["timestep"].tolist() == [3.0, 9.0]


def test_a_timestep_for_another_number_of_samples_is_refused():
    with pytest.raises(ValueError, match=r"one timestep for each of the 2 samples.*\(3,\)"):
        READ((SAMPLE, torch.tensor([1, 2, 3]), TEXT), {})


def test_it_does_not_matter_how_arguments_are_given():
    by_place = READ((SAMPLE, 7, TEXT), {"return_dict": False})
    by_name = READ((), {"text": TEXT, "timestep": 7, "sample": SAMPLE, "added": None})
    assert list(by_place.tensors) == list(by_name.tensors) == ["sample", "timestep", "text"]
    assert by_place.constants == by_name.constants == {}


def test_nested_tensors_have_a_path_and_go_back_where_they_were():
    residuals, size = [torch.zeros(1), torch.ones(1)], torch.ones(2, 6)
    call = READ((SAMPLE, 7, TEXT), {"added": {"size": size}, "residuals": residuals})
    assert list(call.tensors) == ["sample", "timestep", "text", "added.size", "residuals.0", "residuals.1"]
    again = call.keywords(call.tensors)
    assert again["added"]["size"] is size
    assert again["residuals"] == residuals


def test_numbers_flags_and_text_are_constants():
    call = READ((SAMPLE, 7, TEXT), {"scale": 0.5, "added": {"mode": "a", "on": True}})
    assert call.constants == {"scale": 0.5, "added.mode": "a", "added.on": True}


def test_a_default_is_as_good_as_nothing():
    assert READ((SAMPLE, 7, TEXT), {"scale": 1.0}).constants == {}


def test_what_a_graph_cannot_take_is_refused_by_name():
    with pytest.raises(TypeError, match=r"'added.hook' is a function"):
        READ((SAMPLE, 7, TEXT), {"added": {"hook": lambda: None}})
