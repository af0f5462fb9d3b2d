"""Rules of other projects that make the U-Net of a diffusion model cheaper, re-implemented from their descriptions.

They are benchmark code: to be measured in one run with DeepCache, on any diffusers pipeline with a
`UNet2DConditionModel` that predicts noise. They wait for the device where they decide.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.peers.adaptive_diffusion import AdaptiveDiffusion
from benchmarks.peers.easycache import EasyCache, LazyCache
from benchmarks.peers.faster_diffusion import FasterDiffusion, every, key_steps
from benchmarks.peers.first_block import FirstBlockCache
from benchmarks.peers.modelopt import CacheDiffusion
from benchmarks.peers.peer import Peer, Rule, Run
from benchmarks.peers.reuse import PredictionReuse
from benchmarks.peers.sada import Sada
from benchmarks.peers.spectrum import Spectrum
from benchmarks.peers.tgate import TGate
from benchmarks.peers.zeus import Zeus

__all__ = ["PEERS", "Peer", "Run"]

_RULES: dict[str, Callable[[], Rule]] = {
    "EasyCache 0.1": partial(EasyCache, 0.1),
    "EasyCache 0.2": partial(EasyCache, 0.2),
    "EasyCache 0.3": partial(EasyCache, 0.3),
    "LazyCache 0.2": partial(LazyCache, 0.2),
    "SADA": Sada,
    "SADA no Lagrange": partial(Sada, lagrange=None),
    "ZEUS 1/2": partial(Zeus, 2),
    "ZEUS 1/3": partial(Zeus, 3),
    "ZEUS 1/3 from step 4": partial(Zeus, 3, start=4 / 25, end=1.0),
    "Spectrum w=1 flex=0": partial(Spectrum, 1.0, 0.0),
    "Spectrum w=0.5 flex=0": partial(Spectrum, 0.5, 0.0),
    "Spectrum w=0.5 flex=0.75": partial(Spectrum, 0.5, 0.75),
    "Spectrum ComfyUI node": partial(Spectrum, 0.3, 0.25, degree=3, warmup=8, last=3, hidden=False),
    "AdaptiveDiffusion 0.01": partial(AdaptiveDiffusion, 0.01),
    "AdaptiveDiffusion 0.02": partial(AdaptiveDiffusion, 0.02),
    "first-block cache 0.1": partial(FirstBlockCache, 0.1),
    "first-block cache 0.2": partial(FirstBlockCache, 0.2),
    "T-GATE gate 10 of 25": TGate,
    "T-GATE gate 10 of 25, sp 5": partial(TGate, self_interval=5),
    "Faster Diffusion I=2": partial(FasterDiffusion, every(2)),
    "Faster Diffusion key steps": partial(FasterDiffusion, key_steps),
    "ModelOpt cache_diffusion": CacheDiffusion,
    "prediction minus input re-used, I=2": partial(PredictionReuse, 2),
    "prediction minus input re-used, I=3": partial(PredictionReuse, 3),
    "prediction minus input re-used, first 20 % full, I=3": partial(PredictionReuse, 3, 0.2),
}

PEERS: dict[str, Callable[[], Peer]] = {name: partial(Peer, rule) for name, rule in _RULES.items()}
"""Each rule with the settings that its authors recommend, by name: `PEERS["EasyCache 0.2"]()` makes one."""
