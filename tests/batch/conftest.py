from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.counted_job import CountedJob


@pytest.fixture
def job(tmp_path: Path) -> CountedJob:
    return CountedJob(tmp_path)
