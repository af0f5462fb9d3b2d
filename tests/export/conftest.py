"""Graphs of a small U-Net, exported once."""

from __future__ import annotations

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.export import export_graphs
from tests.engine.tiny_pipeline import tiny_pipeline
from tests.export.runs import CALL


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with the graphs of `tiny_pipeline()`, with guidance reuse, and their description."""
    folder = tmp_path_factory.mktemp("exported") / "graphs"
    config = DeepCacheConfig(cache_interval=3, forecast="linear", guidance_reuse=True)
    stages = []
    found = export_graphs(tiny_pipeline(), folder, CALL(), config, format="torch", on_stage=stages.append)
    return folder, found, stages
