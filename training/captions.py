"""The captions that the model is trained on, and those that are held out."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from DeepCache.judge.captions import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    THIRD_PLACES,
    Scene,
    SceneObject,
)

HELD_OUT_FILE = Path(__file__).with_name("held_out.txt")
HELD_OUT_SHARE = 10  # one combination of coloured shapes in this many is never trained on


def is_held_out(scene: Scene) -> bool:
    """Whether this combination of coloured shapes is kept out of training."""
    pairs = sorted(f"{item.colour} {item.shape}" for item in scene.objects)
    digest = hashlib.sha256("|".join(pairs).encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def sample_scene(rng: random.Random) -> Scene:
    """A scene at random; nearly a third of them use no adjective but the colour."""
    bare = rng.random() < 0.3
    count = rng.choices((1, 2, 3), weights=(25, 45, 30))[0]
    objects: list[SceneObject] = []
    while len(objects) < count:
        item = SceneObject(
            colour=rng.choice(COLOURS),
            shape=rng.choice(SHAPES),
            size="medium" if bare else rng.choices(SIZES, weights=(22, 56, 22))[0],
            texture="plain" if bare else rng.choices(TEXTURES, weights=(55, 15, 15, 15))[0],
        )
        if all((item.colour, item.shape) != (other.colour, other.shape) for other in objects):
            objects.append(item)
    relation = rng.choice(RELATIONS) if count > 1 else ""
    third_place = ""
    if count > 2:
        beside = relation in ("above", "below")
        third_place = rng.choice(THIRD_PLACES[2:] if beside else THIRD_PLACES[:2])
    background = rng.choices(BACKGROUNDS, weights=(30, 12, 12, 11, 12, 11, 12))[0]
    return Scene(tuple(objects), relation, third_place, background)


def training_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes for training: none with a held-out combination."""
    rng = random.Random(f"train {seed}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng)
        if not is_held_out(scene):
            scenes.append(scene)
    return scenes


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with held-out combinations only, all captions different."""
    rng = random.Random(f"held out {seed}")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = sample_scene(rng)
        if is_held_out(scene):
            scenes.setdefault(scene.caption, scene)
    return list(scenes.values())


def read_held_out() -> list[str]:
    """The held-out captions kept for evaluation."""
    return HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    lines = [scene.caption for scene in held_out_scenes(256, seed=0)]
    HELD_OUT_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
