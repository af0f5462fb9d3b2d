"""Every row of a prompt file drawn once, in this process or on many machines, whatever interrupts it."""

from DeepCache.batch.job import BatchProgress, BatchSummary, Engine, generate_batch
from DeepCache.batch.local_engine import LocalEngine
from DeepCache.batch.ray_engine import RayEngine
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow, batch_row
from DeepCache.batch.settings import BatchSettings

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
