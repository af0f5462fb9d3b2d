"""Prompt sets: reading prompt files, sampling, and the sets that come with the package."""

from DeepCache.prompts.bundled import BUNDLED, bundled_prompt_set, bundled_prompts
from DeepCache.prompts.reading import read_prompt_set, read_prompts, read_rows
from DeepCache.prompts.rows import Prompt, Row
from DeepCache.prompts.sampling import sample_prompts

__all__ = [
    "BUNDLED",
    "Prompt",
    "Row",
    "bundled_prompt_set",
    "bundled_prompts",
    "read_prompt_set",
    "read_prompts",
    "read_rows",
    "sample_prompts",
]
