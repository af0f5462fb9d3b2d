"""Tuning: finds the schedule that suits a model, a scheduler and a number of steps best."""

from DeepCache.tune.search import Goal
from DeepCache.tune.settings import TuningSettings
from DeepCache.tune.tuning import tune

__all__ = ["Goal", "TuningSettings", "tune"]
