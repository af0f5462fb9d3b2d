from __future__ import annotations

import re


def test_info_lists_the_branches_of_the_shipped_model(run):
    from DeepCache.engine.layouts import skip_branches
    from DeepCache.models import load_pipeline

    result = run("info")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "UNet2DConditionModel" in result.stdout
    assert "GMAC with guidance" in result.stdout
    rows = re.findall(r"^ +(\d+) (\S.*?) +(\d+) +([\d.]+)%((?: +[\d.]+×){3})$", result.stdout, re.MULTILINE)
    branches = skip_branches(load_pipeline("shapes", device="cpu").unet)
    assert [(int(number), name) for number, name, *_ in rows] == [(b.number, b.name) for b in branches]
    shares = [float(row[3]) for row in rows]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 100
