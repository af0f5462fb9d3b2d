"""Trains the recogniser of `DeepCache.judge` on renders alone.

In its training objects stand anywhere, not only where captions put them, so it has no habit of
seeing them at the right places.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from DeepCache.judge import Judge, shares
from DeepCache.judge.captions import COLOURS, SHAPES, Scene
from DeepCache.judge.recogniser import GRID, Recogniser
from training.captions import held_out_scenes, training_scenes
from training.progress import CsvLog, cosine_rate, progress_bar, set_rate
from training.scenes import render_uint8, scatter
from training.vae import to_unit

RATE = 3e-3
BATCH = 64
POOL = 12_000
LATENT_NOISE = 0.2  # in the latents of the training images that go through the autoencoder


def _targets(
    scenes: Sequence[Scene], centres: Sequence[Sequence[tuple[float, float]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The heat map, and the colour and the shape at the centres (-100 elsewhere)."""
    heat = torch.zeros(len(scenes), GRID, GRID)
    colour = torch.full((len(scenes), GRID, GRID), -100)
    shape = torch.full((len(scenes), GRID, GRID), -100)
    axis = torch.arange(GRID) + 0.5
    for n, scene in enumerate(scenes):
        for item, (x, y) in zip(scene.objects, centres[n], strict=True):
            squared = (axis[None, :] - x * GRID) ** 2 + (axis[:, None] - y * GRID) ** 2
            heat[n] = torch.maximum(heat[n], torch.exp(-squared / 2))
            near = squared < 2.0
            colour[n][near] = COLOURS.index(item.colour)
            shape[n][near] = SHAPES.index(item.shape)
    return heat, colour, shape


@torch.no_grad()
def through_vae(pixels: Tensor, vae: AutoencoderKL, generator: torch.Generator, scale: float = 0.0) -> Tensor:
    """Images (bytes) as the autoencoder decodes them from their latents with noise of this scale."""
    parts = []
    for part in pixels.split(64):
        latents = vae.encode(to_unit(part)).latent_dist.mean
        noise = scale * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents + noise / vae.config.scaling_factor).sample
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def _soften(image: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs a quarter of the images and adds noise to a quarter."""
    parts = list(image.split(len(image) // 4))
    parts[0] = functional.avg_pool2d(functional.pad(parts[0], (1,) * 4, mode="reflect"), 3, 1)
    parts[1] = parts[1] + 0.06 * torch.randn(parts[1].shape, generator=generator)
    return torch.cat(parts).clamp(-1, 1)


def train_recogniser(folder: Path, vae_folder: Path, log: CsvLog, seed: int, steps: int) -> None:
    """Train the recogniser and save it as ``folder / "recogniser.safetensors"``."""
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    recogniser = Recogniser()
    scenes = training_scenes(POOL, seed + 1)
    centres = scatter(scenes, random.Random(seed))
    pixels = render_uint8(scenes, seed + 1, centres)
    generator = torch.Generator().manual_seed(seed)
    soft = POOL // 4
    pixels[:soft] = through_vae(pixels[:soft], vae, generator, LATENT_NOISE)
    targets = _targets(scenes, centres)
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=RATE, weight_decay=1e-3)
    started, total = time.time(), 0.0
    with progress_bar() as bar:
        task = bar.add_task("recogniser", total=steps, note="")
        for step in range(steps):
            rate = cosine_rate(RATE, step / steps, step, warm_up=50)
            set_rate(optimizer, rate)
            chosen = torch.randint(POOL, (BATCH,), generator=generator)
            image = _soften(to_unit(pixels[chosen]), generator)
            heat, colour, shape = (target[chosen] for target in targets)
            presence, colours, shapes = recogniser(image)
            loss = (
                10 * functional.mse_loss(presence[:, 0].sigmoid(), heat)
                + functional.cross_entropy(colours, colour)
                + functional.cross_entropy(shapes, shape)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            if (step + 1) % 25 == 0:
                log.add("recogniser", step + 1, time.time() - started, total / 25, rate)
                bar.update(task, completed=step + 1, note=f"loss {total / 25:.4f}")
                total = 0.0
    path = folder / "recogniser.safetensors"
    save_file(recogniser.state_dict(), path)
    share = measure_recogniser(load_recogniser(path), seed)
    print(f"recogniser: {100 * share:.2f} % of objects right on held-out renders")


def load_recogniser(path: Path) -> Judge:
    """A judge with the recogniser of this file."""
    recogniser = Recogniser()
    recogniser.load_state_dict(load_file(path))
    return Judge(recogniser)


def measure_recogniser(judge: Judge, seed: int, count: int = 1024) -> float:
    """The share of objects that are judged right on renders of held-out scenes."""
    scenes = held_out_scenes(count, seed)
    verdicts = judge.verdicts(render_uint8(scenes, seed + 2) / 255, [scene.caption for scene in scenes])
    return shares(verdicts)["objects_right"]
