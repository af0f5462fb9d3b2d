"""docs/compatibility.md and its list of pipelines match diffusers and the tests."""

from __future__ import annotations

import pytest

from tests.compatibility.discovery import find_pipelines
from tests.compatibility.page import FILE, INSTALLED, page, written_for
from tests.compatibility.pipelines import BROKEN, CASES, REFUSED

WRITTEN_FOR = written_for()


@pytest.mark.skipif(INSTALLED != WRITTEN_FOR, reason=f"the page was generated with diffusers {WRITTEN_FOR}")
def test_page_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == page(), "run: python -m tests.compatibility.page"


@pytest.mark.skipif(INSTALLED < WRITTEN_FOR, reason="removed classes of diffusers are not listed")
def test_every_pipeline_of_diffusers_is_listed():
    listed = {case.pipeline for case in (*CASES, *REFUSED, *BROKEN)}
    assert set(find_pipelines()) - listed == set(), "add a case for it in tests/compatibility/pipelines"


@pytest.mark.skipif(INSTALLED != WRITTEN_FOR, reason=f"the page was generated with diffusers {WRITTEN_FOR}")
def test_every_listed_pipeline_exists():
    # Diffusers has a placeholder for this one without onnxruntime, and nothing with it.
    only_without_onnx = {"OnnxStableDiffusionInpaintPipelineLegacy"}
    listed = {case.pipeline for case in (*CASES, *REFUSED, *BROKEN)}
    assert listed - set(find_pipelines()) - only_without_onnx == set()
