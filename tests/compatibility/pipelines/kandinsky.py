"""Kandinsky 2.1, 2.2 and 3."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
