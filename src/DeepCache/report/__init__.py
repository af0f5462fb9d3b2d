"""A page of HTML from the results of `deepcache benchmark` and `deepcache ablate`: tables, charts and images in one
file that needs nothing else."""

from DeepCache.report.wandb_run import WandbRun, log_to_wandb
from DeepCache.report.writing import write_report

__all__ = ["WandbRun", "log_to_wandb", "write_report"]
