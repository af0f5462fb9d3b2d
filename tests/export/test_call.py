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
def test_timestep_becomes_one_number_per_sample(timestep):
    tensors = READ((SAMPLE, timestep), {"text": TEXT}).tensors
    assert torch.equal(tensors["timestep"], torch.tensor([7.0, 7.0]))


def test_one_timestep_per_sample_is_kept():
    assert READ((SAMPLE, torch.tensor([3, 9]), TEXT), {}).tensors["timestep"].tolist() == [3.0, 9.0]


def test_timesteps_for_another_number_of_samples_are_refused():
    with pytest.raises(ValueError, match=r"one for each of the 2 samples.*\(3,\)"):
        READ((SAMPLE, torch.tensor([1, 2, 3]), TEXT), {})


def test_positional_and_keyword_arguments_are_equivalent():
    by_place = READ((SAMPLE, 7, TEXT), {"return_dict": False})
    by_name = READ((), {"text": TEXT, "timestep": 7, "sample": SAMPLE, "added": None})
    assert list(by_place.tensors) == list(by_name.tensors) == ["sample", "timestep", "text"]
    assert by_place.constants == by_name.constants == {}


def test_nested_tensors_have_paths_and_are_restored():
    residuals, size = [torch.zeros(1), torch.ones(1)], torch.ones(2, 6)
    call = READ((SAMPLE, 7, TEXT), {"added": {"size": size}, "residuals": residuals})
    assert list(call.tensors) == ["sample", "timestep", "text", "added.size", "residuals.0", "residuals.1"]
    again = call.keywords(call.tensors)
    assert again["added"]["size"] is size
    assert again["residuals"] == residuals


def test_numbers_booleans_and_strings_are_constants():
    call = READ((SAMPLE, 7, TEXT), {"scale": 0.5, "added": {"mode": "a", "on": True}})
    assert call.constants == {"scale": 0.5, "added.mode": "a", "added.on": True}


def test_defaults_are_omitted():
    assert READ((SAMPLE, 7, TEXT), {"scale": 1.0}).constants == {}


def test_unsupported_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match=r"got a function for 'added.hook'"):
        READ((SAMPLE, 7, TEXT), {"added": {"hook": lambda: None}})
