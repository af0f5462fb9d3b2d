"""The wrappers that put DeepCache around a model of ComfyUI: nothing of the model is replaced."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from DeepCache.comfyui.chunks import ModelCall
from DeepCache.comfyui.executors import Executors, turn
from DeepCache.comfyui.sampler_run import Sampler, SamplerRun
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.fingerprint import other_guidance, refuse
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.stiffness import stiffness
from DeepCache.engine.torch_versions import not_compiled

__all__ = ["KEY", "Applied", "apply"]

KEY = "deepcache"
"""What the wrappers and the entry of `transformer_options` are called."""

# How many past predictions a sampler goes on from, by the end of its name.
_ORDERS = {"_2m": 2, "_2m_sde": 2, "_2m_sde_gpu": 2, "_3m_sde": 3, "_3m_sde_gpu": 3, "_multistep": 2}
_ORDERS |= {"_unipc": 3, "_unipc_bh2": 3, "_deis": 3, "_ipndm": 4, "_ipndm_v": 4, "_lms": 4}

# Samplers that evaluate the model more than once a step, or as often as they like.
_SEVERAL_EVALUATIONS = ("heun", "dpm_2", "_2s", "dpmpp_sde", "seeds", "pece", "dpm_fast", "dpm_adaptive")
# And those of such a name that do not.
_ONE_EVALUATION = ("2m_sde_heun",)


class Applied:
    """DeepCache as a node has put it on a model.

    Args:
        settings: those for a guidance scale, which is None where it is not known.
        start_percent: from where in a run on it is used, 0 to 1.
        end_percent: up to where.
    """

    def __init__(
        self,
        settings: Callable[[float | None], DeepCacheConfig],
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> None:
        self._settings, self._start, self._end = settings, start_percent, end_percent
        self._executors = Executors()
        self._last: SamplerRun | None = None

    def __deepcopy__(self, memo: Any) -> Applied:
        """Clones of a model share what a run with it did. ComfyUI copies all that is in its options."""
        return self

    @property
    def stats(self) -> TrajectoryStats | None:
        """What the last run did; None before the first."""
        return None if self._last is None else self._last.stats()

    def begin_run(self, guider: Any, sampler: Any, sigmas: torch.Tensor) -> SamplerRun:
        """Begins a run.

        Raises:
            ValueError: the plan is for another number of steps or another guidance scale.
        """
        guidance, steps = _guidance_of(guider), len(sigmas) - 1
        config = self._settings(guidance)
        counted = config.plan is not None or config.skip_mode == "adaptive"
        if counted and _evaluates_several_times(_name_of(sampler)):
            raise ValueError(
                "DeepCache: a plan and adaptive_threshold go by the number of evaluations, and the sampler "
                f"{_name_of(sampler)} makes several a step; take another sampler, or neither of the two"
            )
        if config.plan is not None:
            planned = len(config.plan.schedule.each)
            if planned != steps:
                raise ValueError(f"DeepCache: the plan is for {planned} steps, and the sampler makes {steps}")
            refuse(other_guidance(config.plan, guidance))
        sampling = guider.model_patcher.get_model_object("model_sampling")
        known = Sampler(
            stiffness(guidance, _order_of(sampler), steps),
            response=float(_predicts_noise(guider.model_patcher.model)),
            steps=steps if counted else None,
            highest_sigma=float(sampling.percent_to_sigma(self._start)) if self._start > 0 else None,
            lowest_sigma=float(sampling.percent_to_sigma(self._end)) if self._end < 1 else 0.0,
            splits_batches="model_function_wrapper" in guider.model_options,
        )
        self._last = SamplerRun(config, known, self._executors)
        return self._last


def apply(model: Any, applied: Applied) -> None:
    """Puts DeepCache on a `ModelPatcher`, in the place of what an earlier node has put there."""
    model.model_options.setdefault("transformer_options", {})[KEY] = applied
    for kind, wrapper in (
        # The names in `comfy.patcher_extension.WrappersMP`.
        ("outer_sample", _outer_sample),
        ("predict_noise", _predict_noise),
        ("diffusion_model", _diffusion_model),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)


def _outer_sample(executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
    guider = executor.class_obj
    before = guider.model_options
    options = before["transformer_options"]
    run = options[KEY].begin_run(guider, sampler, sigmas)
    guider.model_options = {**before, "transformer_options": {**options, KEY: run}}
    try:
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)
    finally:
        guider.model_options = before
        run.end()


def _predict_noise(executor: Any, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
    run = (model_options or {}).get("transformer_options", {}).get(KEY)
    if isinstance(run, SamplerRun):
        run.begin_evaluation(timestep)
    return executor(x, timestep, model_options or {}, seed)


def _diffusion_model(
    executor: Any,
    x: Any,
    timesteps: Any = None,
    context: Any = None,
    y: Any = None,
    control: Any = None,
    transformer_options: Any = None,
    **kwargs: Any,
) -> Any:
    options = transformer_options or {}
    run = options.get(KEY)
    if not isinstance(run, SamplerRun) or "uuids" not in options:
        return executor(x, timesteps, context, y, control, options, **kwargs)

    model = executor.class_obj
    with turn(model):
        call = ModelCall(x, control, {"timesteps": timesteps, "context": context, "y": y, **kwargs}, options)
        begun = run.begin(model, call)
        try:
            output = begun.output
            if output is None:
                sample, control, others, options, _ = begun.given
                others = dict(others)
                given = [others.pop(name) for name in ("timesteps", "context", "y")]
                output = executor(sample, *given, control, options, **others)
        finally:
            begun.undo()
        return run.keep(model, begun, output)


# Compiled, only the model itself is: a graph for full steps and one for shallow ones.
_diffusion_model = not_compiled(_diffusion_model, recursive=False)


def _guidance_of(guider: Any) -> float | None:
    """The guidance scale, and where a guider has two, the larger one."""
    scales = [getattr(guider, name, None) for name in ("cfg", "cfg1", "cfg2")]
    return max((scale for scale in scales if scale is not None), default=None)


def _evaluates_several_times(name: str) -> bool:
    several = any(each in name for each in _SEVERAL_EVALUATIONS)
    return several and not any(each in name for each in _ONE_EVALUATION)


def _name_of(sampler: Any) -> str:
    name: str = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return name.removeprefix("sample_")


def _order_of(sampler: Any) -> Any:
    """A scheduler of as high an order, for `stiffness`."""
    order = next((order for ending, order in _ORDERS.items() if f"_{_name_of(sampler)}".endswith(ending)), 1)
    return SimpleNamespace(config={"solver_order": order})


def _predicts_noise(model: Any) -> bool:
    return getattr(getattr(model, "model_type", None), "name", "EPS") == "EPS"
