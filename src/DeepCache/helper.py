"""`DeepCacheSDHelper`: the interface of the reference package and the diffusers documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from DeepCache.config import CompileMode, DeepCacheConfig
from DeepCache.engine.attach import DeepCacheEngine
from DeepCache.engine.checks import check_settings
from DeepCache.engine.layouts import branch_of
from DeepCache.engine.layouts.blocks import BlockBranch, layer_lists
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.unets import unets_of
from DeepCache.plan import Plan
from DeepCache.schedule import Between, ForecastRule, Schedule, SkipMode
from DeepCache.skip_rule import BlockType, Layer, Question, is_deep, with_rule

__all__ = ["DeepCacheSDHelper"]

# Programs override these in the reference package. Here an override would have no effect, so it is refused.
_NOT_OVERRIDABLE = (
    *("is_enter_position", "wrap_unet_forward", "wrap_block_forward", "function_dict"),
    *("cached_output", "cur_timestep", "start_timestep"),
)
# Programs assign these values to reset the helper of the reference package.
_RESET_VALUES = {"cached_output": {}, "cur_timestep": 0, "start_timestep": None}


class DeepCacheSDHelper:
    """Applies DeepCache to a diffusers pipeline.

    Args:
        pipe: a pipeline with a denoising U-Net; it can also be passed to `enable`.

    Without `set_params` the settings are `DeepCacheConfig(forecast="none")`. With these, and with the defaults of
    `set_params`, the output is bit-identical to the reference package's. `enable` replaces DeepCache on a U-Net that
    has it already, so a notebook cell can run twice. After `helper.pipe = other`, the next `enable` applies to that
    pipeline.

    The methods of the reference package's helper exist under their names. A subclass may override `is_skip_step`,
    which is called for every layer and step at the start of a run, and `wrap_modules`, `unwrap_modules` and
    `reset_states`, which `enable` and `disable` call. Overriding anything else of the reference package raises
    `TypeError`.

    Example:
        >>> from DeepCache import DeepCacheSDHelper
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes")
        >>> helper = DeepCacheSDHelper(pipe=pipe)
        >>> helper.set_params(cache_interval=3, cache_branch_id=0)
        >>> helper.enable()
        >>> image = pipe("a red circle", num_inference_steps=6).images[0]
        >>> helper.stats.pattern
        'F..F..'
        >>> helper.disable()

        As a context manager:

        >>> with DeepCacheSDHelper(pipe) as helper:
        ...     image = pipe("a red circle", num_inference_steps=6).images[0]
    """

    _asked: Question | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_overrides(cls.__name__, vars(cls))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RESET_VALUES and value == _RESET_VALUES[name]:
            self.reset_states()
            return
        _refuse_overrides(type(self).__name__, [name])
        super().__setattr__(name, value)
        if name == "is_skip_step" and self._engine is not None:
            self._engine.configure(self._with_rule(self.pipe, self._config))

    def __init__(self, pipe: Any = None) -> None:
        self.pipe = pipe
        self._config = DeepCacheConfig(forecast="none")
        self._engine: DeepCacheEngine | None = None

    def __repr__(self) -> str:
        on = "on" if self._engine is not None and self._engine.attached else "off"
        return f"<DeepCacheSDHelper {on} for {type(self.pipe).__name__}: {self._config}>"

    def set_params(
        self,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        skip_mode: SkipMode = "uniform",
        forecast: ForecastRule = "none",
        guidance_reuse: bool = False,
        schedule: Schedule | None = None,
        plan: Plan | str | Path | None = None,
        force_plan: bool = False,
        compile: CompileMode = "none",  # noqa: A002
        between: Between = "shallow",
        threshold: float = 0.1,
        *,
        preset: str | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        """Changes the settings, before `enable` or while enabled. `DeepCacheConfig` documents them.

        Args:
            plan: a plan, or the file that `deepcache tune` wrote it to.
            preset: `"faithful"`, `"balanced"` or `"fast"` instead of all other settings, see `DeepCacheConfig.preset`.
            guidance_scale: the guidance scale of the pipeline call, for the preset. None, for unknown, counts as a
                high one.

        Raises:
            TypeError: a value is of the wrong type.
            ValueError: a value is out of range, the plan is for another model or scheduler, or a preset is combined
                with other settings. The settings stay unchanged.
            OSError: the plan cannot be read.

        Example:
            >>> helper = DeepCacheSDHelper()
            >>> helper.set_params(preset="balanced", guidance_scale=7.5)
            >>> helper.params["cache_interval"]
            3
        """
        if isinstance(plan, (str, Path)):
            plan = Plan.from_file(plan)
        config = DeepCacheConfig(
            cache_interval,
            cache_branch_id,
            skip_mode,
            forecast,
            guidance_reuse,
            schedule,
            plan,
            force_plan,
            compile,
            between,
            threshold,
        )
        if preset is not None or guidance_scale is not None:
            config = _preset(preset, guidance_scale, self.pipe, config)
        if self.pipe is not None:
            for name, unet in unets_of(self.pipe).items():
                check_settings(config, unet, self.pipe, name)
        applied = self._with_rule(self.pipe, config)
        if self._engine is not None and self._engine.pipe is self.pipe:
            self._engine.configure(applied)
        self._config = config

    def enable(self, pipe: Any = None) -> None:
        """Applies DeepCache to the pipeline. Idempotent.

        Args:
            pipe: another pipeline, which replaces the current one.

        Raises:
            TypeError: the pipeline has no U-Net, or one that DeepCache cannot cut.
            ValueError: there is no pipeline, or the U-Net has fewer skip branches.
        """
        pipe = self.pipe if pipe is None else pipe
        if pipe is None:
            raise ValueError("no pipeline to enable DeepCache on: pass one to DeepCacheSDHelper(pipe=...) or enable()")
        patched = [name for name in _NOT_OVERRIDABLE if vars(DeepCacheSDHelper)[name] is not _OWN[name]]
        _refuse_overrides("DeepCacheSDHelper", patched)
        config = self._with_rule(pipe, self._config)
        if self._engine is None or pipe is not self._engine.pipe:
            engine = DeepCacheEngine(pipe, config)
            self.disable()
            self.pipe, self._engine = pipe, engine
        elif self._engine.config != config:
            # The settings were changed while the helper had no pipeline, or another one.
            self._engine.configure(config)
        if not self._engine.attached:
            self.reset_states()
        self.wrap_modules()

    def disable(self) -> None:
        """Removes DeepCache and restores the pipeline. Idempotent."""
        if self._engine is not None:
            self.unwrap_modules()
            self.reset_states()

    def __enter__(self) -> DeepCacheSDHelper:
        self.enable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    @property
    def stats(self) -> TrajectoryStats:
        """Statistics of the last denoising run, of the first U-Net of the pipeline."""
        return self._engine.stats if self._engine is not None else TrajectoryStats("", 0, 0, 0, None)

    @property
    def params(self) -> dict[str, Any]:
        """The settings under the names of the reference package, with the branch as block and layer."""
        if self._asked is not None:
            return self._asked.params
        return _params(self._config, self.pipe)

    def is_skip_step(self, block_i: int, layer_i: int, blocktype: BlockType = "down") -> bool:
        """Whether a block or layer is skipped at `cur_timestep`. A subclass may override it to choose the full steps.

        Args:
            block_i: the index of the block, from the shallowest.
            layer_i: the index of the layer in the block, from the shallowest; 0 for the block itself.
            blocktype: `"down"`, `"mid"` or `"up"`.
        """
        params = self.params
        if (self.cur_timestep - (self.start_timestep or 0)) % params["cache_interval"] == 0:
            return False
        return is_deep(Layer(block_i, layer_i, blocktype, ""), (params["cache_block_id"], params["cache_layer_id"]))

    def is_enter_position(self, block_i: int, layer_i: int) -> bool:
        """Whether the U-Net is cut at a layer, with the indices of `is_skip_step`."""
        params = self.params
        return (block_i, layer_i) == (params["cache_block_id"], params["cache_layer_id"])

    @property
    def cur_timestep(self) -> int:
        """The index of the current or last step in the scheduler's timesteps; 0 before the first run."""
        if self._asked is not None:
            return self._asked.timestep
        return self._engine.places[1] if self._engine is not None else 0

    @property
    def start_timestep(self) -> int | None:
        """The index of the first step of the current run; None outside of a run."""
        if self._asked is not None:
            return self._asked.start
        return self._engine.places[0] if self._engine is not None else None

    def wrap_modules(self) -> None:
        """Applies DeepCache to the pipeline; called by `enable`."""
        if self._engine is None:
            self.enable()
        else:
            self._engine.attach()

    def unwrap_modules(self) -> None:
        """Removes DeepCache from the pipeline; called by `disable`."""
        if self._engine is not None:
            self._engine.detach()

    def reset_states(self) -> None:
        """Discards the stored features: the next step starts a run. Called by `enable` and `disable`; not needed
        between images."""
        if self._engine is not None:
            self._engine.end_run()

    def wrap_unet_forward(self) -> NoReturn:
        """Always raises `NotImplementedError`: DeepCache does not replace `forward`."""
        raise NotImplementedError("DeepCache does not replace forward. Use enable() and disable()")

    def wrap_block_forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Always raises; see `wrap_unet_forward`."""
        self.wrap_unet_forward()

    @property
    def function_dict(self) -> dict[Any, Callable[..., Any]]:
        """The `forward` methods of the U-Net, its blocks and its layers, under the keys of the reference package; empty
        while DeepCache is disabled. For toolkits that iterate over it; assigning to its entries has no effect."""
        if self._engine is None or not self._engine.attached:
            return {}
        return _forwards(_first_unet(self.pipe))

    @property
    def cached_output(self) -> NoReturn:
        """Always raises `AttributeError`: DeepCache stores deep features, not the outputs of layers."""
        raise AttributeError(
            "DeepCache has no cached_output of layers: it stores deep features. reset_states() discards them, and "
            "helper.stats.bytes_kept is their size"
        )

    def _with_rule(self, pipe: Any, config: DeepCacheConfig) -> DeepCacheConfig:
        if pipe is None or getattr(self.is_skip_step, "__func__", None) is _OWN["is_skip_step"]:
            return config
        return with_rule(config, pipe, type(self).__name__, self._answer, _params(config, pipe))

    def _answer(self, question: Question, *layer: Any) -> bool:
        self._asked = question
        try:
            return self.is_skip_step(*layer)
        finally:
            self._asked = None


_OWN = {name: vars(DeepCacheSDHelper)[name] for name in ("is_skip_step", *_NOT_OVERRIDABLE)}
_DEFAULTS_OF_SET_PARAMS = DeepCacheConfig(1, forecast="none")


def _refuse_overrides(owner: str, defined: Iterable[str]) -> None:
    name = next((name for name in _NOT_OVERRIDABLE if name in defined), None)
    if name is not None:
        raise TypeError(
            f"{owner} overrides {name}, which has no effect in DeepCache. Choose the full steps with is_skip_step(), "
            "set_params(schedule=ExplicitSchedule(...)) or WindowSchedule(...), and hook calls of the U-Net"
        )


def _preset(name: str | None, guidance_scale: Any, pipe: Any, others: DeepCacheConfig) -> DeepCacheConfig:
    if name is None:
        raise ValueError(f"guidance_scale requires a preset, got {guidance_scale} without one. Add preset or remove it")
    if not isinstance(guidance_scale, (Real, type(None))):
        raise TypeError(f"guidance_scale must be a number, got {guidance_scale!r}")
    default = _DEFAULTS_OF_SET_PARAMS
    given = [field.name for field in fields(others) if getattr(others, field.name) != getattr(default, field.name)]
    if given:
        raise ValueError(f"preset={name!r} cannot be combined with {', '.join(given)}. Remove one of them")
    scheduler = type(getattr(pipe, "scheduler", None)).__name__
    return DeepCacheConfig.preset(name, None if guidance_scale is None else float(guidance_scale), scheduler)


def _params(config: DeepCacheConfig, pipe: Any) -> dict[str, Any]:
    number = config.cache_branch_id
    if pipe is None:
        # Without a U-Net, assume the structure of Stable Diffusion.
        block, layer = divmod(number, 3)
    else:
        branch = branch_of(_first_unet(pipe), number)
        # Only the block layout of diffusers has layers within blocks.
        block, layer = (branch.down_block, branch.layers) if isinstance(branch, BlockBranch) else (number, 0)
    return {
        "cache_interval": config.cache_interval,
        "cache_layer_id": layer,
        "cache_block_id": block,
        "skip_mode": config.skip_mode,
    }


def _first_unet(pipe: Any) -> Any:
    return next(iter(unets_of(pipe).values()))


def _forwards(unet: Any) -> dict[Any, Callable[..., Any]]:
    forwards: dict[Any, Callable[..., Any]] = {"unet_forward": unet.forward}
    if getattr(unet, "mid_block", None) is not None:
        forwards["mid", "mid_block", 0, 0] = unet.mid_block.forward
    down, up = (list(getattr(unet, name, ())) for name in ("down_blocks", "up_blocks"))
    for path, blocks in (("down", down), ("up", up[::-1])):
        for index, block in enumerate(blocks):
            forwards[path, "block", index, 0] = block.forward
            for name, layers in layer_lists(block).items():
                numbered = list(layers) if path == "down" else list(layers)[::-1]
                for layer, module in enumerate(numbered):
                    forwards[path, "resnet" if name == "resnets" else name, index, layer] = module.forward
    return forwards
