"""The recogniser that judges samples: a small convnet trained on renders alone.

On a grid of 16×16 cells it tells where the centres of objects are (a heat map), and for each
cell the colour and the shape of the object centred there. In its training objects stand anywhere,
not only where captions put them, so it has no habit to see them at the right places.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from training.captions import COLOURS, SHAPES, Scene, held_out_scenes, training_scenes
from training.progress import CsvLog, cosine_rate, progress_bar, set_rate
from training.scenes import render_uint8, scatter
from training.vae import to_unit

GRID = 16
RATE = 3e-3
BATCH = 64
POOL = 12_000
TOLERANCE = 0.15  # how far from its place an object may be, as a share of the picture's width
THRESHOLD = 0.3  # the least height of a peak that counts as an object


@dataclass(frozen=True)
class Detection:
    """An object found in a picture."""

    colour: str
    shape: str
    x: float
    y: float
    score: float


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Recogniser(nn.Module):
    """Pictures in -1 to 1 to maps of presence, colour and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(3, 16, 2),
            _layer(16, 32),
            _layer(32, 64, 2),
            *(_layer(64, 64) for _ in range(5)),
        )
        self.head = nn.Conv2d(64, 1 + len(COLOURS) + len(SHAPES), 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of presence, colour and shape, each shaped (batch, classes, 16, 16)."""
        maps = self.head(self.body(image))
        presence, colour, shape = maps.split([1, len(COLOURS), len(SHAPES)], dim=1)
        return presence, colour, shape

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[list[Detection]]:
        """The objects in each picture, the surest first."""
        presence, colour, shape = self(image)
        heat = presence.sigmoid()
        peak = (heat == functional.max_pool2d(heat, 5, 1, 2)) & (heat > THRESHOLD)
        colours, shapes = colour.argmax(1), shape.argmax(1)
        found: list[list[Detection]] = [[] for _ in image]
        for n, _, row, column in peak.nonzero().tolist():
            found[n].append(
                Detection(
                    COLOURS[colours[n, row, column]],
                    SHAPES[shapes[n, row, column]],
                    (column + 0.5) / GRID,
                    (row + 0.5) / GRID,
                    float(heat[n, 0, row, column]),
                )
            )
        return [sorted(items, key=lambda item: -item.score) for items in found]


@dataclass
class Verdict:
    """What a picture shows of the objects that its caption asks for."""

    objects: int = 0
    right: int = 0  # right colour, shape and place
    colour: int = 0  # right colour at the place
    shape: int = 0  # right shape at the place
    place: int = 0  # something at the place
    pictures: int = 0
    pictures_right: int = 0  # all objects right, and no more objects than asked for

    def add(self, scene: Scene, found: Sequence[Detection]) -> bool:
        """Count one picture; true where all of it is right."""
        right = 0
        for item, (x, y) in zip(scene.objects, scene.places, strict=True):
            near = [f for f in found if max(abs(f.x - x), abs(f.y - y)) <= TOLERANCE]
            self.objects += 1
            self.place += bool(near)
            self.colour += any(f.colour == item.colour for f in near)
            self.shape += any(f.shape == item.shape for f in near)
            right += any((f.colour, f.shape) == (item.colour, item.shape) for f in near)
        whole = right == len(scene.objects) == len(found)
        self.right += right
        self.pictures += 1
        self.pictures_right += whole
        return whole

    def shares(self) -> dict[str, float]:
        """The shares, from nought to one."""
        return {
            "objects_right": self.right / self.objects,
            "colour_right": self.colour / self.objects,
            "shape_right": self.shape / self.objects,
            "place_right": self.place / self.objects,
            "pictures_right": self.pictures_right / self.pictures,
        }


def judge(recogniser: Recogniser, scenes: Sequence[Scene], images: Tensor) -> Verdict:
    """Judge pictures (in -1 to 1) against their scenes."""
    verdict = Verdict()
    found = [item for part in images.split(64) for item in recogniser.detect(part)]
    for scene, items in zip(scenes, found, strict=True):
        verdict.add(scene, items)
    return verdict


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
def _through_vae(pixels: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """Pictures as the autoencoder gives them back from slightly noisy latents."""
    parts = []
    for part in pixels.split(64):
        latents = vae.encode(to_unit(part)).latent_dist.mean
        noise = 0.2 * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents + noise / vae.config.scaling_factor).sample
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def _soften(image: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of the pictures blurred and a quarter noisy."""
    parts = list(image.split(len(image) // 4))
    parts[0] = functional.avg_pool2d(functional.pad(parts[0], (1,) * 4, mode="reflect"), 3, 1)
    parts[1] = parts[1] + 0.06 * torch.randn(parts[1].shape, generator=generator)
    return torch.cat(parts).clamp(-1, 1)


def train_recogniser(folder: Path, log: CsvLog, seed: int, steps: int) -> None:
    """Train the recogniser and save it as ``folder / "recogniser.safetensors"``."""
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    recogniser = Recogniser()
    scenes = training_scenes(POOL, seed + 1)
    centres = scatter(scenes, random.Random(seed))
    pixels = render_uint8(scenes, seed + 1, centres)
    generator = torch.Generator().manual_seed(seed)
    soft = POOL // 4
    pixels[:soft] = _through_vae(pixels[:soft], vae, generator)
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
    save_file(recogniser.state_dict(), folder / "recogniser.safetensors")
    share = measure_recogniser(load_recogniser(folder), seed)
    print(f"recogniser: {100 * share:.2f} % of objects right on held-out renders")


def load_recogniser(folder: Path) -> Recogniser:
    """The trained recogniser."""
    recogniser = Recogniser()
    recogniser.load_state_dict(load_file(folder / "recogniser.safetensors"))
    return recogniser.eval()


def measure_recogniser(recogniser: Recogniser, seed: int, count: int = 1024) -> float:
    """The share of objects that it finds right on renders of held-out scenes."""
    scenes = held_out_scenes(count, seed)
    images = to_unit(render_uint8(scenes, seed + 2))
    return judge(recogniser, scenes, images).shares()["objects_right"]
