"""Generates images with DeepCache, compares them with the originals, and saves them with their settings."""

from DeepCache.generation.comparison import compare_side_by_side
from DeepCache.generation.finite import NotFiniteError
from DeepCache.generation.generate import GeneratedFile, GeneratedImage, StepProgress, generate
from DeepCache.generation.image_inputs import ImageInputs
from DeepCache.generation.metadata import read_settings
from DeepCache.generation.output import FORMATS, OutputFolder
from DeepCache.generation.prepare import prepare_pipeline
from DeepCache.generation.prompt_row import PromptRow, read_prompt_rows
from DeepCache.generation.recorded import RecordedImage, read_recorded
from DeepCache.generation.settings import (
    GenerationSettings,
    check_against_pipeline,
    parse_size,
)

__all__ = [
    "FORMATS",
    "GeneratedFile",
    "GeneratedImage",
    "GenerationSettings",
    "ImageInputs",
    "NotFiniteError",
    "OutputFolder",
    "PromptRow",
    "RecordedImage",
    "StepProgress",
    "check_against_pipeline",
    "compare_side_by_side",
    "generate",
    "parse_size",
    "prepare_pipeline",
    "read_prompt_rows",
    "read_recorded",
    "read_settings",
]
