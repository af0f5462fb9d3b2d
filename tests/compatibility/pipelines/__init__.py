"""Every diffusers pipeline whose denoiser has skip connections, one module a family."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from itertools import chain

from tests.compatibility.case import BrokenCase, PipelineCase, RefusedCase

__all__ = ["BROKEN", "CASES", "REFUSED"]

_FAMILIES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]

CASES: tuple[PipelineCase, ...] = tuple(chain.from_iterable(family.CASES for family in _FAMILIES))
REFUSED: tuple[RefusedCase, ...] = tuple(chain.from_iterable(family.REFUSED for family in _FAMILIES))
BROKEN: tuple[BrokenCase, ...] = tuple(chain.from_iterable(getattr(family, "BROKEN", ()) for family in _FAMILIES))
