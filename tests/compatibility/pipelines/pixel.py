"""U-Nets on pixels without a text: DDPM, DDIM, PNDM, consistency models, score SDE, Karras VE, RePaint."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
