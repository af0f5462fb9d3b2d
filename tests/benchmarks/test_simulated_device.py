"""What would make the host wait for a device is found without one, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from benchmarks.host_work_waits import ALL_CODE, make_scheduler
from benchmarks.simulated_device import DEVICE, READ, TO_DEVICE, TO_HOST, simulated_device

HERE = (Path(__file__),)

WAITS = {
    "item": (lambda device, host: device[1].item(), [READ]),
    "bool": (lambda device, host: bool(device[1] > 0), [READ]),
    "int": (lambda device, host: int(device[1]), [READ]),
    "comparison": (lambda device, host: min(device[1], device[2]), [READ]),
    "table on the host": (lambda device, host: host[device.long()[1]], [READ]),
    "table on the device": (lambda device, host: device[device.long()[1]], [READ]),
    "mask": (lambda device, host: device[device > 0], [READ]),
    "nonzero": (lambda device, host: (device == 1).nonzero(), [READ]),
    "nonzero and item": (lambda device, host: (device == 1).nonzero()[0].item(), [READ, READ]),
    "equal": (lambda device, host: torch.equal(device, device), [READ]),
    "unique": (lambda device, host: device.unique(), [READ]),
    "linear solver": (lambda device, host: torch.linalg.solve(device.diag(), device), [READ]),
    "cpu": (lambda device, host: device.cpu(), [TO_HOST]),
    "to": (lambda device, host: device.to("cpu"), [TO_HOST]),
    "tolist": (lambda device, host: device.tolist(), [TO_HOST]),
    "written to the host": (lambda device, host: host.clone().copy_(device), [TO_HOST]),
    "tensor": (lambda device, host: torch.tensor(1.0, device=device.device), [TO_DEVICE]),
    "moved": (lambda device, host: host.to(device.device), [TO_DEVICE]),
    "moved and converted": (lambda device, host: host.to(device.device, torch.float64), [TO_DEVICE]),
    "places on the host": (lambda device, host: device[torch.tensor([0, 2])], [TO_DEVICE]),
    "noise of the host": (lambda device, host: randn_tensor((3,), torch.Generator(), device.device), [TO_DEVICE]),
}
NO_WAITS = {
    "arithmetic": lambda device, host: (device * 2 + device.sqrt()) / device.mean(),
    "number of the host": lambda device, host: device * host[1],
    "place": lambda device, host: device[1] + device[1:].sum(),
    "places on the device": lambda device, host: device[torch.ones(2, device=device.device, dtype=torch.long)],
    "made on the device": lambda device, host: torch.zeros(3, device=device.device),
    "noise of the device": lambda device, host: randn_tensor((3,), torch.Generator(device.device), device.device),
    "converted": lambda device, host: device.to(torch.float64),
    "without waiting": lambda device, host: host.to(device.device, non_blocking=True),
    "shape": lambda device, host: (len(device), device.shape, device.dtype, device.storage_offset()),
    "steps": lambda device, host: [step.ndim for step in device],
}


def watch(action):
    host = torch.tensor([1.0, 2.0, 3.0])
    with simulated_device(HERE) as watched:
        device = host.to(DEVICE)
        del watched.waits[:]
        action(device, host)
    return watched


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_found_with_its_line(name):
    action, kinds = WAITS[name]
    found = [(wait.what, wait.place) for wait in watch(action).waits]
    line = f"{Path(__file__).name}:{action.__code__.co_firstlineno}"
    assert found == [(what, line) for what in kinds]


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not_wait_is_not_found(name):
    assert not watch(NO_WAITS[name]).waits


def test_tensors_of_the_host_and_of_the_device_do_not_mix():
    with pytest.raises(RuntimeError, match="tensors of the host and of the device"):
        watch(lambda device, host: device + host)


def test_nothing_of_the_simulated_device_is_left_behind():
    generator = torch.Generator
    watch(lambda device, host: None)
    assert torch.Generator is generator
    assert not torch._C._only_lift_cpu_tensors()


# Some schedulers are of another age than the numpy they meet.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "heun"])
def test_the_simulated_device_computes_what_the_host_does(name):
    start, prediction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(place):
        scheduler = make_scheduler(name)
        scheduler.set_timesteps(5, device=place)
        sample = start.to(place)
        for timestep in scheduler.timesteps:
            scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(prediction.to(place), timestep, sample).prev_sample
        return sample.cpu()

    with simulated_device((*HERE, *ALL_CODE)):
        on_device = run(DEVICE)
    assert torch.equal(on_device, run(torch.device("cpu")))
