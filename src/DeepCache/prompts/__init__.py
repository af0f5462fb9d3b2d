"""Prompt sets: read from files in the formats that benchmarks and users have, sampled, and those in the package."""

from DeepCache.prompts.bundled import BUNDLED, bundled_prompt_set, bundled_prompts
from DeepCache.prompts.prompt import Prompt
from DeepCache.prompts.reading import read_prompt_set, read_prompts
from DeepCache.prompts.sampling import sample_prompts

__all__ = [
    "BUNDLED",
    "Prompt",
    "bundled_prompt_set",
    "bundled_prompts",
    "read_prompt_set",
    "read_prompts",
    "sample_prompts",
]
