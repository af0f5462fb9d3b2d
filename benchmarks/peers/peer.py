"""What the re-implemented rules of other projects share: a rule answers each call of the U-Net, with layers or without.

A rule is an object with one method, `predict(call)`, which returns the U-Net's output for one step. A new one is made
for every pipeline call, so nothing of one image reaches the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from DeepCache.engine.guidance import output_tensor, with_tensor

__all__ = ["Call", "Outputs", "Peer", "Rule", "Run", "replaced"]

FULL, SKIPPED = "full", "skipped"
_SIGNS = {FULL: "F", SKIPPED: "-"}
# The kernel that a CPU takes is missing in torch's own table.
_ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *rest, **options: (
        sdpa_flop_count(query, key, value)
    )
}


@dataclass
class Run:
    """One pipeline call.

    Args:
        kinds: what was done at each step: `full`, `skipped` or a rule's name for a part of the U-Net.
        macs: multiply-accumulates of each step.
    """

    kinds: list[str] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)

    @property
    def pattern(self) -> str:
        """One character a step: `F` full, `-` no layer, `.` part of the U-Net."""
        return "".join(_SIGNS.get(kind, ".") for kind in self.kinds)

    @property
    def mac_share(self) -> float:
        """Multiply-accumulates as a share of those of a run whose steps are all full; the first step is full."""
        return sum(self.macs) / (len(self.macs) * self.macs[0])


class Rule(Protocol):
    """Decides on each step of one pipeline call."""

    def predict(self, call: Call) -> Tensor:
        """The output of the U-Net for this call, taken from `call.full()`, `call.part()` or `call.skip()`."""


class Call:
    """One call of the U-Net, as a rule sees it.

    Args:
        peer: the peer whose rule it is for.
        original: the U-Net's own `forward`.
        number: number of the step.
        arguments: positional and keyword arguments, without the sample.
        x: the input of the U-Net, of both halves where it is guided. It has the scale `alpha * x0 + sigma * noise`
            for every scheduler, since each scales its latents to that for the U-Net.
    """

    def __init__(
        self, peer: Peer, original: Callable[..., Any], number: int, x: Tensor, arguments: tuple[Any, Any]
    ) -> None:
        self._peer, self._original = peer, original
        self._args, self._kwargs = arguments
        self.x, self.number = x, number
        self.scheduler = peer.pipe.scheduler
        self.unet: nn.Module = peer.pipe.unet
        self.steps = len(self.scheduler.timesteps)
        self.timestep = float(self.scheduler.timesteps[number])
        guides = getattr(peer.pipe, "do_classifier_free_guidance", False)
        self._guidance: float | None = peer.pipe.guidance_scale if guides else None

    @property
    def halves(self) -> int:
        """2 for a batch with and without the prompt, else 1."""
        return 1 if self._guidance is None else 2

    @property
    def last_timestep(self) -> int:
        """The noisiest timestep that the model was trained on."""
        return int(self.scheduler.config.num_train_timesteps) - 1

    @property
    def alpha(self) -> float:
        """The scale of the clean latents in `x`."""
        return self._levels()[0]

    @property
    def sigma(self) -> float:
        """The scale of the noise in `x`."""
        return self._levels()[1]

    @property
    def latents(self) -> Tensor:
        """The scheduler's latents of one half, which for Euler are `x / alpha`."""
        x = self.x[: len(self.x) // self.halves]
        return x / self.alpha if isinstance(self.scheduler, EulerDiscreteScheduler) else x

    def guided(self, prediction: Tensor) -> Tensor:
        """A prediction of both halves as the pipeline combines them; as it is where nothing is guided."""
        if self._guidance is None:
            return prediction
        without, conditional = prediction.chunk(2)
        return without + self._guidance * (conditional - without)

    def clean(self, prediction: Tensor) -> Tensor:
        """The clean latents (x0) that a guided noise prediction stands for."""
        return (self.x[: len(self.x) // self.halves] - self.sigma * self.guided(prediction)) / self.alpha

    def full(self) -> Tensor:
        """A full step."""
        return self.part(FULL, self.run)

    def skip(self, prediction: Tensor) -> Tensor:
        """A step at which no layer runs."""
        self._peer.note(SKIPPED, 0)
        return prediction

    def part(self, kind: str, run: Callable[[], Tensor]) -> Tensor:
        """A step at which `run` runs part of the U-Net; all steps of a kind cost the same."""
        if self.counted(kind):
            prediction = run()
        else:
            with FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPU) as counter:
                prediction = run()
            self._peer.costs[kind, self.x.shape] = counter.get_total_flops() // 2
        self._peer.note(kind, self._peer.costs[kind, self.x.shape])
        return prediction

    def counted(self, kind: str) -> bool:
        """Whether the cost of a kind of step is known."""
        return (kind, self.x.shape) in self._peer.costs

    def run(self, x: Tensor | None = None, **changes: Any) -> Tensor:
        """Runs the U-Net as it is at the moment, with some keyword arguments changed."""
        output = self._original(self.x if x is None else x, *self._args, **self._kwargs | changes)
        self._peer.template = output
        return output_tensor(output)

    @property
    def text(self) -> Tensor:
        """The prompt embeddings, of both halves where it is guided."""
        return self._kwargs["encoder_hidden_states"]

    def _levels(self) -> tuple[float, float]:
        if hasattr(self.scheduler, "sigmas"):
            ratio = float(self.scheduler.sigmas[self.number])
            alpha = (1 + ratio**2) ** -0.5
            return alpha, ratio * alpha
        alpha_bar = float(self.scheduler.alphas_cumprod[int(self.timestep)])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


class Peer:
    """A rule on a pipeline.

        peer = PEERS["EasyCache 0.2"]()
        with peer.on(pipe, steps=25):
            images = pipe(prompt, num_inference_steps=25).images
        print(peer.pattern, peer.mac_share)

    The pipeline calls its U-Net once a step, guided in one batch of two halves or not at all, and the model predicts
    noise. Schedulers: DDIM, DPMSolverMultistep, EulerDiscrete, UniPC.

    Args:
        rule: makes the rule for one pipeline call.
    """

    def __init__(self, rule: Callable[[], Rule]) -> None:
        self._make = rule
        self.runs: list[Run] = []
        """Every pipeline call since `on`, the last one last."""
        self.costs: dict[tuple[str, torch.Size], int] = {}
        self.pipe: Any = None
        self.template: Any = None

    @property
    def pattern(self) -> str:
        """One character a step of the last pipeline call: `F` full, `-` no layer, `.` part of the U-Net."""
        return self.runs[-1].pattern

    @property
    def mac_share(self) -> float:
        """Share of the U-Net's multiply-accumulates of the last pipeline call."""
        return self.runs[-1].mac_share

    @contextmanager
    def on(self, pipe: Any, steps: int) -> Iterator[Peer]:
        """Puts the rule on a pipeline whose calls make so many steps; the U-Net is restored at the end."""
        self.pipe, self._steps = pipe, steps
        self.runs, self.costs = [], {}
        self._timesteps: Any = None
        self._rule: Rule | None = None
        original = pipe.unet.forward
        try:
            with replaced(pipe.unet, lambda x, *args, **kwargs: self._forward(original, x, args, kwargs)):
                yield self
        finally:
            self.pipe = self.template = self._rule = self._timesteps = None

    def note(self, kind: str, macs: int) -> None:
        """Adds a step to the run."""
        self.runs[-1].kinds.append(kind)
        self.runs[-1].macs.append(macs)

    def _forward(self, original: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        timesteps = self.pipe.scheduler.timesteps
        # Every pipeline call sets the timesteps, as a tensor of its own.
        if timesteps is not self._timesteps or len(self.runs[-1].kinds) == self._steps:
            if len(timesteps) != self._steps:
                raise ValueError(f"the rule is on for {self._steps} steps, the scheduler makes {len(timesteps)}")
            self._timesteps, self._rule = timesteps, self._make()
            self.runs.append(Run())
        assert self._rule is not None
        call = Call(self, original, len(self.runs[-1].kinds), x, (args, kwargs))
        prediction = self._rule.predict(call)
        return with_tensor(self.template, prediction)


@contextmanager
def replaced(*pairs: Any) -> Iterator[None]:
    """Gives modules another `forward` each: `replaced(module, forward, module, forward, …)`. Put back at the end."""
    with ExitStack() as stack:
        for module, forward in zip(pairs[::2], pairs[1::2], strict=True):
            attributes = module.__dict__
            if "forward" in attributes:
                stack.callback(attributes.__setitem__, "forward", attributes["forward"])
            else:
                stack.callback(attributes.pop, "forward")
            attributes["forward"] = forward
        yield


class Outputs:
    """What modules returned, to be returned again without running them.

    Args:
        modules: the modules, each of which runs once a call.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._kept: dict[nn.Module, Any] = dict.fromkeys(modules)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps what the modules return."""
        with ExitStack() as stack:
            for module in self._kept:
                stack.callback(module.register_forward_hook(self._keep).remove)
            yield

    def repeated(self, change: Callable[[Any], Any] = lambda output: output) -> AbstractContextManager[None]:
        """Returns it again, after a change if there is one."""
        pairs: list[Any] = []
        for module, output in self._kept.items():
            pairs += [module, lambda *args, output=output, **kwargs: change(output)]
        return replaced(*pairs)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._kept[module] = output
