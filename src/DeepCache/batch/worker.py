"""Generates the images of rows with a pipeline."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.record import BatchRecord, decode_record, encode_image, image_path, with_file
from DeepCache.batch.row import BatchRow
from DeepCache.generation.differences import settings_differences
from DeepCache.generation.finite import NotFiniteError, finite_images
from DeepCache.generation.pipeline_call import pipeline_call
from DeepCache.generation.prepare import complete_pipeline, load_base_pipeline
from DeepCache.generation.settings import GenerationSettings, check_against_pipeline, check_plan
from DeepCache.models.adapters import loaded_adapters
from DeepCache.models.identity import weights_hash

if TYPE_CHECKING:
    from PIL.Image import Image

# One row that fails is a problem of the row, many consecutive ones are a problem of the machine.
_MOST_FAILURES = 8


class PipelineWorker:
    """Generates with a pipeline, which it loads. See `generate_batch` for the arguments, and `Worker`.

    Every pipeline call has `batch` rows, the last one repeated if there are fewer, because some kernels compute batches
    of another size in another order. The number of threads is fixed for the same reason.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        folder: BatchFolder,
        batch: int,
        threads: int,
        device: str,
        offload: str | None,
        vae_slicing: bool,
        expected: dict[str, Any] | None,
    ) -> None:
        import torch

        from DeepCache.engine.attach import apply_deepcache

        torch.set_num_threads(threads)
        self._settings, self._folder, self._batch = settings, folder, batch
        self._pipe = load_base_pipeline(settings, device=device, offload=offload)
        if type(self._pipe.scheduler).__name__ == "DPMSolverSDEScheduler":
            raise ValueError(
                "a DPMSolverSDEScheduler generates noise that does not depend on the seed, so its images cannot be "
                "reproduced. Use another scheduler."
            )
        check_against_pipeline(settings, self._pipe)
        self._guidance = settings.guidance_for(self._pipe)
        check_plan(settings.cache, settings.steps, self._guidance)
        # The hash is that of the model without adapters.
        self.facts = {"model": weights_hash(self._pipe), "guidance": self._guidance, **_loaded(self._pipe)}
        complete_pipeline(self._pipe, settings, device=device, offload=offload, vae_slicing=vae_slicing)
        self.facts |= loaded_adapters(self._pipe, settings.loras, settings.embeddings)
        self._engine = apply_deepcache(self._pipe, settings.cache)
        if expected is not None and (changed := settings_differences(expected, self.facts)):
            raise ValueError(
                f"{settings.model!r} on {socket.gethostname()} differs from the model that the folder {str(folder)!r} "
                f"was started with: {changed}"
            )
        self._shared = json.dumps(shared_settings(settings) | self.facts, ensure_ascii=False)
        self._versions = {name: version(name) for name in ("DeepCache", "diffusers", "torch")}
        self._failures = 0

    def generate(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        """See `Worker`."""
        records = {row.id: self._finished(row) for row in rows}
        missing = [row for row in rows if records[row.id] is None]
        records |= {record.id: record for record in (self._generated(missing) if missing else [])}
        return [record for record in records.values() if record is not None]

    def _finished(self, row: BatchRow) -> BatchRecord | None:
        """The record of a row that the pipeline cannot generate, or whose image exists because a run was killed."""
        try:
            check_against_pipeline(row_settings(self._settings, row), self._pipe)
        except ValueError as error:
            return replace(self._record(row), error=str(error))
        data = self._folder.read(image_path(row.id))
        return None if data is None else decode_record(data, row.id)

    def _generated(self, rows: list[BatchRow]) -> list[BatchRecord]:
        try:
            images, seconds = self._call(rows)
        except Exception as error:
            if len(rows) > 1:
                return [record for row in rows for record in self._generated([row])]
            return [replace(self._record(rows[0]), error=self._reason(error))]
        self._failures = 0
        host = socket.gethostname()
        return [
            replace(self._write(row, image), seconds=seconds, batch=self._batch, host=host)
            for row, image in zip(rows, images, strict=True)
        ]

    def _reason(self, error: Exception) -> str:
        """The error of a row in one line. Too many consecutive ones raise a `RuntimeError`."""
        import torch

        # Caused by the size of the row, and rows of the same size follow each other.
        if isinstance(error, torch.OutOfMemoryError):
            return (
                "the device does not have enough memory for this image. Use a smaller size or batch, dtype float16, "
                "--offload or --vae-tiling."
            )
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        self._failures += 1
        if self._failures >= _MOST_FAILURES:
            raise RuntimeError(
                f"{self._failures} consecutive rows failed on {socket.gethostname()}, the last one with {reason}"
            ) from error
        return str(error) if isinstance(error, NotFiniteError) else reason

    def _call(self, rows: list[BatchRow]) -> tuple[list[Image], float]:
        """The images of rows, and the seconds per image."""
        from DeepCache.models.device import execution_device, wait_for_device

        missing = self._batch - len(rows)
        jobs = [row_settings(self._settings, row) for row in [*rows, *[rows[-1]] * missing]]
        call = pipeline_call(
            self._pipe,
            [job.prompts[0] for job in jobs],
            [job.seed for job in jobs],
            steps=jobs[0].steps,
            guidance=self._guidance,
            negative_prompt=[job.negative_prompt for job in jobs],
            size=jobs[0].size,
        )
        start = time.perf_counter()
        with finite_images(self._pipe):
            images: list[Image] = self._pipe(**call).images[: len(rows)]
        wait_for_device(execution_device(self._pipe))
        return images, (time.perf_counter() - start) / len(rows)

    def _write(self, row: BatchRow, image: Image) -> BatchRecord:
        pattern = self._engine.pattern
        full, skipped = pattern.count("F"), pattern.count("-")
        record = replace(
            self._record(row),
            width=image.width,
            height=image.height,
            full_steps=full,
            shallow_steps=len(pattern) - full - skipped,
            skipped_steps=skipped,
        )
        data = encode_image(image, record, self._versions)
        self._folder.write(image_path(row.id), data)
        return with_file(record, data)

    def _record(self, row: BatchRow) -> BatchRecord:
        settings = self._settings
        return BatchRecord(
            id=row.id,
            row_id=row.row_id,
            prompt=row.prompt,
            negative_prompt=settings.negative_prompt if row.negative_prompt is None else row.negative_prompt,
            seed=row.seed_for(settings.seed),
            settings=self._shared,
            model=self.facts["model"],
        )


def shared_settings(settings: GenerationSettings) -> dict[str, Any]:
    """The settings that images depend on besides the model, as JSON values. The output folder is bound to them."""
    return {
        "negative_prompt": settings.negative_prompt,
        "steps": settings.steps,
        "size": None if settings.size is None else "x".join(map(str, settings.size)),
        "seed": settings.seed,
        "deepcache": settings.cache.to_dict(),
        # Older folders do not have the following.
        **({} if settings.runtime == "torch" else {"runtime": settings.runtime}),
        **({"vae_tiling": True} if settings.vae_tiling else {}),
    }


def row_settings(settings: GenerationSettings, row: BatchRow) -> GenerationSettings:
    """The settings with the prompt and the other values of a row."""
    return replace(
        settings,
        prompts=(row.prompt,),
        negative_prompt=settings.negative_prompt if row.negative_prompt is None else row.negative_prompt,
        seed=row.seed_for(settings.seed),
        size=row.size or settings.size,
    )


def _loaded(pipe: Any) -> dict[str, Any]:
    """The classes, the scheduler configuration and the dtype, which images depend on."""
    from DeepCache.engine.fingerprint import scheduler_settings

    scheduler, dtype = scheduler_settings(pipe.scheduler), str(pipe.dtype).removeprefix("torch.")
    return {"pipeline": type(pipe).__name__, "scheduler": scheduler, "dtype": dtype}
