"""Where the reference package has a copy of the Stable Diffusion pipeline and its U-Net, of diffusers 0.24."""

from __future__ import annotations

raise ImportError(
    "DeepCache.sd of the reference package copies an older diffusers, and is not here. Take diffusers' pipeline: "
    "`from diffusers import StableDiffusionPipeline`, then `from DeepCache import DeepCacheSDHelper` and "
    "`DeepCacheSDHelper(pipe).enable()`"
)
