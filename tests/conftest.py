import gc
import re
import shutil
from pathlib import Path

import pytest
import torch

from DeepCache.engine import stats
from tests.releases import WITHOUT_PIPELINES

# These import denoisers and pipelines of diffusers 0.30.
collect_ignore = (
    [
        *("engine/test_guidance_reuse.py", "engine/test_layer_lists.py"),
        *("layouts/test_arguments.py", "layouts/test_families.py"),
    ]
    if WITHOUT_PIPELINES
    else []
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables the count of multiply-accumulates when `stats` is read, which takes longer than small tests."""

    def count_costs(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(stats, "count_costs", count_costs)


# Per module, since other tests cannot run an event loop meanwhile.
@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests that `make test` omits, see tests/thorough.txt."""
    lines = (Path(__file__).parent / "thorough.txt").read_text(encoding="utf-8").splitlines()
    names = [re.compile(line) for line in lines if line and not line.startswith("#")]
    unused = set(names)
    for item in items:
        found = [name for name in names if name.match(item.nodeid)]
        unused.difference_update(found)
        if found:
            item.add_marker(pytest.mark.thorough)
    if unused and config.args == config.getini("testpaths"):
        raise pytest.UsageError(f"no test has the name {next(iter(unused)).pattern!r} in tests/thorough.txt")


def pytest_collection_finish() -> None:
    """Excludes imported modules from garbage collection."""
    gc.collect()
    gc.freeze()
