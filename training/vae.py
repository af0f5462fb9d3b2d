"""The autoencoder: images of 64×64 pixels to latents of 4×16×16 and back."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training.captions import held_out_scenes, training_scenes
from training.progress import (
    Average,
    Budget,
    CsvLog,
    cosine_rate,
    load_state,
    progress_bar,
    save_model,
    save_state,
    set_rate,
)
from training.scenes import render_uint8

RATE = 1.5e-3
CROP = 32  # most steps see crops; the last quarter sees whole images
POOL = 10_000
KL_WEIGHT = 1e-4
CHECKPOINT_SECONDS = 120.0


def build_vae() -> AutoencoderKL:
    """A small autoencoder with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 40, 56),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_unit(pixels: Tensor) -> Tensor:
    """Bytes to the model's range of -1 to 1."""
    return pixels.float() / 127.5 - 1


def _edges(image: Tensor) -> Tensor:
    """Differences between neighbours, both ways, in one row."""
    return torch.cat([image.diff(dim=-1).flatten(1), image.diff(dim=-2).flatten(1)], dim=1)


def vae_loss(vae: AutoencoderKL, image: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of pixels and of edges, a little absolute error, and a touch of KL."""
    posterior = vae.encode(image).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    pixels = functional.mse_loss(decoded, image) + 0.05 * functional.l1_loss(decoded, image)
    edges = functional.mse_loss(_edges(decoded), _edges(image))
    spread = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return pixels + 0.5 * edges + KL_WEIGHT * spread


def train_vae(folder: Path, log: CsvLog, seed: int, steps: int, deadline: float | None) -> None:
    """Train, or resume training, the autoencoder and save it to ``folder / "vae"``."""
    torch.manual_seed(seed)
    vae = build_vae()
    average = Average(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = folder / "vae.pt"
    step, seconds, fraction = 0, 0.0, 0.0
    state = load_state(checkpoint)
    if state is not None:
        vae.load_state_dict(state["model"])
        average.weights = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, fraction = state["step"], state["seconds"], state["fraction"]

    pool = render_uint8(training_scenes(POOL, seed), seed)
    generator = torch.Generator().manual_seed(seed + step)
    budget = Budget(steps, deadline, fraction)
    started, saved, total, count = time.time() - seconds, time.time(), 0.0, 0
    with progress_bar() as bar:
        task = bar.add_task("autoencoder", total=1000, note="")
        while (fraction := budget.fraction(step)) < 1:
            rate = cosine_rate(RATE, fraction, step, warm_up=100)
            set_rate(optimizer, rate)
            if fraction < 0.75:
                image = _crops(pool, 32, generator)
            else:
                image = to_unit(pool[torch.randint(len(pool), (12,), generator=generator)])
            loss = vae_loss(vae, image, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            average.update(vae, step)
            step, total, count = step + 1, total + loss.item(), count + 1
            if step % 50 == 0:
                log.add("vae", step, time.time() - started, total / count, rate)
                note = f"step {step} loss {total / count:.5f}"
                bar.update(task, completed=int(1000 * fraction), note=note)
                total, count = 0.0, 0
            if time.time() - saved > CHECKPOINT_SECONDS:
                saved = time.time()
                save_state(
                    checkpoint,
                    {
                        "model": vae.state_dict(),
                        "average": average.weights,
                        "optimizer": optimizer.state_dict(),
                        "step": step,
                        "seconds": saved - started,
                        "fraction": fraction,
                    },
                )
    log.add("vae", step, time.time() - started, loss.item(), 0.0)
    average.copy_to(vae)
    vae.eval()
    vae.register_to_config(scaling_factor=_scaling_factor(vae, pool[:1024]))
    save_model(vae, folder / "vae")
    print(f"autoencoder: {step} steps, {measure_psnr(vae, seed):.2f} dB on held-out renders")


def _crops(pool: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Random crops of random images."""
    chosen = torch.randint(len(pool), (batch,), generator=generator).tolist()
    corners = torch.randint(pool.shape[-1] - CROP + 1, (batch, 2), generator=generator).tolist()
    crops = [
        pool[index, :, top : top + CROP, left : left + CROP] for index, (top, left) in zip(chosen, corners, strict=True)
    ]
    return to_unit(torch.stack(crops))


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, pixels: Tensor) -> float:
    """One over the standard deviation of the latents."""
    means = [vae.encode(to_unit(part)).latent_dist.mean for part in pixels.split(64)]
    return round(1 / float(torch.cat(means).std()), 5)


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, seed: int, count: int = 256) -> float:
    """Mean PSNR in dB over renders of held-out scenes."""
    values = []
    for part in render_uint8(held_out_scenes(count, seed), seed + 1).split(64):
        image = to_unit(part)
        decoded = vae.decode(vae.encode(image).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - image) / 2).pow(2).flatten(1).mean(1)
        values.append(-10 * error.log10())
    mean = float(torch.cat(values).mean())
    return mean if math.isfinite(mean) else 0.0
