"""One denoiser with DeepCache, whose outputs are compared with the oracle."""

from __future__ import annotations

import copy
import threading
from collections.abc import Hashable
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from tests.engine.slots import kept_slots
from tests.fuzz.denoisers import DENOISERS, PRODUCERS, make_denoiser
from tests.fuzz.oracle import Oracle, gradients, prediction

MOST_SLOTS = 128

# Whether a thread's last call was full; outside of the session, so that the denoiser can be copied.
_HERE = threading.local()


def _note(*_: Any) -> None:
    _HERE.ran = True


class Finding(AssertionError):
    """DeepCache has a fault."""


class Interruption(KeyboardInterrupt):
    """Raised by the fuzzer inside the denoiser."""


class Forwarding(nn.Module):
    """A wrapper of the denoiser that forwards its attributes, like those of peft and DeepSpeed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Session:
    """A denoiser, its oracle, and the deep feature that a call for each purpose may use."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        kind = random.choices(DENOISERS, (6, 3, 1))[0]
        self.branch = random.choice(list(PRODUCERS[kind]))
        self.interval = random.randint(2, 5)
        self.denoiser = make_denoiser(kind, seed % 7)
        self.width = (4, 8, 8) if kind == "diffusers" else (4,)
        self.text_width = 8 if kind == "diffusers" else 4
        self.timestep_name = "timesteps" if kind == "paired lists" else "timestep"
        producer = PRODUCERS[kind][self.branch]
        self._before = self._state()
        self.oracle = Oracle(self.denoiser, producer)
        self.pipe = SimpleNamespace(unet=self.denoiser, scheduler=SimpleNamespace(timesteps=None, step_index=None))
        if random.random() < 0.1:
            self.pipe.unet = Forwarding(self.denoiser)
        self.engine = apply_deepcache(self.pipe, self.config())
        self._lock = threading.Lock()
        # Programs that may be between two views of a step.
        self.panoramas = 0
        self._witness = self.denoiser.get_submodule(producer).register_forward_hook(_note)
        self._features: dict[Hashable, torch.Tensor] = {}
        self.calls = self.shallow = 0

    def config(self) -> DeepCacheConfig:
        return DeepCacheConfig(self.interval, cache_branch_id=self.branch, forecast="none")

    def random_text(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(1, 3, self.text_width, generator=generator)

    def random_sample(self, generator: torch.Generator, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, *self.width, generator=generator)

    def call(
        self, purpose: Hashable, sample: torch.Tensor, timestep: Any, text: torch.Tensor, keyword: bool = False
    ) -> bool:
        """Calls the denoiser under `no_grad`, and returns whether the step was full.

        A shallow step may only use the deep feature of the last full step with the same purpose. `keyword` is whether
        the timestep is passed by name.
        """
        text = text.expand(len(sample), -1, -1) if len(text) != len(sample) else text
        _HERE.ran = False
        with torch.no_grad():
            if keyword:
                named = {"context" if self.timestep_name == "timesteps" else "encoder_hidden_states": text}
                found = self.pipe.unet(sample, **named, **{self.timestep_name: timestep})
            else:
                found = self.pipe.unet(sample, timestep, text)
        ran = _HERE.ran
        with self._lock:
            self._compare(purpose, ran, prediction(found), sample, timestep, text)
        return ran

    def _compare(self, purpose: Hashable, ran: bool, found: torch.Tensor, *args: Any) -> None:
        self.calls += 1
        whole, feature = self.oracle.full(*args)
        if ran:
            if not torch.equal(found, whole):
                raise Finding(f"a full step for {purpose} does not return what the whole denoiser does")
            self._features[purpose] = feature
            return
        self.shallow += 1
        if purpose not in self._features:
            raise Finding(f"the first call for {purpose} is shallow")
        if not torch.equal(found, self.oracle.shallow(self._features[purpose], *args)):
            raise Finding(f"a shallow step for {purpose} uses another deep feature than that of its last full step")

    def train(self, sample: torch.Tensor, timestep: Any, text: torch.Tensor, training: bool) -> None:
        """Compares the gradients of a call with those without DeepCache."""
        self.denoiser.train(training)
        found, expected = (
            gradients(self.pipe.unet, sample, timestep, text),
            gradients(self.oracle.denoiser, sample, timestep, text),
        )
        self.denoiser.eval()
        self.denoiser.zero_grad()
        for one, other in zip(found, expected, strict=True):
            if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
                raise Finding("a gradient is not that of the whole denoiser")

    @contextmanager
    def interrupted(self, random: Random) -> Any:
        """Makes a module of the denoiser, or the denoiser itself, raise for the length of the context."""

        def interrupt(*_: Any) -> None:
            raise Interruption

        module = random.choice(list(self.denoiser.modules()))
        register = random.choice([module.register_forward_pre_hook, module.register_forward_hook])
        handle = register(interrupt)
        try:
            yield
        except Interruption:
            pass
        finally:
            handle.remove()
        self.check_state(attached=True)

    def check_state(self, attached: bool = False) -> None:
        """Compares the denoiser between two calls with its initial state."""
        now = self._state()
        if [each[:2] for each in now] != [each[:2] for each in self._before]:
            raise Finding("the denoiser has another class or other children between two calls")
        if not attached and now != self._before:
            raise Finding("attributes or hooks are left after DeepCache is removed")
        if attached and len(kept_slots(self.engine, next(iter(self.engine._caches)))) > MOST_SLOTS:
            raise Finding("more slots are stored than any pipeline needs")

    def reattach(self, random: Random) -> None:
        """Removes and applies DeepCache again, in one of several ways, sometimes with other settings."""
        if random.random() < 0.5:
            self.interval = random.randint(2, 5)
        # An engine that is attached between two calls of a step does not know the first.
        way = "configure" if self.panoramas else random.choice(["configure", "detach", "remove", "replace"])
        if way == "configure":
            self.engine.configure(self.config())
            return
        if way == "detach":
            self.engine.detach()
        elif way == "remove":
            remove_deepcache(self.pipe)
        self.engine = apply_deepcache(self.pipe, self.config())

    def end_run(self) -> None:
        """Marks the next call as the first of another image, if it is."""
        if not self.panoramas:
            self.engine.end_run()

    def copy(self) -> None:
        """Copies the denoiser during a run; without DeepCache the copy equals the initial denoiser."""
        twin = copy.deepcopy(self.denoiser)
        remove_deepcache(twin)
        generator = torch.Generator().manual_seed(1)
        args = self.random_sample(generator), 500.0, self.random_text(generator)
        with torch.no_grad():
            found = prediction(twin(*args))
        if not torch.equal(found, self.oracle.full(*args)[0]):
            raise Finding("a copy without DeepCache is another denoiser")

    def close(self) -> None:
        """Removes DeepCache."""
        self.engine.detach()
        self._witness.remove()
        self.check_state()

    def _state(self) -> list[tuple[Any, ...]]:
        hooks = ("_forward_hooks", "_forward_pre_hooks")
        return [
            (
                type(module),
                tuple(module._modules.items()),
                frozenset(vars(module)),
                tuple(len(vars(module)[name]) for name in hooks),
            )
            for module in self.denoiser.modules()
        ]
