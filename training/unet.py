"""The U-Net: Stable Diffusion 1.5's topology at a small width, trained on latents of renders."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.captions import training_scenes
from training.parallel import Replicas
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
from training.text_encoder import encode_captions
from training.vae import to_unit

RATE = 1e-3
BATCH = 32
PART = 16  # a batch is learnt in parts of this size, one a thread
POOL = 20_000
CAPTION_DROPOUT = 0.1
SNR_LIMIT = 5.0  # min-SNR weighting: the least noisy steps count less
CHECKPOINT_SECONDS = 180.0


def build_unet() -> UNet2DConditionModel:
    """A small U-Net with random weights."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(48, 64, 96, 96),
        cross_attention_dim=128,
        attention_head_dim=(2, 2, 3, 3),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


@torch.no_grad()
def cache_latents(folder: Path, seed: int) -> None:
    """Render the training scenes and keep their scaled latents and their tokens."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scenes = training_scenes(POOL, seed + 2)
    latents = []
    with progress_bar() as bar:
        task = bar.add_task("latents", total=POOL, note="")
        for start in range(0, POOL, 256):
            pixels = render_uint8(scenes[start : start + 256], seed + 1000 + start)
            for part in pixels.split(64):
                mean = vae.encode(to_unit(part)).latent_dist.mean
                latents.append((mean * vae.config.scaling_factor).half())
            bar.advance(task, len(pixels))
    ids = encode_captions(tokenizer, [scene.caption for scene in scenes])
    save_file({"latents": torch.cat(latents), "ids": ids}, folder / "latents.safetensors")


def _spread_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """Random timesteps that cover the whole range evenly within the batch."""
    shares = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return (shares * 1000).long().clamp(0, 999)


def _part_loss(
    noisy: Tensor,
    timesteps: Tensor,
    context: Tensor,
    noise: Tensor,
    weights: Tensor,
    unet: nn.Module,
    rows: Tensor,
) -> Tensor:
    """The share of some rows in the mean weighted error of a batch."""
    predicted = unet(noisy[rows], timesteps[rows], context[rows]).sample
    error = (predicted - noise[rows]).pow(2).flatten(1).mean(1)
    return (weights[rows] * error).sum() / len(noisy)


def train_unet(folder: Path, log: CsvLog, seed: int, steps: int, deadline: float | None) -> None:
    """Train, or resume training, the U-Net and save its averaged weights."""
    torch.manual_seed(seed)
    unet = build_unet()
    average = Average(unet, 0.999)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint = folder / "unet.pt"
    step, seconds, fraction = 0, 0.0, 0.0
    state = load_state(checkpoint)
    if state is not None:
        unet.load_state_dict(state["model"])
        average.weights = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, fraction = state["step"], state["seconds"], state["fraction"]

    pool = load_file(folder / "latents.safetensors")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    nothing = encode_captions(tokenizer, [""])
    alphas = build_scheduler().alphas_cumprod
    ratio = alphas / (1 - alphas)
    weights = ratio.clamp(max=SNR_LIMIT) / ratio

    generator = torch.Generator().manual_seed(seed + step)
    replicas = Replicas(unet, torch.get_num_threads())
    torch.set_num_threads(1)
    budget = Budget(steps, deadline, fraction)
    started, saved, total, count = time.time() - seconds, time.time(), 0.0, 0
    with progress_bar() as bar:
        task = bar.add_task("u-net", total=1000, note="")
        while (fraction := budget.fraction(step)) < 1:
            rate = cosine_rate(RATE, fraction, step, warm_up=200)
            set_rate(optimizer, rate)
            chosen = torch.randint(len(pool["latents"]), (BATCH,), generator=generator)
            latents = pool["latents"][chosen].float()
            dropped = torch.rand(BATCH, 1, generator=generator) < CAPTION_DROPOUT
            with torch.no_grad():
                ids = torch.where(dropped, nothing, pool["ids"][chosen])
                context = text_encoder(input_ids=ids).last_hidden_state
            noise = torch.randn(latents.shape, generator=generator)
            timesteps = _spread_timesteps(BATCH, generator)
            alpha = alphas[timesteps, None, None, None]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            loss = replicas.backward(
                partial(_part_loss, noisy, timesteps, context, noise, weights[timesteps]),
                torch.randperm(BATCH, generator=generator).split(PART),
            )
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            average.update(unet, step)
            step, total, count = step + 1, total + loss, count + 1
            if step % 50 == 0:
                log.add("unet", step, time.time() - started, total / count, rate)
                note = f"step {step} loss {total / count:.4f}"
                bar.update(task, completed=int(1000 * fraction), note=note)
                total, count = 0.0, 0
            if time.time() - saved > CHECKPOINT_SECONDS:
                saved = time.time()
                save_state(
                    checkpoint,
                    {
                        "model": unet.state_dict(),
                        "average": average.weights,
                        "optimizer": optimizer.state_dict(),
                        "step": step,
                        "seconds": saved - started,
                        "fraction": fraction,
                    },
                )
    torch.set_num_threads(len(replicas.models))
    log.add("unet", step, time.time() - started, loss, 0.0)
    average.copy_to(unet)
    unet.eval()
    save_model(unet, folder / "unet")
    print(f"u-net: {step} steps in {(time.time() - started) / 60:.0f} minutes")


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The trained U-Net, or the average so far while it is still in training."""
    if (folder / "unet").exists():
        return UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    state = load_state(folder / "unet.pt")
    if state is None:
        raise FileNotFoundError(f"no U-Net in {folder}")
    unet = build_unet()
    unet.load_state_dict(state["average"])
    return unet.eval()
