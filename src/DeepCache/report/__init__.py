"""Reports: one page of HTML from the results of `deepcache benchmark` and `deepcache ablate`."""

from DeepCache.report.page import write_report
from DeepCache.report.wandb_run import WandbRun, log_to_wandb

__all__ = ["WandbRun", "log_to_wandb", "write_report"]
