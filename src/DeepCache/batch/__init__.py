"""Generates an image for every row of a prompt file exactly once, in this process or on a cluster."""

from DeepCache.batch.engine import Engine, LocalEngine
from DeepCache.batch.job import BatchProgress, BatchSummary, generate_batch
from DeepCache.batch.ray_engine import RayEngine
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow, batch_row
from DeepCache.generation.settings import GenerationSettings as BatchSettings

__all__ = [
    "BatchProgress",
    "BatchRecord",
    "BatchRow",
    "BatchSettings",
    "BatchSummary",
    "Engine",
    "LocalEngine",
    "RayEngine",
    "batch_row",
    "generate_batch",
]
