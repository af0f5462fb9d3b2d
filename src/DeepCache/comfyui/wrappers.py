"""The wrappers that apply DeepCache to a ComfyUI model without replacing any part of it."""

from __future__ import annotations

from typing import Any

import torch

from DeepCache.comfyui.executors import Executors, turn
from DeepCache.comfyui.model_call import ModelCall
from DeepCache.comfyui.sampler import guidance_scale_of, sampler_of
from DeepCache.comfyui.sampler_run import SamplerRun
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.torch_versions import not_compiled

__all__ = ["KEY", "Applied", "apply"]

KEY = "deepcache"
"""The key of the wrappers and of the entry in `transformer_options`."""


class Applied:
    """DeepCache as a node has applied it to a model.

    Args:
        settings: the settings, or the name of a preset, whose settings depend on the guidance scale.
        start_percent: the part of the run at which DeepCache starts, 0 to 1.
        end_percent: the part at which it ends.
    """

    def __init__(self, settings: DeepCacheConfig | str, start_percent: float = 0.0, end_percent: float = 1.0) -> None:
        self._settings, self._start, self._end = settings, start_percent, end_percent
        self._executors = Executors()
        self._last: SamplerRun | None = None

    def __deepcopy__(self, memo: Any) -> Applied:
        # ComfyUI copies all options of a model; its clones share the statistics.
        return self

    @property
    def stats(self) -> TrajectoryStats | None:
        """Statistics of the last run; None before the first."""
        return None if self._last is None else self._last.stats()

    def begin_run(self, guider: Any, sampler: Any, sigmas: torch.Tensor) -> SamplerRun:
        """Starts a run. Raises a `ValueError` if the settings do not fit it, see `sampler_of`."""
        config = self._settings
        if isinstance(config, str):
            config = DeepCacheConfig.preset(config, guidance_scale_of(guider))
        known = sampler_of(guider, sampler, sigmas, config, self._start, self._end)
        self._last = SamplerRun(config, known, self._executors)
        return self._last


def apply(model: Any, applied: Applied) -> None:
    """Applies DeepCache to a `ModelPatcher`, replacing that of an earlier node."""
    model.model_options.setdefault("transformer_options", {})[KEY] = applied
    for kind, wrapper in (
        # Names from `comfy.patcher_extension.WrappersMP`.
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
        # Graphs compiled by ComfyUI may read every entry and must also run without DeepCache.
        plain = {name: value for name, value in options.items() if name != KEY}
        call = ModelCall(x, control, {"timesteps": timesteps, "context": context, "y": y, **kwargs}, plain)
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


# torch.compile applies to the model itself only: one graph for full steps and one for shallow ones.
_diffusion_model = not_compiled(_diffusion_model, recursive=False)
