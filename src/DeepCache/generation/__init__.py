"""Pictures from prompts, with DeepCache and for comparison without, saved with what made them."""

from DeepCache.generation.comparison import compare_side_by_side
from DeepCache.generation.drawing import Drawing, GeneratedImage, StepProgress, generate
from DeepCache.generation.finite import NotFiniteError
from DeepCache.generation.image_inputs import ImageInputs
from DeepCache.generation.metadata import read_settings
from DeepCache.generation.output import FORMATS, OutputFolder
from DeepCache.generation.prompt_row import PromptRow, read_prompt_rows
from DeepCache.generation.recorded import RecordedImage, read_recorded
from DeepCache.generation.settings import (
    GenerationSettings,
    check_against_pipeline,
    parse_size,
)

__all__ = [
    "FORMATS",
    "Drawing",
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
    "read_prompt_rows",
    "read_recorded",
    "read_settings",
]
