"""Small models and denoising runs that tests and benchmarks share."""
