"""Draws batches of rows: one model, loaded once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from DeepCache.batch.differences import differences
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.picture import filed, picture_bytes, picture_path, picture_record
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow
from DeepCache.batch.settings import BatchSettings
from DeepCache.generation.finite import NotFiniteError, finite_images
from DeepCache.generation.settings import check_against_pipeline, check_plan
from DeepCache.models.adapters import check_adapters, load_embeddings, load_loras, loaded_adapters
from DeepCache.models.identity import weights_hash
from DeepCache.models.loading import load_pipeline, recommended_guidance
from DeepCache.models.memory import divide_vae, load_to_offload, offload_pipeline
from DeepCache.runtime import device_for

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Worker", "WorkerMaker", "WorkerSettings", "loaded_model"]

# A row that fails says something of the row, many in succession of the machine.
_FAILURES_IN_SUCCESSION = 8


class Worker(Protocol):
    """Draws rows. Engines know no more of it than this."""

    facts: dict[str, Any]
    """What was loaded, as far as the pictures depend on it, as JSON can hold it."""

    def draw(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        """Draws a batch of rows of the same size and writes their pictures. What is wrong with a row is told in its
        record.

        Raises:
            OSError: a picture cannot be written.
            RuntimeError: one row after another failed.
        """


class WorkerMaker(Protocol):
    """Makes a worker, wherever it is called. It can be pickled."""

    def __call__(self, expected: dict[str, Any] | None) -> Worker:
        """A worker.

        Args:
            expected: the `facts` that a worker has to have; None for the first one, of which they are taken.

        Raises:
            ValueError: it has others.
        """


@dataclass(frozen=True)
class WorkerSettings:
    """Makes workers that draw with a pipeline: the `WorkerMaker` of all real batches.

    Args:
        settings: what all rows have in common.
        folder: where to write the pictures.
        batch: rows in a pipeline call. Where there are fewer, the last one is repeated: some kernels compute batches of
            another size in another order.
        threads: of PyTorch on the CPU, for the same reason.
        device: as `load_pipeline` takes it.
        offload: as `load_pipeline` takes it.
        vae_slicing: whether the VAE decodes the pictures of a batch one after the other, see
            `DeepCache.models.divide_vae`.
    """

    settings: BatchSettings
    folder: BatchFolder
    batch: int = 1
    threads: int = 1
    device: str = "auto"
    offload: str | None = None
    vae_slicing: bool = False

    def __call__(self, expected: dict[str, Any] | None) -> PipelineWorker:
        return PipelineWorker(self, expected)


class PipelineWorker:
    """Draws with a pipeline. See `WorkerSettings` and `Worker`.

    Args:
        made_for: what and how to draw.
        expected: the `facts` that it has to have.

    Raises:
        ValueError: it has others, or the pipeline does not draw pictures from prompts, or the scheduler draws noise
            that no seed decides on; further as `load_pipeline` and `set_scheduler`.
    """

    def __init__(self, made_for: WorkerSettings, expected: dict[str, Any] | None) -> None:
        import torch

        from DeepCache.engine.attach import apply_deepcache
        from DeepCache.models.schedulers import set_scheduler

        settings = made_for.settings
        torch.set_num_threads(made_for.threads)
        self._made_for = made_for
        self._pipe = _loaded(made_for)
        self._pipe.set_progress_bar_config(disable=True)
        if settings.scheduler is not None:
            set_scheduler(self._pipe, settings.scheduler)
        # Of the model without adapters, and before its weights are moved.
        model, loaded = loaded_model(self._pipe)
        load_loras(self._pipe, settings.loras)
        load_embeddings(self._pipe, settings.embeddings)
        loaded |= loaded_adapters(self._pipe, settings.loras, settings.embeddings)
        divide_vae(self._pipe, tiling=settings.vae_tiling, slicing=made_for.vae_slicing)
        _check_repeatable(self._pipe.scheduler)
        check_against_pipeline(settings.of_row(BatchRow("", prompt="any")), self._pipe)
        self._guidance = settings.guidance
        if self._guidance is None:
            self._guidance = recommended_guidance(settings.model, self._pipe)
        check_plan(settings.cache, settings.steps, self._guidance)
        if settings.runtime != "torch":
            from DeepCache.export import use_runtime

            use_runtime(self._pipe, settings.runtime, settings.cache)
        if made_for.offload is not None:
            offload_pipeline(self._pipe, made_for.offload, made_for.device)
        self._engine = apply_deepcache(self._pipe, settings.cache)
        self.facts = {"model": model, "guidance": self._guidance, **loaded}
        if expected is not None and (changed := differences(expected, self.facts)):
            raise ValueError(
                f"{settings.model!r} on {socket.gethostname()} is not what the folder {str(made_for.folder)!r} was "
                f"begun with: {changed}"
            )
        self._model = model
        self._common = json.dumps(settings.to_dict() | self.facts, ensure_ascii=False)
        self._versions = {name: version(name) for name in ("DeepCache", "diffusers", "torch")}
        self._failures = 0

    def draw(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        """See `Worker`."""
        records = {row.id: self._refused(row) or self._found(row) for row in rows}
        left = [row for row in rows if records[row.id] is None]
        records |= {record.id: record for record in (self._drawn(left) if left else [])}
        return [record for record in records.values() if record is not None]

    def _refused(self, row: BatchRow) -> BatchRecord | None:
        try:
            check_against_pipeline(self._made_for.settings.of_row(row), self._pipe)
        except ValueError as error:
            return replace(self._record(row), error=str(error))
        return None

    def _found(self, row: BatchRow) -> BatchRecord | None:
        """The record of a picture that is there already: the run that drew it was cut off before it could tell."""
        data = self._made_for.folder.read(picture_path(row.id))
        return None if data is None else picture_record(data, row.id)

    def _drawn(self, rows: list[BatchRow]) -> list[BatchRecord]:
        import torch

        try:
            images, seconds = self._call(rows)
        # Whatever a pipeline raises, it is this row's, or this batch's, until many have failed.
        except Exception as error:
            if len(rows) > 1:
                return [record for row in rows for record in self._drawn([row])]
            reason = str(error) if isinstance(error, NotFiniteError) else _told(error)
            if isinstance(error, torch.OutOfMemoryError):
                # That of its size: rows of one size come in succession.
                reason = (
                    "the device has not enough memory for this; try a smaller size, batch or dtype float16, --offload "
                    "or --vae-tiling"
                )
            else:
                self._count_failure(error)
            return [replace(self._record(rows[0]), error=reason)]
        self._failures = 0
        return [
            replace(self._write(row, image), seconds=seconds, batch=self._made_for.batch, host=socket.gethostname())
            for row, image in zip(rows, images, strict=True)
        ]

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_IN_SUCCESSION:
            raise RuntimeError(
                f"{self._failures} rows in succession cannot be drawn on {socket.gethostname()}, the last one because "
                f"of {_told(error)}"
            ) from error

    def _call(self, rows: list[BatchRow]) -> tuple[list[Image], float]:
        """The images of rows, and the seconds that each took."""
        import torch

        from DeepCache.models.device import execution_device, wait_for_device

        missing = self._made_for.batch - len(rows)
        jobs = [self._made_for.settings.of_row(row) for row in [*rows, *[rows[-1]] * missing]]
        call: dict[str, Any] = {
            "prompt": [job.prompts[0] for job in jobs],
            "num_inference_steps": jobs[0].steps,
            # One each, and on the CPU whatever the device, so that a seed means the same everywhere.
            "generator": [torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        }
        if jobs[0].negative_prompt:
            call["negative_prompt"] = [job.negative_prompt for job in jobs]
        if self._guidance is not None:
            call["guidance_scale"] = self._guidance
        if jobs[0].size is not None:
            call["width"], call["height"] = jobs[0].size
        start = time.perf_counter()
        with finite_images(self._pipe):
            images: list[Image] = self._pipe(**call).images[: len(rows)]
        wait_for_device(execution_device(self._pipe))
        return images, (time.perf_counter() - start) / len(rows)

    def _write(self, row: BatchRow, image: Image) -> BatchRecord:
        pattern = self._engine.pattern
        record = replace(
            self._record(row),
            width=image.width,
            height=image.height,
            full_steps=pattern.count("F"),
            shallow_steps=len(pattern) - pattern.count("F") - pattern.count("-"),
            skipped_steps=pattern.count("-"),
        )
        data = picture_bytes(image, record, self._versions)
        self._made_for.folder.write(picture_path(row.id), data)
        return filed(record, data)

    def _record(self, row: BatchRow) -> BatchRecord:
        settings = self._made_for.settings
        return BatchRecord(
            id=row.id,
            row_id=row.row_id,
            prompt=row.prompt,
            negative_prompt=settings.negative_prompt if row.negative_prompt is None else row.negative_prompt,
            seed=row.seed_for(settings.seed),
            settings=self._common,
            model=self._model,
        )


def _loaded(made_for: WorkerSettings) -> Any:
    """The pipeline, on the device; or on the CPU, where it is to be offloaded."""
    settings = made_for.settings
    check_adapters(settings.loras, settings.embeddings)
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "device": device_for(settings.runtime, made_for.device),
        "vae": settings.vae,
        "config": settings.config,
    }
    if made_for.offload is not None:
        return load_to_offload(settings.model, made_for.offload, **options)
    return load_pipeline(settings.model, **options)


def loaded_model(pipe: Any) -> tuple[str, dict[str, Any]]:
    """What tells a pipeline's model from others, and the rest of it that pictures depend on.

    Returns:
        A hash of the structure and of some weights of each of its networks; and the classes of the pipeline and the
        scheduler, the scheduler's configuration, and the type of the weights.
    """
    from DeepCache.engine.fingerprint import scheduler_settings

    return weights_hash(pipe), {
        "pipeline": type(pipe).__name__,
        "scheduler": scheduler_settings(pipe.scheduler),
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }


def _check_repeatable(scheduler: Any) -> None:
    if type(scheduler).__name__ == "DPMSolverSDEScheduler":
        raise ValueError(
            "a DPMSolverSDEScheduler draws noise that no seed decides on, so its pictures cannot be drawn again; "
            "take another scheduler"
        )


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
