"""The little world of the model: scenes of one to three objects, and the captions for them."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "big")  # medium has no word
TEXTURES = ("plain", "striped", "spotted", "checkered")  # plain has no word
BACKGROUNDS = (  # the first, a light studio backdrop, has no phrase
    "",
    "on a grey table",
    "on sand",
    "on grass",
    "on snow",
    "at night",
    "at dusk",
)
RELATIONS = ("left of", "right of", "above", "below")
THIRD_PLACES = ("above", "below", "on the left", "on the right")

MAX_OBJECTS = 3
HELD_OUT_FILE = Path(__file__).with_name("held_out.txt")
HELD_OUT_SHARE = 10  # one combination of coloured shapes in this many is never trained on


@dataclass(frozen=True)
class SceneObject:
    """One object by its words."""

    colour: str
    shape: str
    size: str = "medium"
    texture: str = "plain"

    @property
    def phrase(self) -> str:
        """The object with its article, such as "an orange star"."""
        words = [] if self.size == "medium" else [self.size]
        words += [] if self.texture == "plain" else [self.texture]
        words += [self.colour, self.shape]
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


@dataclass(frozen=True)
class Scene:
    """Objects, how the first stands to the second, where the third is, and the background."""

    objects: tuple[SceneObject, ...]
    relation: str = ""
    third_place: str = ""
    background: str = ""

    @property
    def caption(self) -> str:
        """The scene in words."""
        text = self.objects[0].phrase
        if len(self.objects) > 1:
            text += f" {self.relation} {self.objects[1].phrase}"
        if len(self.objects) > 2:
            text += f", with {self.objects[2].phrase} {self.third_place}"
        return f"{text} {self.background}".strip()

    @property
    def is_held_out(self) -> bool:
        """Whether this combination of coloured shapes is kept out of training."""
        pairs = sorted(f"{item.colour} {item.shape}" for item in self.objects)
        digest = hashlib.sha256("|".join(pairs).encode()).digest()
        return digest[0] % HELD_OUT_SHARE == 0

    @property
    def places(self) -> list[tuple[float, float]]:
        """The centre of each object, (x, y) as shares of the picture's width and height."""
        if len(self.objects) == 1:
            return [(0.5, 0.5)]
        near, far = 0.26, 0.74
        across = 0.5
        if self.third_place in ("above", "on the left"):
            across = far
        elif self.third_place in ("below", "on the right"):
            across = near
        horizontal = self.relation in ("left of", "right of")
        first = near if self.relation in ("left of", "above") else far
        second = near + far - first
        third = near + far - across
        if horizontal:
            places = [(first, across), (second, across), (0.5, third)]
        else:
            places = [(across, first), (across, second), (third, 0.5)]
        return places[: len(self.objects)]


_OBJECT = (
    rf"an? (?:(small|big) )?(?:(striped|spotted|checkered) )?({'|'.join(COLOURS)}) "
    rf"({'|'.join(SHAPES)})"
)
_CAPTION = re.compile(
    rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})?"
    rf"(?:, with {_OBJECT} ({'|'.join(THIRD_PLACES)}))?"
    rf"(?: ({'|'.join(BACKGROUNDS[1:])}))?"
)


def parse_caption(caption: str) -> Scene:
    """The scene that a caption of this world describes."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f"not a caption of this world: {caption!r}")
    found = match.groups()
    objects = [
        SceneObject(colour, shape, size or "medium", texture or "plain")
        for size, texture, colour, shape in (found[0:4], found[5:9], found[9:13])
        if shape
    ]
    return Scene(tuple(objects), found[4] or "", found[13] or "", found[14] or "")


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
        if not scene.is_held_out:
            scenes.append(scene)
    return scenes


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with held-out combinations only, all captions different."""
    rng = random.Random(f"held out {seed}")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = sample_scene(rng)
        if scene.is_held_out:
            scenes.setdefault(scene.caption, scene)
    return list(scenes.values())


def read_held_out() -> list[str]:
    """The held-out captions kept for evaluation."""
    return HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    lines = [scene.caption for scene in held_out_scenes(256, seed=0)]
    HELD_OUT_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
