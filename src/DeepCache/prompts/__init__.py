"""Prompt sets: read from files in the formats that benchmarks and users have, sampled, and those in the package."""

from DeepCache.prompts.bundled import BUNDLED, bundled_prompt_set, bundled_prompts
from DeepCache.prompts.prompt import Prompt
from DeepCache.prompts.reading import read_prompt_set, read_prompts, read_rows
from DeepCache.prompts.rows import Row
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
