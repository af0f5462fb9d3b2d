from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from DeepCache.bench import benchmark
from tests.bench.fake_clock import FakeClock
from tests.bench.small_models import remember_costs, use_model


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Puts a pipeline instead of every model."""
    return partial(use_model, monkeypatch)


@pytest.fixture
def remembered_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_costs(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeClock]:
    """Puts a new `FakeClock` instead of the clock. Memory is not swept up, which takes longer than all else."""

    def put(*args: Any, **kwargs: Any) -> FakeClock:
        made = FakeClock(*args, **kwargs)
        monkeypatch.setattr(benchmark, "timed", made)
        monkeypatch.setattr(benchmark, "release_memory", lambda: None)
        return made

    return put
