"""What the tests cannot do with older releases of torch and diffusers."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from packaging.version import Version

from DeepCache.extras import why_missing

__all__ = [
    "CLI",
    "COMPILES",
    "COMPILES_AGAIN",
    "COUNTS",
    "COUNTS_OPERATIONS",
    "DIFFUSERS",
    "HALF",
    "OFFLOADS_ALL",
    "UNWRITTEN",
    "WITHOUT_PIPELINES",
    "before_diffusers",
]

DIFFUSERS = Version(version("diffusers"))
WITHOUT_PIPELINES = Version("0.30") > DIFFUSERS
CLI = pytest.mark.skipif(bool(why_missing("cli")), reason="without DeepCache[cli]")
COUNTS_OPERATIONS = find_spec("torch.utils.flop_counter") is not None
COUNTS = pytest.mark.skipif(not COUNTS_OPERATIONS, reason="torch 2.0 counts no operations")
UNWRITTEN = pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch 2.0 makes NaN of unwritten memory there")
HALF = pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch 2.0 has no float16 on a CPU")
# With 2.5 it builds one graph more after `disable` and `enable`, and fails within accelerate's hooks.
COMPILES_AGAIN = pytest.mark.skipif(Version("2.6") > Version(torch.__version__), reason="the compiler before torch 2.6")
COMPILES = pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch 2.0 has no torch.compiler")


def before_diffusers(least: str, reason: str) -> pytest.MarkDecorator:
    """Leaves a test out with diffusers before a release."""
    return pytest.mark.skipif(Version(least) > DIFFUSERS, reason=f"diffusers before {least}: {reason}")


OFFLOADS_ALL = before_diffusers("0.33", "its device is that of any component, of which some are stand-ins")
