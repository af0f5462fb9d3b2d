"""Video: AnimateDiff, PIA, Stable Video Diffusion, I2VGen-XL, text to video."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
