"""DeepCache on one pipeline or denoiser."""
