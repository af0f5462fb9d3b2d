"""Random ways of calling a denoiser with DeepCache on it, each output compared with what it must be."""
