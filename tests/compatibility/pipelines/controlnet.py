"""Stable Diffusion with ControlNet, ControlNet-XS, T2I-Adapter, GLIGEN or BLIP-Diffusion."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
