"""`deepcache info`."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from DeepCache.models import MODELS
from tests.cli.helpers import complain


def test_info_lists_the_branches_of_the_shipped_model(run):
    from DeepCache.engine.layouts import skip_branches
    from DeepCache.models import load_pipeline

    result = run("info")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "UNet2DConditionModel" in result.stdout
    assert "GMAC with guidance" in result.stdout
    rows = re.findall(r"^ +(\d+) (\S.*?) +(\d+) +([\d.]+)%((?: +[\d.]+×){3}) *$", result.stdout, re.MULTILINE)
    branches = skip_branches(load_pipeline("shapes", device="cpu").unet)
    assert [(int(number), name) for number, name, *_ in rows] == [(b.number, b.name) for b in branches]
    shares = [float(row[3]) for row in rows]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 100


def test_info_reads_no_weights(run, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    result = run("info", "sdxl", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["pipeline"], found["unet"]) == ("StableDiffusionXLPipeline", "UNet2DConditionModel")
    assert found["sample"] == [128, 128]
    # Two samples of what was counted for one in the published tables.
    assert found["full_macs"] == pytest.approx(2 * 3380.6e9, rel=0.01)
    assert found["branches"][0]["mac_share"] == pytest.approx(0.015, abs=0.001)


def test_a_folder_is_described_by_its_configuration(run, tmp_path):
    shutil.copytree(MODELS["shapes"].folder, tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    expected, found = run("info", "--json"), run("info", "./model", "--json")
    assert found.exit_code == 0, found.stderr
    own, other = json.loads(expected.stdout), json.loads(found.stdout)
    assert other["branches"] == own["branches"]
    # A folder has no recommended guidance scale; that of the pipeline's class is above 1 too.
    assert other["full_macs"] == own["full_macs"]


def test_a_damaged_configuration_is_refused_in_one_line(run, tmp_path):
    shutil.copytree(MODELS["shapes"].folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "config.json").write_text("{")
    result = run("info", "./model")
    complain(result, "deepcache: cannot load the configuration of 'unet' of the model './model': ")
