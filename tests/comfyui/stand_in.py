"""A minimal replacement for ComfyUI's engine: a sampler with guidance, wrappers and batches of conds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import torch

from tests.comfyui.ldm_unet import TEXT, TOKENS, LdmUNet

__all__ = ["Cond", "Patcher", "cond", "model", "run_wrapped", "sample"]


class Executor:
    """Calls a function within the nested wrappers of one kind."""

    def __init__(self, function: Any, class_obj: Any, wrappers: list[Any]) -> None:
        self._function, self.class_obj, self._wrappers = function, class_obj, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._wrappers:
            return self._function(*args, **kwargs)
        first, *others = self._wrappers
        return first(Executor(self._function, self.class_obj, others), *args, **kwargs)


def run_wrapped(kind: str, function: Any, class_obj: Any, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    by_key = options.get("wrappers", {}).get(kind, {})
    wrappers = [wrapper for each in by_key.values() for wrapper in each]
    return Executor(function, class_obj, wrappers)(*args, **kwargs)


class Patcher:
    """A model with the options of its patches."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.model = SimpleNamespace(diffusion_model=unet, model_type=SimpleNamespace(name="EPS"))
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        other = copy.copy(self)
        other.model_options = _copied(self.model_options)
        return other

    def get_model_object(self, name: str) -> Any:
        if name == "model_sampling":
            return SimpleNamespace(percent_to_sigma=lambda percent: 10.0 * (1 - percent))
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        wrappers = self.model_options["transformer_options"].setdefault("wrappers", {})
        wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.model_options["transformer_options"].get("wrappers", {}).get(kind, {}).pop(key, None)


@dataclass(eq=False)
class Cond:
    """A cond: its text, area, range of noise levels and ControlNet."""

    text: torch.Tensor
    area: slice = field(default_factory=lambda: slice(None))
    control: Callable[[int], Any] | None = None
    active: Callable[[float], bool] = lambda sigma: True
    uuid: Any = field(default_factory=uuid4)


def cond(seed: int, **settings: Any) -> Cond:
    return Cond(torch.randn(1, TOKENS, TEXT, generator=torch.Generator().manual_seed(seed)), **settings)


def model(seed: int = 0, **settings: Any) -> Patcher:
    torch.manual_seed(seed)
    return Patcher(LdmUNet(**settings).eval().requires_grad_(False))


class Guider:
    def __init__(self, patcher: Patcher, positive: list[Cond], negative: list[Cond], cfg: float, together: Any) -> None:
        self.model_patcher, self.model_options, self.cfg = patcher, patcher.model_options, cfg
        self._conds, self._together, self._calls = [positive, negative if cfg != 1 else []], together, 0

    def predict(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        options = self.model_options["transformer_options"]
        return run_wrapped("predict_noise", self._predict, self, options, x, sigma, self.model_options, 0)

    def _predict(self, x: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any], seed: int) -> torch.Tensor:
        positive, negative = self._conds_of(x, sigma, model_options)
        guided = negative + self.cfg * (positive - negative) if self.cfg != 1 else positive
        for again in model_options.get("again", ()):
            guided = again(self, x, sigma, model_options, guided, positive)
        return guided

    def _conds_of(self, x: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any]) -> list[torch.Tensor]:
        """The mean prediction of the conds of each kind, in batches that fit into the memory."""
        outputs, counts = [torch.zeros_like(x) for _ in (0, 1)], [torch.zeros_like(x) for _ in (0, 1)]
        waiting = [(each, index) for index, conds in enumerate(self._conds) for each in conds]
        waiting = [each for each in waiting if each[0].active(float(sigma))]
        while waiting:
            shape = x[..., waiting[0][0].area].shape
            alike = [each for each in waiting if x[..., each[0].area].shape == shape]
            batch = alike[: self._together(self._calls) if callable(self._together) else self._together][::-1]
            self._calls += 1
            waiting = [each for each in waiting if each not in batch]
            found = self._run(x, sigma, batch, model_options)
            for (each, index), output in zip(batch, found.chunk(len(batch)), strict=True):
                outputs[index][..., each.area] += output
                counts[index][..., each.area] += 1
        return [output / count.clamp_min(1) for output, count in zip(outputs, counts, strict=True)]

    def _run(self, x: Any, sigma: Any, batch: list[tuple[Cond, int]], model_options: dict[str, Any]) -> torch.Tensor:
        sample = torch.cat([x[..., each.area] for each, _ in batch])
        options = _copied(model_options["transformer_options"])
        options |= {
            "cond_or_uncond": [index for _, index in batch],
            "uuids": [each.uuid for each, _ in batch],
            "sigmas": sigma,
        }
        context = torch.cat([each.text.expand(len(x), -1, -1) for each, _ in batch])
        controls = [each.control for each, _ in batch if each.control is not None]
        control = controls[0](len(sample)) if controls else None
        unet = model_options.get("compiled", self.model_patcher.model.diffusion_model)
        scaled = sample / (sigma**2 + 1) ** 0.5
        extra = model_options.get("concat")
        if extra is not None:
            scaled = torch.cat([scaled, extra.expand(len(scaled), *extra.shape[1:])], dim=1)
        wrapper = model_options.get("model_function_wrapper", lambda unet, *args: unet(*args))
        return wrapper(unet, scaled, sigma.expand(len(scaled)) * 50, context, None, control, options)


