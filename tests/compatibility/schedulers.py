"""Cases of all scheduler classes of diffusers.

`CASES` has the variants of schedulers that the test pipelines accept, `OWN_PIPELINES` the schedulers of specific
pipelines, `NOT_TAKEN` those that no pipeline accepts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers import SchedulerMixin

__all__ = [
    "CASES",
    "NOT_TAKEN",
    "OWN_PIPELINES",
    "FoundScheduler",
    "SchedulerCase",
    "UntakenScheduler",
    "find_schedulers",
]


@dataclass(frozen=True)
class FoundScheduler:
    """A scheduler class of the installed diffusers.

    Args:
        name: of the class.
        member: the class, or None where diffusers has a placeholder.
        needs: the packages without which there is only a placeholder; empty where they are installed.
    """

    name: str
    member: type[Any] | None
    needs: tuple[str, ...] = ()


def find_schedulers() -> dict[str, FoundScheduler]:
    """The schedulers by name, those of `diffusers.schedulers` that the package itself does not show included."""
    found = {}
    for name in sorted({*dir(diffusers), *dir(diffusers.schedulers)}):
        if "Scheduler" not in name:
            continue
        member = getattr(diffusers, name, None) or getattr(diffusers.schedulers, name, None)
        if not inspect.isclass(member) or member is SchedulerMixin:
            continue
        if hasattr(member, "_backends"):
            found[name] = FoundScheduler(name, None, tuple(member._backends))
        elif issubclass(member, SchedulerMixin):
            found[name] = FoundScheduler(name, member)
    return found


def one_a_step(steps: int) -> int:
    return steps


def two_but_in_the_last(steps: int) -> int:
    """Methods of second order: a second call corrects every step but the last, after which no noise is left."""
    return 2 * steps - 1


def linear_multistep(steps: int) -> int:
    """Pseudo linear multistep: the first step is made twice, where it is not the only one."""
    return steps + 1 if steps > 1 else 1


def runge_kutta_then_multistep(steps: int) -> int:
    """Three Runge-Kutta steps of four calls each, then a call a step."""
    return 3 * 4 + (steps - 3)


@dataclass(frozen=True)
class SchedulerCase:
    """A variant of a scheduler that the pipelines of the tests take.

    Args:
        scheduler: the class name in diffusers.
        options: what it is configured with beyond Stable Diffusion's noise schedule.
        calls: the number of U-Net calls in a run of so many steps.
        random: whether its steps draw noise from the pipeline's generator.
        pipeline: the pipeline it is tried with.
        call: what the pipeline is called with.
        least_steps: it works with no fewer steps than these.
        note: a note for the page.
        warns: beginnings of the warnings that diffusers gives for it, without DeepCache too.
    """

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: Callable[[int], int] = one_a_step
    random: bool = False
    pipeline: str = "StableDiffusionPipeline"
    call: Mapping[str, Any] = field(default_factory=dict)
    least_steps: int = 1
    note: str = ""
    warns: tuple[str, ...] = ()

    def __str__(self) -> str:
        settings = {**self.options, **self.call}
        return " ".join([self.scheduler, *(f"{name}={value}" for name, value in settings.items())])


def _variants(scheduler: str, *options: Mapping[str, Any], **shared: Any) -> list[SchedulerCase]:
    """The scheduler as it is, and with each of the options."""
    return [SchedulerCase(scheduler, chosen, **shared) for chosen in ({}, *options)]


@dataclass(frozen=True)
class UntakenScheduler:
    """A scheduler that no pipeline of the tests takes, other than those that are refused.

    Args:
        scheduler: the class name in diffusers.
        reason: what it is made for, or what a pipeline would need of it.
        errors: parts of the messages with which the pipeline of Stable Diffusion fails, and with which `DDPMPipeline`
            does, which asks less of a scheduler.
        options: what it cannot be made without.
    """

    scheduler: str
    reason: str
    errors: tuple[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


_LEADING, _TRAILING, _LINSPACE = ({"timestep_spacing": spacing} for spacing in ("leading", "trailing", "linspace"))
_SPACINGS = (_LEADING, _TRAILING, _LINSPACE)
_KARRAS = {"use_karras_sigmas": True}
_SIGMAS = (_KARRAS, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
_TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
_OLD_ALGORITHM = ("`algorithm_types",)
_BROWNIAN = ("Should have ta>=t0", "Should have tb>=t0", "Should have tb<=t1")

_DENOISING_DIFFUSION = [
    *_variants("DDIMScheduler", *_SPACINGS, {"thresholding": True}, _ZERO_SNR),
    SchedulerCase("DDIMScheduler", call={"eta": 1.0}, random=True),
    *_variants("DDIMParallelScheduler", *_SPACINGS),
    SchedulerCase("DDIMParallelScheduler", call={"eta": 1.0}, random=True),
    *_variants("DDIMInverseScheduler", _LEADING, _TRAILING, note="inverts an image to noise: its timesteps ascend"),
    *_variants("DDPMScheduler", *_SPACINGS, {"thresholding": True}, random=True),
    *_variants("DDPMParallelScheduler", *_SPACINGS, random=True),
    *_variants("CogVideoXDDIMScheduler", *_SPACINGS, note="made for a video transformer; works with U-Nets"),
    SchedulerCase(
        "UnCLIPScheduler",
        pipeline="DDPMPipeline",
        random=True,
        least_steps=2,
        note="made for `UnCLIPPipeline`; the pipelines of Stable Diffusion cannot use it",
    ),
]

_MULTISTEP = [
    *_variants(
        "PNDMScheduler",
        *({"skip_prk_steps": True, **spacing} for spacing in _SPACINGS),
        calls=linear_multistep,
        note="repeats the first step, so a run has one U-Net call more than steps",
    )[1:],
    *_variants(
        "PNDMScheduler",
        {"skip_prk_steps": False, "timestep_spacing": "trailing"},
        {"skip_prk_steps": False},
        calls=runge_kutta_then_multistep,
        least_steps=4,
        note="the first three steps have four U-Net calls each, and every call counts as a step",
    )[1:],
    *_variants("IPNDMScheduler"),
    *_variants("LMSDiscreteScheduler", *_SPACINGS, *_SIGMAS),
    *_variants("DEISMultistepScheduler", *_SPACINGS, *_SIGMAS, _FLOW, {"solver_order": 3, "lower_order_final": False}),
    *_variants(
        "DPMSolverMultistepScheduler",
        *_SPACINGS,
        *_SIGMAS,
        _FLOW,
        _TO_SIGMA_MIN,
        {"use_lu_lambdas": True},
        {"solver_order": 1},
        {"solver_order": 3, "thresholding": True},
        {"solver_type": "heun", "euler_at_final": True},
        {"lower_order_final": False},
        {"algorithm_type": "dpmsolver", **_TO_SIGMA_MIN},
        warns=_OLD_ALGORITHM,
    ),
    *_variants(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", **_KARRAS},
        {"algorithm_type": "sde-dpmsolver", **_TO_SIGMA_MIN},
        random=True,
        warns=_OLD_ALGORITHM,
    )[1:],
    *_variants(
        "DPMSolverMultistepInverseScheduler",
        *_SPACINGS,
        *_SIGMAS,
        _FLOW,
        {"solver_order": 3},
        {"algorithm_type": "dpmsolver"},
        warns=_OLD_ALGORITHM,
        note="inverts an image to noise: its timesteps ascend",
    ),
    *_variants(
        "DPMSolverSinglestepScheduler",
        *_SIGMAS,
        _FLOW,
        _TO_SIGMA_MIN,
        {"solver_order": 1},
        {"solver_order": 3, "thresholding": True},
        {"lower_order_final": True},
        {"algorithm_type": "dpmsolver", **_TO_SIGMA_MIN},
        warns=_OLD_ALGORITHM,
        note="one U-Net call per step, at any order",
    ),
    SchedulerCase("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, random=True),
    *_variants(
        "UniPCMultistepScheduler",
        *_SPACINGS,
        *_SIGMAS,
        _FLOW,
        _TO_SIGMA_MIN,
        {"solver_type": "bh1", "predict_x0": False, **_TO_SIGMA_MIN},
        {"solver_order": 3, "disable_corrector": [0]},
        {"lower_order_final": False, **_TO_SIGMA_MIN},
    ),
    *_variants(
        "SASolverScheduler",
        *_SPACINGS,
        *_SIGMAS,
        _FLOW,
        {"algorithm_type": "noise_prediction"},
        {"predictor_order": 3, "corrector_order": 1},
        random=True,
    ),
]

_DIFFERENTIAL_EQUATION = [
    *_variants(
        "EulerDiscreteScheduler",
        *_SPACINGS,
        *_SIGMAS,
        _TO_SIGMA_MIN,
        {"interpolation_type": "log_linear"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", **_KARRAS},
        _ZERO_SNR,
    ),
    *_variants("EulerAncestralDiscreteScheduler", *_SPACINGS, random=True),
    *_variants(
        "EDMEulerScheduler",
        {"sigma_schedule": "exponential"},
        _TO_SIGMA_MIN,
        note="its timesteps are logarithms of the noise level, some below zero",
    ),
    *_variants(
        "EDMDPMSolverMultistepScheduler",
        {"sigma_schedule": "exponential"},
        _TO_SIGMA_MIN,
        {"solver_order": 3, "solver_type": "heun"},
        note="its timesteps are logarithms of the noise level, some below zero",
    ),
    SchedulerCase("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, random=True),
    *_variants(
        "CosineDPMSolverMultistepScheduler",
        {"sigma_schedule": "karras"},
        {"solver_type": "heun", "euler_at_final": True},
        random=True,
        note="its timesteps lie between 0 and 1",
        warns=_BROWNIAN,
    ),
    *_variants(
        "HeunDiscreteScheduler",
        *_SPACINGS,
        *_SIGMAS,
        calls=two_but_in_the_last,
        note="two U-Net calls per step, and every call counts as a step",
    ),
    *_variants(
        "KDPM2DiscreteScheduler",
        *_SPACINGS,
        *_SIGMAS,
        calls=two_but_in_the_last,
        note="two U-Net calls per step, and every call counts as a step",
    ),
    *_variants(
        "KDPM2AncestralDiscreteScheduler",
        *_SPACINGS,
        *_SIGMAS,
        calls=two_but_in_the_last,
        random=True,
        note="two U-Net calls per step, and every call counts as a step",
    ),
    *_variants(
        "DPMSolverSDEScheduler",
        *({"noise_sampler_seed": 0, **options} for options in ({}, *_SPACINGS, *_SIGMAS)),
        calls=two_but_in_the_last,
        note="two U-Net calls per step, and every call counts as a step; its noise comes from "
        "`noise_sampler_seed`, not from the pipeline's generator",
        warns=_BROWNIAN,
    )[1:],
]

_CONSISTENCY = [
    *_variants("LCMScheduler", {"original_inference_steps": 100}, {"thresholding": True}, random=True),
    *_variants("TCDScheduler", {"original_inference_steps": 100}),
    SchedulerCase("TCDScheduler", call={"eta": 0.3}, random=True),
    SchedulerCase("CMStochasticIterativeScheduler", random=True),
    SchedulerCase("CMStochasticIterativeScheduler", {"num_train_timesteps": 40}, random=True),
]

# No noise schedule of theirs is Stable Diffusion's, and its pipelines do not take them.
_FLOW_MATCHING = [
    *_variants(
        "FlowMatchEulerDiscreteScheduler",
        *_SIGMAS,
        {"shift": 3.0},
        {"invert_sigmas": True},
        pipeline="DDPMPipeline",
        note="the scheduler of `DreamLitePipeline`",
    ),
    SchedulerCase("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, pipeline="DDPMPipeline", least_steps=2),
    SchedulerCase(
        "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, pipeline="DDPMPipeline", random=True
    ),
    *_variants(
        "FlowMatchHeunDiscreteScheduler",
        {"shift": 3.0},
        pipeline="DDPMPipeline",
        calls=two_but_in_the_last,
        note="two U-Net calls per step, and every call counts as a step",
    ),
    *_variants(
        "FlowMatchLCMScheduler", *_SIGMAS, {"shift": 3.0}, {"invert_sigmas": True}, pipeline="DDPMPipeline", random=True
    ),
    *_variants(
        "LTXEulerAncestralRFScheduler",
        pipeline="DDPMPipeline",
        random=True,
        note="made for a video transformer; works with U-Nets",
    ),
    SchedulerCase("LTXEulerAncestralRFScheduler", {"eta": 0.0}, pipeline="DDPMPipeline"),
]

CASES: tuple[SchedulerCase, ...] = (
    *_DENOISING_DIFFUSION,
    *_MULTISTEP,
    *_DIFFERENTIAL_EQUATION,
    *_CONSISTENCY,
    *_FLOW_MATCHING,
)

OWN_PIPELINES: dict[str, tuple[str, ...]] = {
    "DDPMWuerstchenScheduler": (
        "StableCascadeDecoderPipeline",
        "StableCascadePriorPipeline",
        "WuerstchenDecoderPipeline",
    ),
    "KarrasVeScheduler": ("KarrasVePipeline",),
    "RePaintScheduler": ("RePaintPipeline",),
    "ScoreSdeVeScheduler": ("ScoreSdeVePipeline",),
}
"""Schedulers with steps of another kind, by the pipelines that know how to use them; tried with these."""

_NO_NOISE_LEVEL = "init_noise_sigma"
_NO_GENERATOR = "unexpected keyword argument 'generator'"

NOT_TAKEN: tuple[UntakenScheduler, ...] = (
    UntakenScheduler(
        "AmusedScheduler",
        "unmasks image tokens for the transformer of aMUSEd",
        (_NO_NOISE_LEVEL, "must match the size"),
        options={"mask_token_id": 0},
    ),
    UntakenScheduler(
        "BlockRefinementScheduler",
        "unmasks blocks of text tokens for language models",
        (_NO_NOISE_LEVEL, "too many values to unpack"),
    ),
    UntakenScheduler(
        "CogVideoXDPMScheduler",
        "its step requires the last prediction too; for the transformer of CogVideoX",
        ("'timestep_back' and 'sample'", "'timestep_back' and 'sample'"),
    ),
    UntakenScheduler(
        "ConsistencyDecoderScheduler",
        "has the two steps of the consistency decoder, which is an autoencoder",
        ("more than 2 inference steps are not supported", "more than 2 inference steps are not supported"),
    ),
    UntakenScheduler(
        "DiscreteDDIMScheduler", "replaces text tokens for language models", (_NO_NOISE_LEVEL, "must match the size")
    ),
    UntakenScheduler(
        "EntropyBoundScheduler", "replaces text tokens for language models", (_NO_NOISE_LEVEL, "must match the size")
    ),
    UntakenScheduler(
        "FlowMapEulerDiscreteScheduler",
        "steps from any timestep to any other, for the video transformer of AnyFlow",
        (_NO_NOISE_LEVEL, _NO_GENERATOR),
    ),
    UntakenScheduler(
        "HeliosDMDScheduler",
        "its timesteps belong to the stages of the video transformer of Helios",
        ("None", "None"),
    ),
    UntakenScheduler(
        "HeliosScheduler",
        "its timesteps belong to the stages of the video transformer of Helios",
        ("None", "None"),
    ),
    UntakenScheduler(
        "MiniMaxH3Scheduler",
        "flow matching in the opposite direction, for the video transformer of MiniMax",
        (_NO_NOISE_LEVEL, _NO_GENERATOR),
    ),
    UntakenScheduler(
        "PiflowScheduler",
        "its network predicts a policy for many small steps; for the transformer of Kandinsky 6",
        (_NO_NOISE_LEVEL, _NO_GENERATOR),
    ),
    UntakenScheduler(
        "RFD4ProteinaScheduler",
        "moves the atoms of proteins, for a transformer",
        (_NO_NOISE_LEVEL, "'emit_mask'"),
        options={"schedule_mode": "power", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0, "tail_steps": 1},
    ),
    UntakenScheduler(
        "SCMScheduler",
        "has the two steps of the continuous-time consistency models; for the transformer of Sana Sprint",
        ("not supported when num_inference_steps != 2", "not supported when num_inference_steps != 2"),
    ),
    UntakenScheduler(
        "ScoreSdeVpScheduler",
        "has `step_pred` instead of `step`, and no pipeline of diffusers uses it",
        (_NO_NOISE_LEVEL, "no attribute 'step'"),
    ),
    UntakenScheduler(
        "VQDiffusionScheduler",
        "replaces image tokens for the transformer of VQ-Diffusion",
        (_NO_NOISE_LEVEL, "one_hot is only applicable to index tensor"),
        options={"num_vec_classes": 5},
    ),
)
