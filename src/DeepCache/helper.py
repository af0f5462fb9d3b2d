"""`DeepCacheSDHelper`: the published interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from DeepCache.config import CompileMode, DeepCacheConfig
from DeepCache.engine.attach import DeepCacheEngine
from DeepCache.engine.checks import check_settings
from DeepCache.engine.layouts import branch_of
from DeepCache.engine.layouts.blocks import BlockBranch, layer_lists
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.unets import unets_of
from DeepCache.plan import Plan
from DeepCache.schedule import Between, ForecastRule, Schedule, SkipMode

__all__ = ["DeepCacheSDHelper"]

# Subclasses and patches of the reference package's helper change its rules by these.
_RULES = (
    "is_skip_step",
    "is_enter_position",
    "wrap_unet_forward",
    "wrap_block_forward",
    "wrap_modules",
    "unwrap_modules",
    "reset_states",
)


class DeepCacheSDHelper:
    """DeepCache on a diffusers pipeline, by the interface of the diffusers documentation.

    Args:
        pipe: a pipeline with a denoising U-Net; may also be given to `enable`.

    Raises nothing until `set_params` or `enable` meets a value it cannot work with.

    Without `set_params` the settings are those of `DeepCacheConfig(forecast="none")`. With them, and with the defaults
    of `set_params`, the output is bit-identical to the reference package's. Enabling takes the place of any engine that
    is on the same U-Net already, so a notebook cell may be run twice. After `helper.pipe = other`, the next `enable`
    is for the other pipeline.

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

        Enabled for the length of a block:

        >>> with DeepCacheSDHelper(pipe) as helper:
        ...     image = pipe("a red circle", num_inference_steps=6).images[0]
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_rules(cls, vars(cls))

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
    ) -> None:
        """Sets what `DeepCacheConfig` explains, before `enable` or while enabled.

        Args:
            plan: a plan, or the file that `deepcache tune` wrote it to.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value out of its range, or a plan for another model or scheduler; the settings stay as they
                were.
            OSError: the file of the plan cannot be read.
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
        if self.pipe is not None:
            for name, unet in unets_of(self.pipe).items():
                check_settings(config, unet, self.pipe, name)
        if self._engine is not None and self._engine.pipe is self.pipe:
            self._engine.configure(config)
        self._config = config

    def enable(self, pipe: Any = None) -> None:
        """Puts DeepCache on the pipeline. Twice is as good as once.

        Args:
            pipe: another pipeline to work on from now on; the one before is set free.

        Raises:
            TypeError: the pipeline has no U-Net, or one that DeepCache cannot cut, or the helper was given a rule of
                the reference package's (`is_skip_step`), which nothing calls here.
            ValueError: no pipeline was given, or the branch is too deep for its U-Net.
        """
        pipe = self.pipe if pipe is None else pipe
        if pipe is None:
            raise ValueError("no pipeline to enable DeepCache on: give one to DeepCacheSDHelper(pipe=...) or enable()")
        _refuse_rules(self, vars(self))
        if self._engine is None or pipe is not self._engine.pipe:
            engine = DeepCacheEngine(pipe, self._config)
            self.disable()
            self.pipe, self._engine = pipe, engine
        elif self._engine.config != self._config:
            # They were set while the helper had no pipeline, or another.
            self._engine.configure(self._config)
        self._engine.attach()

    def disable(self) -> None:
        """Takes DeepCache off the pipeline, which is then as it was before. Without effect where it is not on."""
        if self._engine is not None:
            self._engine.detach()

    def __enter__(self) -> DeepCacheSDHelper:
        self.enable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    @property
    def stats(self) -> TrajectoryStats:
        """What the last trajectory did; of a pipeline with several U-Nets, what the first of them did."""
        return self._engine.stats if self._engine is not None else TrajectoryStats("", 0, 0, 0, None)

    @property
    def params(self) -> dict[str, Any]:
        """The settings under the names of the reference package, with the branch as a block and a layer within it."""
        number = self._config.cache_branch_id
        if self.pipe is None:
            # Nothing to read the structure from yet: that of Stable Diffusion.
            block, layer = divmod(number, 3)
        else:
            branch = branch_of(_first_unet(self.pipe), number)
            # Only diffusers' block layout numbers layers within a block.
            block, layer = (branch.down_block, branch.layers) if isinstance(branch, BlockBranch) else (number, 0)
        return {
            "cache_interval": self._config.cache_interval,
            "cache_layer_id": layer,
            "cache_block_id": block,
            "skip_mode": self._config.skip_mode,
        }

    @property
    def function_dict(self) -> dict[Any, Callable[..., Any]]:
        """The `forward` of the U-Net, its blocks and its layers, under the keys of the reference package; empty while
        DeepCache is off. For toolkits that go through it: DeepCache itself replaces no `forward`, and assigning to
        the entries changes nothing."""
        if self._engine is None or not self._engine.attached:
            return {}
        return _forwards(_first_unet(self.pipe))


def _refuse_rules(where: Any, defined: Mapping[str, Any]) -> None:
    """Refuses what the reference package calls and this one does not, wherever it was defined."""
    name = next((name for name in _RULES if name in defined or hasattr(DeepCacheSDHelper, name)), None)
    if name is not None:
        owner = where.__name__ if isinstance(where, type) else type(where).__name__
        raise TypeError(
            f"{owner} defines {name}(), which DeepCache does not call. Say which steps are full by "
            "set_params(schedule=ExplicitSchedule(...)) or WindowSchedule(...), and change a call of the U-Net by hooks"
        )


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
