"""Programs that pin their environments get the package without a change of any version in them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

PINS = {
    "LatentSync": {"python": "3.10", "torch": "2.5.1", "diffusers": "0.32.2", "transformers": "4.48.0"},
    "MuseTalk": {"python": "3.10", "torch": "2.0.1", "diffusers": "0.30.2", "transformers": "4.39.2"},
    "IDM-VTON": {"python": "3.10", "torch": "2.0.1", "diffusers": "0.25.0", "transformers": "4.36.2"},
}


def dist_info(name, version, requires=()):
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires)]) + "\n"


@pytest.fixture
def wheel(tmp_path):
    """A wheel with the metadata of the package, which are all that pip resolves by."""
    package = importlib.metadata.distribution("DeepCache")
    path = tmp_path / f"DeepCache-{package.version}-py3-none-any.whl"
    folder = f"DeepCache-{package.version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/METADATA", package.read_text("METADATA"))
        archive.writestr(
            f"{folder}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{folder}/RECORD", "")
    return path


def would_install(wheel, environment: Path) -> dict[str, str]:
    """What pip would install beside the packages in a folder, by name."""
    report = environment / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--report", report, wheel]
    # In a folder of another interpreter nothing else is there.
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN_PIP, str(environment), *map(str, command[3:])],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull},
    )
    assert run.returncode == 0, run.stderr
    installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {each["metadata"]["name"]: each["metadata"]["version"] for each in installed}


# Pip itself comes last on the path: the packages that it finds are those of the folder.
RUN_PIP = f"""
import runpy, sys
sys.path += [sys.argv.pop(1), {str(Path(importlib.metadata.distribution("pip").locate_file("")))!r}]
import pip._internal.metadata.importlib._envs as environments
sys.argv[0] = "pip"
environments.Environment.default = classmethod(lambda cls: cls([sys.path[-2]]))
runpy.run_module("pip", run_name="__main__")
"""


@pytest.mark.parametrize("program", PINS)
def test_installing_changes_no_version(program, wheel, tmp_path):
    environment = tmp_path / "environment"
    pins = {name: version for name, version in PINS[program].items() if name != "python"}
    for name, version in pins.items():
        folder = environment / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(dist_info(name, version), encoding="utf-8")
    assert list(would_install(wheel, environment)) == ["DeepCache"]


@pytest.mark.parametrize("program", PINS)
def test_required_python_is_old_enough(program):
    admitted = SpecifierSet(importlib.metadata.metadata("DeepCache")["Requires-Python"])
    assert PINS[program]["python"] in admitted
