"""What docs/batch.md tells people to type and to write."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from benchmarks.tables import BATCH
from DeepCache.batch import BatchRecord
from DeepCache.cli import app

PAGE = BATCH.read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if "deepcache batch " in line]
    return [shlex.split(line[line.index("deepcache batch ") :], comments=True) for line in lines]


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    """The prompt file of the page, in a new folder."""
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("csv")
    (tmp_path / "prompts.csv").write_text(text, encoding="utf-8")
    threads = torch.get_num_threads()
    yield tmp_path / "prompts.csv"
    # A batch sets the number of threads of its process.
    torch.set_num_threads(threads)


def test_the_first_command_and_every_python_block_run(prompts, capsys):
    first = commands()[0][1:]
    assert CliRunner().invoke(app, [*first, "--steps", "3"]).exit_code == 0
    images = sorted(path.name for path in prompts.parent.glob("images/pictures/*/*.png"))
    # The folder shows one of them.
    assert len(images) == 4
    assert re.search(r"pictures/a8/(\w+\.png)", PAGE)[1] in images
    assert {path.name for path in prompts.parent.glob("images/*")} >= {
        "job.json",
        "manifest.parquet",
        "pictures",
        "journal",
    }
    for block in blocks("python"):
        exec(compile(block, BATCH.name, "exec"), {})
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "4 done, 0 failed"
    assert [line.split()[0] for line in lines[-4:-2]] == ["1", "2"]


def test_options_of_every_command_exist():
    known = {option for parameter in get_command(app).commands["batch"].params for option in parameter.opts}
    assert len(commands()) >= 4
    for command in commands():
        assert command[:2] == ["deepcache", "batch"]
        assert {word for word in command if word.startswith("-")} <= known
    named = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--runtime-env-json"}
    assert named - known == set()


def test_every_column_of_the_manifest_is_in_the_table():
    table = PAGE.split("| column of the manifest | |")[1].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == [field.name for field in fields(BatchRecord)]


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_the_cluster_file():
    util = pytest.importorskip("ray.autoscaler._private.util")
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("yaml")
    util.validate_config(util.prepare_config(yaml.safe_load(text)))
