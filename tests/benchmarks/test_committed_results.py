"""The committed results of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu
from DeepCache.app.explorer import SHIPPED_ABLATION
from DeepCache.bench.result_file import read_result

FOLDER = Path(gpu.HERE)
RESULTS = sorted([SHIPPED_ABLATION, FOLDER / "sd15_512_cpu.json", *FOLDER.glob("gpu/*/*.json")])


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_as_its_schema_says_and_complete(path):
    result = read_result(path)
    if "cells" in result:
        assert {cell["status"] for cell in result["cells"]} <= {"done", "out of memory"}
    else:
        names = {cell["label"] for group in result["groups"] for cell in group["cells"]}
        assert names >= set(result["settings"]["labels"])


def test_images_of_the_ablation_exist():
    result, folder = read_result(SHIPPED_ABLATION), SHIPPED_ABLATION.parent
    named = [cell["samples"] for group in result["groups"] for cell in (group["reference"], *group["cells"])]
    there = {path.relative_to(folder).as_posix() for path in (folder / "ablation-samples").rglob("*.png")}
    assert there == {name for name in named if name is not None}
    assert len(there) == 3 * len(result["groups"])
