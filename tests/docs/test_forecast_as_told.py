"""The lines that docs/extending.md says it takes to add a cubic forecast are all it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"

# The dummy U-Net adds the timestep to its deep feature.
PROGRAM = """
import DeepCache
from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.schedule import ExplicitSchedule, StepSchedule, schedule_from_dict
from tests.engine.dummy_unet import DummyUNet, Pipeline

print(DeepCache.__file__)
pipe = Pipeline(DummyUNet(), timesteps=[step**3 for step in range(9)])
plain = [pipe.call(0, step) for step in range(9)]
for forecast in ("quadratic", "cubic"):
    config = DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 3, 4)), forecast=forecast)
    engine = apply_deepcache(pipe, config)
    cached = [pipe.call(0, step) for step in range(9)]
    print(engine.pattern, "".join(str(int(a == b)) for a, b in zip(cached, plain, strict=True)))
plan = StepSchedule(config.steps(9))
print(plan.to_dict()["forecast"], schedule_from_dict(plan.to_dict()) == plan)
"""


def test_documented_lines_add_a_cubic_forecast(tmp_path):
    shutil.copytree(ROOT / "src" / "DeepCache", tmp_path / "DeepCache", ignore=shutil.ignore_patterns("shapes", "app"))
    (change,) = re.findall(
        r"^```text\n--- a/src/(\S+)\n\+\+\+ b/src/\1\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    file, hunks = tmp_path / change[0], re.findall(r"^@@\n-(.*\n)\+(.*\n)", change[1], re.M)
    assert len(hunks) == 2
    for before, after in hunks:
        text = file.read_text(encoding="utf-8")
        assert text.count(before) == 1
        file.write_text(text.replace(before, after), encoding="utf-8")

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said.stdout.splitlines() == [
        str(tmp_path / "DeepCache" / "__init__.py"),
        "FF.FF.... 110110000",
        # From four full steps on.
        "FF.FF.... 110111111",
        "005005555 True",
    ], said.stderr
