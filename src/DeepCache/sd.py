"""Replaces `DeepCache.sd` of the reference package, a copy of the Stable Diffusion pipeline of diffusers 0.24."""

raise ImportError(
    "DeepCache.sd does not exist in this package: it was a copy of an older diffusers. Use diffusers' own pipeline: "
    "`from diffusers import StableDiffusionPipeline`, then `from DeepCache import DeepCacheSDHelper` and "
    "`DeepCacheSDHelper(pipe).enable()`"
)
