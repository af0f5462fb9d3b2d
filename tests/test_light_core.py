"""The core works with torch alone, and `deepcache` names missing packages."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

import pytest

from DeepCache import cli, extras
from DeepCache.models import load_pipeline

# Hides all packages but torch.
WITH_TORCH_ALONE = """
import sys
import torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NOT_THERE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

NOT_THERE = {"diffusers", "transformers", "accelerate", "safetensors", "PIL", "rich", "typer", "torchmetrics",
             "huggingface_hub"}
sys.meta_path.insert(0, Absent())
"""

A_RUN = """
from torch import nn

class Block(nn.Module):
    def __init__(self, skips):
        super().__init__()
        self.resnets = nn.ModuleList(nn.Conv2d(2 * 4 if skips else 4, 4, 1) for _ in range(2 if skips else 1))

    def forward(self, sample, skips=None):
        outputs = ()
        for layer in self.resnets:
            if skips is not None:
                sample, skips = torch.cat([sample, skips[-1]], dim=1), skips[:-1]
            sample = layer(sample)
            outputs += (sample,)
        return sample if skips is not None else (sample, outputs)

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_blocks, self.up_blocks = nn.ModuleList([Block(False)]), nn.ModuleList([Block(True)])
        self.mid_block = nn.Conv2d(4, 4, 1)

    def forward(self, sample, timestep):
        skips = (sample,)
        for block in self.down_blocks:
            sample, outputs = block(sample)
            skips += outputs
        if self.mid_block is not None:
            sample = self.mid_block(sample)
        for block in self.up_blocks:
            number = len(block.resnets)
            sample, skips = block(sample, skips[-number:]), skips[:-number]
        return sample

class Pipe:
    unet, scheduler = UNet().eval(), None

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, Plan, UniformSchedule, apply_deepcache, remove_deepcache

helper = DeepCacheSDHelper(Pipe())
helper.set_params(cache_interval=3, cache_branch_id=0)
helper.enable()
with torch.no_grad():
    for timestep in torch.arange(7).flip(0):
        helper.pipe.unet(torch.ones(1, 4, 2, 2), timestep)
assert helper.stats.pattern == "F..F..F" and helper.stats.mac_share < 1, helper.stats
helper.disable()
apply_deepcache(helper.pipe.unet, DeepCacheConfig.from_json(DeepCacheConfig(2, forecast="linear").to_json()))
remove_deepcache(helper.pipe.unet)
"""


def test_core_works_with_torch_alone():
    run = subprocess.run([sys.executable, "-c", WITH_TORCH_ALONE + A_RUN], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_core_requires_torch_alone():
    required = [each for each in importlib.metadata.requires("DeepCache") if "extra ==" not in each]
    assert [re.match(r"[\w.-]+", each)[0] for each in required] == ["torch"]


def test_every_other_extra_includes_the_requirements_of_the_command():
    brought = {name: set() for name in importlib.metadata.metadata("DeepCache").get_all("Provides-Extra")}
    for requirement in importlib.metadata.requires("DeepCache"):
        package, _, extra = requirement.partition("; extra == ")
        if extra:
            brought[extra.strip("'\"")].add(package)
    assert brought.keys() == {
        "all",
        "app",
        "batch",
        "cli",
        "lora",
        "onnx",
        "openvino",
        "ray",
        "report",
        "training",
        "tune",
        "wandb",
    }
    assert all(packages >= brought["cli"] for packages in brought.values())
    assert brought["all"] == set().union(*brought.values())


@pytest.fixture
def installed(monkeypatch):
    """Lets packages look as if they were not there, or of another version."""

    def pretend(**versions):
        real = importlib.metadata.version

        def version(name):
            if name in versions and versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions.get(name) or real(name)

        monkeypatch.setattr(extras, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"typer": None, "rich": None}, "it needs rich, typer: pip install 'DeepCache[cli]'"),
        (
            {"diffusers": "0.27.2", "torchmetrics": None},
            "it needs diffusers >= 0.40 (found 0.27.2), torchmetrics: pip install 'DeepCache[cli]'",
        ),
        ({"diffusers": "0.40.0.dev0", "transformers": "5.6rc1"}, ""),
        ({"torch": "2.5.1+cu124"}, "it needs torch >= 2.6 (found 2.5.1+cu124): pip install 'DeepCache[cli]'"),
        ({}, ""),
    ],
)
def test_missing_packages_are_named(installed, versions, expected):
    installed(**versions)
    assert extras.why_missing("cli") == expected


def test_command_reports_missing_packages_in_one_line(installed, capsys):
    installed(typer=None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "deepcache: it needs typer: pip install 'DeepCache[cli]'\n"


def test_load_pipeline_reports_missing_packages(installed):
    installed(transformers="4.48.0")
    with pytest.raises(ImportError, match=r"load_pipeline cannot be used here: it needs transformers >= 5.6"):
        load_pipeline("shapes")
