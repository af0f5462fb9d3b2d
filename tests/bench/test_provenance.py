"""Where a result comes from."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType

import pytest
import torch

from DeepCache.bench.provenance import PACKAGES, describe_device, provenance


@pytest.mark.parametrize(
    ("arguments", "module", "command"),
    [
        (["/opt/env/bin/deepcache", "info"], None, "deepcache info"),
        (["/opt/env/lib/DeepCache/__main__.py", "info"], "DeepCache.__main__", "deepcache info"),
        (["/home/me/measure.py", "--fast"], None, "python measure.py --fast"),
        (["/home/me/benchmarks/parity.py"], "benchmarks.parity", "python -m benchmarks.parity"),
        (["/opt/env/bin/deepcache", "benchmark", "-v", "I=3 B=0"], None, "deepcache benchmark -v 'I=3 B=0'"),
        (["/opt/env/bin/deepcache"], None, "deepcache"),
    ],
    ids=["console script", "package", "script", "module", "quotes", "no arguments"],
)
def test_the_command_can_be_repeated_and_has_no_path_of_the_machine(arguments, module, command, monkeypatch):
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", arguments)
    assert provenance(0)["command"] == command


def test_provenance_has_date_seed_and_installed_versions():
    made = provenance(7)
    assert made["seed"] == 7
    assert timedelta() <= datetime.now(timezone.utc) - datetime.fromisoformat(made["date"]) < timedelta(days=1)
    assert made["versions"] == {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}
    assert json.loads(json.dumps(made)) == made


def test_machine_and_device_are_the_same_each_time():
    assert provenance(0)["machine"] == provenance(0)["machine"]
    described = describe_device(torch.device("cpu"))
    assert described == {"type": "cpu", "name": provenance(0)["machine"]["cpu"]}
    assert described["name"]
