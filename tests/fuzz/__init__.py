"""Random sequences of calls of a denoiser with DeepCache, each output compared with an oracle."""
