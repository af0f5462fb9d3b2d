"""The images of single runs and the output quoted in docs/start.md match the result file."""

from __future__ import annotations

import json

from benchmarks.pictures import FIRST, IMAGES, RESULT, file_of

MADE = json.loads(RESULT.read_text(encoding="utf-8"))
START = (IMAGES.parent / "start.md").read_text(encoding="utf-8")
BLOCKS = START.split("```")


def test_images_match_the_result():
    for name in ("side_by_side", "page"):
        assert file_of(IMAGES / MADE[name]["picture"]).items() <= MADE[name].items()


def test_the_first_page_shows_what_was_printed():
    printed = "\n".join(line.rstrip() for line in MADE["first_picture"]["printed"])
    assert f"text\n{printed}\n" in BLOCKS
    assert f'deepcache generate "{FIRST}" --compare' in START


def test_what_a_large_model_keeps_and_costs_follows_from_its_cost():
    """Of 51 calls 17 are full; a linear forecast keeps two tensors."""
    cost = json.loads((RESULT.parent / "sd15_cpu.json").read_text(encoding="utf-8"))
    share = (17 + 34 * cost["multiply_accumulates"]["ratio"]) / 51
    assert f"17 full and 34 shallow steps, 10.00 MiB kept, multiply-accumulates of the U-Net: {share:.1%}" in START
