"""Tuning: finds the best schedule for a model, a scheduler and a number of steps."""

from DeepCache.tune.settings import Goal, TuningSettings
from DeepCache.tune.tuning import tune

__all__ = ["Goal", "TuningSettings", "tune"]