def sample(
    patcher: Patcher,
    steps: int = 10,
    cfg: float = 4.0,
    sampler: str = "euler",
    positive: list[Cond] | None = None,
    negative: list[Cond] | None = None,
    together: Any = 4,
    size: tuple[int, int] = (8, 8),
    batch: int = 1,
    seed: int = 1,
) -> torch.Tensor:
    """Runs a sampler.

    Args:
        together: how many conds of one shape go into a batch, or a function of the number of the call.
    """
    guider = Guider(patcher, positive or [POSITIVE], negative or [NEGATIVE], cfg, together)
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
    sigmas = torch.linspace(10, 0, steps + 1)
    functions = {"euler": _euler, "heun": _heun, "repeat": _repeat, "dpmpp_2m_sde_heun": _named_after_heun}
    function = functions[sampler]
    kind = SimpleNamespace(sampler_function=function)
    options = guider.model_options["transformer_options"]
    run = lambda noise, latent, sampler, sigmas: sampler.sampler_function(guider, noise * sigmas[0], sigmas)  # noqa: E731
    with torch.inference_mode():
        return run_wrapped("outer_sample", run, guider, options, noise, torch.zeros_like(noise), kind, sigmas)


def _euler(guider: Guider, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * guider.predict(x, sigma[None])
    return x


def _heun(guider: Guider, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        first = guider.predict(x, sigma[None])
        if following == 0:
            return x + (following - sigma) * first
        second = guider.predict(x + (following - sigma) * first, following[None])
        x = x + (following - sigma) * (first + second) / 2
    return x


def _repeat(guider: Guider, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Evaluates the same input several times, so that all evaluations have the same deep feature."""
    return torch.stack([guider.predict(x, sigmas[:1]) for _ in sigmas[1:]])


def _named_after_heun(guider: Guider, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    return _euler(guider, x, sigmas)


# `_name_of` reads these names, which are ComfyUI's.
_euler.__name__, _heun.__name__ = "sample_euler", "sample_heun"
_named_after_heun.__name__ = "sample_dpmpp_2m_sde_heun"


def _copied(options: Any) -> Any:
    """Dictionaries and lists are copied, all else is shared."""
    if type(options) is dict:
        return {name: _copied(each) for name, each in options.items()}
    return list(options) if type(options) is list else options


POSITIVE, NEGATIVE = cond(10), cond(20)
