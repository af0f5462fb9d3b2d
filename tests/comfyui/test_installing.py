"""The nodes as ComfyUI loads them, from a clone and from a copy by `deepcache comfyui`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from DeepCache.cli import app
from tests.test_light_core import WITH_TORCH_ALONE

ROOT = Path(__file__).parents[2]
LOAD = """
import importlib.util
spec = importlib.util.spec_from_file_location("nodes_of_a_folder", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import DeepCache
print(sorted(module.NODE_CLASS_MAPPINGS), sorted(module.NODE_DISPLAY_NAME_MAPPINGS), DeepCache.__file__)
"""


def loaded(folder: Path) -> str:
    """Runs a process with torch only and another package named DeepCache, such as the reference package."""
    program = WITH_TORCH_ALONE + LOAD.format(file=str(folder / "__init__.py"))
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/")
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture
def comfyui(tmp_path):
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    return tmp_path / "ComfyUI"


def test_nodes_load_from_a_clone():
    said = loaded(ROOT)
    assert said.startswith("['DeepCacheReport', 'DeepCacheUNet'] ['DeepCacheReport', 'DeepCacheUNet'] ")
    assert str(ROOT / "src") in said


def test_nodes_load_from_the_copy_of_the_command(comfyui):
    for _ in range(2):
        run = CliRunner().invoke(app, ["comfyui", str(comfyui)])
        assert run.exit_code == 0
        assert "Restart ComfyUI, and add the node DeepCache" in run.stdout
    folder = comfyui / "custom_nodes" / "deepcache"
    assert str(folder / "DeepCache") in loaded(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["deepcache"]
    assert (folder / "example_workflows" / "deepcache.json").is_file()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("", "is not a ComfyUI directory: it has no custom_nodes"),
        ("custom_nodes/deepcache/mine.py", "exists and is not a copy of the DeepCache nodes. Move it first"),
    ],
    ids=["another folder", "other nodes"],
)
def test_wrong_directories_are_rejected(there, message, tmp_path):
    if there:
        (tmp_path / there).parent.mkdir(parents=True)
        (tmp_path / there).touch()
    run = CliRunner().invoke(app, ["comfyui", str(tmp_path)])
    assert run.exit_code == 2
    assert message in run.output.replace("\n", " ")
    assert not there or (tmp_path / there).exists()
