"""T-GATE (TMLR 2025, arXiv 2404.02747 and 2404.19427; HaozheLiu-ST/T-GATE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Call, Outputs

__all__ = ["TGate"]


class TGate:
    """From the gate step on without guidance, and with the cross-attention of the step before the gate.

    At the last step before the gate the outputs of all cross-attention layers are kept, as the mean of the two halves.
    After it the half with the prompt runs alone on these, and its prediction is taken as it is. With `self_interval`
    above 1 the self-attention before the gate is re-used too: after a warm-up it runs at every so-manyth step.

    Published defaults: gate at step 10 of 25, self-attention every 5th step before it after a warm-up of 2. The first
    version of the method leaves the self-attention alone (`self_interval` 1).

    What differs: nothing known.
    """

    def __init__(self, gate: float = 10 / 25, self_interval: int = 1, warmup: int = 2) -> None:
        self._gate, self._self_interval, self._warmup = gate, self_interval, warmup
        self._cross: Outputs | None = None
        self._self: Outputs | None = None

    def predict(self, call: Call) -> Tensor:
        if self._cross is None or self._self is None:
            self._cross, self._self = Outputs(_named(call.unet, "attn2")), Outputs(_named(call.unet, "attn1"))
        gate = round(self._gate * call.steps)
        if call.number >= gate:
            with self._cross.repeated(lambda output: _mean(output, call.halves)):
                return call.part("after the gate", lambda: _conditional(call))
        with self._cross.kept():
            if call.number >= self._warmup and (call.number - self._warmup) % self._self_interval:
                with self._self.repeated():
                    return call.part("self-attention re-used", call.run)
            with self._self.kept():
                return call.full()


def _named(unet: nn.Module, name: str) -> list[nn.Module]:
    return [module for path, module in unet.named_modules() if path.endswith(f".{name}")]


def _mean(output: Any, halves: int) -> Tensor:
    return sum(output.chunk(halves)) / halves


def _conditional(call: Call) -> Tensor:
    prediction = call.run(call.x.chunk(call.halves)[-1], encoder_hidden_states=call.text.chunk(call.halves)[-1])
    return torch.cat([prediction] * call.halves)
