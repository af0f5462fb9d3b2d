"""Sound: AudioLDM, AudioLDM 2, MusicLDM, Audio Diffusion, Dance Diffusion."""

from __future__ import annotations

from tests.compatibility.case import PipelineCase, RefusedCase

__all__ = ["CASES", "REFUSED"]

CASES: list[PipelineCase] = []

REFUSED: list[RefusedCase] = []
