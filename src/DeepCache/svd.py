"""Replaces `DeepCache.svd` of the reference package, a copy of the Stable Video Diffusion pipeline."""

raise ImportError(
    "DeepCache.svd does not exist in this package: it was a copy of an older diffusers. Use diffusers' own pipeline: "
    "`from diffusers import StableVideoDiffusionPipeline`, then `from DeepCache import DeepCacheSDHelper` and "
    "`DeepCacheSDHelper(pipe).enable()`"
)
