"""Measuring: speed (`run_benchmark`), fidelity against cost (`run_ablation`), and the result files of both."""
