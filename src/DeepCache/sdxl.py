"""Replaces `DeepCache.sdxl` of the reference package, a copy of the Stable Diffusion XL pipeline of diffusers 0.24."""

raise ImportError(
    "DeepCache.sdxl does not exist in this package: it was a copy of an older diffusers. Use diffusers' own pipeline: "
    "`from diffusers import StableDiffusionXLPipeline`, then `from DeepCache import DeepCacheSDHelper` and "
    "`DeepCacheSDHelper(pipe).enable()`"
)
