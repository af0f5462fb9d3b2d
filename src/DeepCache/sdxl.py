"""Where the reference package has a copy of the Stable Diffusion XL pipeline and its U-Net, of diffusers 0.24."""

from __future__ import annotations

raise ImportError(
    "DeepCache.sdxl of the reference package copies an older diffusers, and is not here. Take diffusers' pipeline: "
    "`from diffusers import StableDiffusionXLPipeline`, then `from DeepCache import DeepCacheSDHelper` and "
    "`DeepCacheSDHelper(pipe).enable()`"
)
