"""Where the reference package has a copy of the Stable Video Diffusion pipeline and its U-Net, of diffusers 0.24."""

from __future__ import annotations

raise ImportError(
    "DeepCache.svd of the reference package copies an older diffusers, and is not here. Take diffusers' pipeline: "
    "`from diffusers import StableVideoDiffusionPipeline`, then `from DeepCache import DeepCacheSDHelper` and "
    "`DeepCacheSDHelper(pipe).enable()`"
)
