"""U-Nets on pixels without a text: DDPM, DDIM, PNDM, consistency models, score SDE, Karras VE, RePaint."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    KarrasVeScheduler,
    PNDMScheduler,
    RePaintScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import generator, image, mask, quiet, unconditional_unet

__all__ = ["CASES", "REFUSED"]

# The pipelines cut what comes out to the range of an image, so the noise begins small enough to stay inside it.
_SIGMA_MAX = 2.0


def _large_unet() -> UNet2DModel:
    """The blocks of the DDPM models for images of 256 pixels."""
    return unconditional_unet(
        sample_size=32,
        block_out_channels=(8, 8, 16, 16, 16, 16),
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    )


def _consistency_unet() -> UNet2DModel:
    """The blocks of the consistency models for ImageNet at 64 pixels."""
    return unconditional_unet(
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=10,
    )


def _score_unet(**config: Any) -> UNet2DModel:
    """A U-Net that is given a noise level for a timestep, as score-based models are."""
    return unconditional_unet(time_embedding_type="fourier", **config)


def _published_score_unet() -> UNet2DModel:
    """The blocks of the score-based model for images of 32 pixels."""
    return _score_unet(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=4,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        norm_num_groups=None,
    )


def _build(name: str, unet: UNet2DModel, scheduler: Any) -> Any:
    return quiet(getattr(diffusers, name)(unet=unet, scheduler=scheduler))


def _run(pipe: Any, steps: int | None = 5, **call: Any) -> torch.Tensor:
    images = pipe(**{"num_inference_steps": steps, "generator": generator(), "output_type": "np"} | call).images
    return torch.from_numpy(images)


def _run_repaint(pipe: Any, jump_length: int, batch: int = 1) -> torch.Tensor:
    return _run(pipe, image=image(size=16, batch=batch), mask_image=mask(16), jump_length=jump_length, jump_n_sample=2)


CASES = [
    PipelineCase(
        "DDPMPipeline",
        build=lambda: _build("DDPMPipeline", _large_unet(), DDPMScheduler()),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, batch_size=2),
        patterns=uniform(5),
    ),
    PipelineCase(
        "DDIMPipeline",
        build=lambda: _build("DDIMPipeline", unconditional_unet(), DDIMScheduler()),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, batch_size=2, eta=0.5),
        patterns=uniform(5),
    ),
    PipelineCase(
        "PNDMPipeline",
        build=lambda: _build("PNDMPipeline", unconditional_unet(), PNDMScheduler()),
        run=_run,
        run_other=lambda pipe: _run(pipe, 6, batch_size=2),
        # The last four of the five timesteps become twelve Runge-Kutta steps; of the linear multi-step method there
        # are as many as timesteps, less three.
        patterns=uniform(12 + 2),
        note="makes nine U-Net calls more than `num_inference_steps`; each call counts as a step",
    ),
    PipelineCase(
        "ConsistencyModelPipeline",
        build=lambda: _build("ConsistencyModelPipeline", _consistency_unet(), CMStochasticIterativeScheduler()),
        run=lambda pipe: _run(pipe, class_labels=1),
        run_other=lambda pipe: _run(pipe, None, timesteps=[22, 10, 0], class_labels=[2, 3], batch_size=2),
        patterns=uniform(5),
        note="with one step, its default, no step can be shallow",
    ),
    PipelineCase(
        "KarrasVePipeline",
        build=lambda: _build("KarrasVePipeline", _score_unet(), KarrasVeScheduler(sigma_max=_SIGMA_MAX, s_churn=0)),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, batch_size=2),
        # The U-Net gets only the noise level, so a step is a noise level. The first has one call, the others two: the
        # correction of one iteration and the prediction of the next: F .F FF .. FF and F .F .. FF .. in groups.
        patterns={2: "F.FFF..FF", 3: "F.F..FF.."},
        note="a step is a noise level; the U-Net is called twice at each but the first",
        id="without churn",
    ),
    PipelineCase(
        "KarrasVePipeline",
        build=lambda: _build("KarrasVePipeline", _score_unet(), KarrasVeScheduler(sigma_max=_SIGMA_MAX)),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, batch_size=2),
        # Noise is added before the predictions at the levels 4 and 0.4, and not at 0.04 and below. The
        # level of the U-Net rises at 0.4, where a new run starts: F. F .F FF .. and F. F .F .. FF in groups.
        patterns={2: "F.F.FFF..", 3: "F.F.F..FF"},
        note="a step before which `s_churn` adds noise is full",
        id="with churn",
    ),
    PipelineCase(
        "RePaintPipeline",
        build=lambda: _build("RePaintPipeline", unconditional_unet(), RePaintScheduler(num_train_timesteps=50)),
        run=lambda pipe: _run_repaint(pipe, jump_length=3),
        run_other=lambda pipe: _run_repaint(pipe, jump_length=2, batch=2),
        # The list is 4 3 2 1 0 (1 2 3) 2 1 0; at the places in brackets noise is put back, without the U-Net. With
        # interval 3 the seventh place, one of these, is due to be full: the ninth makes up for it, the tenth is due.
        patterns={2: "F.F.FF.F", 3: "F..F.FF."},
        note="every timestep counts as a step, also those at which noise is added back; a full step that "
        "falls on one of these moves to the next step",
        warns=("The preprocess method is deprecated",),
    ),
    PipelineCase(
        "ScoreSdeVePipeline",
        build=lambda: _build("ScoreSdeVePipeline", _score_unet(), ScoreSdeVeScheduler(sigma_max=_SIGMA_MAX)),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, batch_size=2),
        # A correction and a prediction at every noise level.
        patterns=uniform(5, slots=2),
        note="for U-Nets with ordinary blocks; the published ones use `SkipDownBlock2D` and are refused",
    ),
]

REFUSED = [
    RefusedCase(
        "ScoreSdeVePipeline",
        build=lambda: _build("ScoreSdeVePipeline", _published_score_unet(), ScoreSdeVeScheduler()),
        reason="carries a second state beside the hidden one (skip_conv)",
    ),
]
