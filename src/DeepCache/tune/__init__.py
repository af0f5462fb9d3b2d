"""Tuning: finds the schedule that suits a model, a scheduler and a number of steps best."""

from DeepCache.tune.search import Goal
from DeepCache.tune.tuning import TuningSettings, tune

__all__ = ["Goal", "TuningSettings", "tune"]
