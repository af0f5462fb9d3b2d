"""Pipelines with perturbed-attention guidance (PAG) on Stable Diffusion."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
