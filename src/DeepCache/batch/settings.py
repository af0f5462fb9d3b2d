"""What all rows of a batch have in common, as one validated, frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from DeepCache.batch.row import BatchRow
from DeepCache.config import DeepCacheConfig
from DeepCache.generation.settings import GenerationSettings, check_plan
from DeepCache.models.adapters import Lora
from DeepCache.runtime import check_runtime

__all__ = ["BatchSettings"]


@dataclass(frozen=True)
class BatchSettings:
    """What all rows of a batch have in common. The pictures depend on nothing but this, the model's weights and their
    rows, so a folder of pictures keeps to it.

    Args:
        model (`str`, defaults to `"shapes"`):
            What `load_pipeline` is given.
        negative_prompt (`str`, defaults to `""`):
            What pictures should not show whose rows have no negative prompt of their own.
        steps (`int`, defaults to `50`):
            Denoising steps.
        guidance (`float`, *optional*):
            The guidance scale; by default the one recommended for the model.
        size (`tuple` of `int`, *optional*):
            Width and height in pixels of pictures whose rows have no size of their own; the pipeline's by default.
        seed (`int`, defaults to `0`):
            What the seeds of rows without one of their own are made of, together with the rows' ids.
        scheduler (`str`, *optional*):
            A scheduler by the name that `set_scheduler` takes; the model's own by default.
        dtype (`str`, defaults to `"auto"`):
            Type of the weights, as `load_pipeline` takes it.
        cache (`DeepCacheConfig`):
            The settings of DeepCache.
        vae (`str`, *optional*):
            What `load_pipeline` is given for another VAE than the model's own.
        config (`str`, *optional*):
            What `load_pipeline` is given for the configuration of a model in one file.
        runtime (`str`, defaults to `"torch"`):
            What the U-Net runs in, see `DeepCache.export.use_runtime`.
        loras (`tuple` of `Lora`):
            LoRAs to load, and how strongly each counts.
        embeddings (`tuple` of `str`):
            Textual inversions to load.
        vae_tiling (`bool`, defaults to `False`):
            Whether the VAE decodes in tiles, which changes large pictures slightly; see `DeepCache.models.divide_vae`.

    Raises:
        ValueError: a value is out of its range, or the plan is for another number of steps or guidance scale.

    Example:
        >>> BatchSettings(steps=6).of_row(BatchRow("0123456789ab", prompt="a red circle")).prompts
        ('a red circle',)
    """

    model: str = "shapes"
    negative_prompt: str = ""
    steps: int = 50
    guidance: float | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    scheduler: str | None = None
    dtype: str = "auto"
    cache: DeepCacheConfig = field(default_factory=DeepCacheConfig)
    vae: str | None = None
    config: str | None = None
    runtime: str = "torch"
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[str, ...] = ()
    vae_tiling: bool = False

    def __post_init__(self) -> None:
        self.of_row(BatchRow("", prompt="any"))
        check_plan(self.cache, self.steps, self.guidance)
        check_runtime(self.runtime, self.cache)
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def of_row(self, row: BatchRow) -> GenerationSettings:
        """What to draw for a row.

        Raises:
            ValueError: the row asks for what cannot be drawn.
        """
        return GenerationSettings(
            prompts=(row.prompt,),
            model=self.model,
            negative_prompt=self.negative_prompt if row.negative_prompt is None else row.negative_prompt,
            steps=self.steps,
            guidance=self.guidance,
            size=self.size if row.size is None else row.size,
            seed=row.seed_for(self.seed),
            cache=self.cache,
            vae=self.vae,
            loras=self.loras,
            embeddings=self.embeddings,
            config=self.config,
        )

    def to_dict(self) -> dict[str, Any]:
        """What of it a picture depends on beside its row, as JSON can hold it, but for what is `asked`."""
        return {
            "negative_prompt": self.negative_prompt,
            "steps": self.steps,
            "size": None if self.size is None else "x".join(map(str, self.size)),
            "seed": self.seed,
            "deepcache": self.cache.to_dict(),
            # Folders from before there was a choice have none.
            **({} if self.runtime == "torch" else {"runtime": self.runtime}),
            **({"vae_tiling": True} if self.vae_tiling else {}),
        }

    def asked(self) -> dict[str, Any]:
        """What is asked for of the model, whose worth is seen once it is loaded: the same may be called otherwise
        elsewhere."""
        return {
            "model": self.model,
            "vae": self.vae,
            **({} if self.config is None else {"config": self.config}),
            "guidance": self.guidance,
            "scheduler": self.scheduler,
            "dtype": self.dtype,
            **({"loras": [list(lora) for lora in self.loras]} if self.loras else {}),
            **({"embeddings": list(self.embeddings)} if self.embeddings else {}),
        }
