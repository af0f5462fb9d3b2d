"""Pipelines built on Stable Diffusion that edit, guide or combine."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
