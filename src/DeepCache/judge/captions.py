"""The prompts of the model `shapes`: scenes of one to three objects, and the captions that describe them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from DeepCache.text import shown

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "big")  # medium has no word
TEXTURES = ("plain", "striped", "spotted", "checkered")  # plain has no word
# The first, a light studio backdrop, has no phrase.
BACKGROUNDS = ("", "on a grey table", "on sand", "on grass", "on snow", "at night", "at dusk")
RELATIONS = ("left of", "right of", "above", "below")
THIRD_PLACES = ("above", "below", "on the left", "on the right")
MAX_OBJECTS = 3


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Example:
        >>> SceneObject("orange", "star", size="big").phrase
        'a big orange star'
    """

    colour: str
    shape: str
    size: str = "medium"
    texture: str = "plain"

    @property
    def phrase(self) -> str:
        """The object with its article."""
        words = [] if self.size == "medium" else [self.size]
        words += [] if self.texture == "plain" else [self.texture]
        words += [self.colour, self.shape]
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


@dataclass(frozen=True)
class Scene:
    """One to three objects, the relation of the first to the second, the place of the third, and the background.

    Example:
        >>> Scene((SceneObject("red", "circle"), SceneObject("blue", "square")), "left of").caption
        'a red circle left of a blue square'
    """

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
    def places(self) -> list[tuple[float, float]]:
        """The centre of each object, (x, y) as shares of the image's width and height from the top left."""
        if len(self.objects) == 1:
            return [(0.5, 0.5)]
        near, far = 0.26, 0.74
        first, second = (near, far) if self.relation in ("left of", "above") else (far, near)
        # A third object moves the first two to the opposite side.
        across = {"above": far, "on the left": far, "below": near, "on the right": near}.get(self.third_place, 0.5)
        places = [(first, across), (second, across), (0.5, near + far - across)]
        if self.relation in ("above", "below"):
            places = [(y, x) for x, y in places]
        return places[: len(self.objects)]


_OBJECT = rf"an? (?:(small|big) )?(?:(striped|spotted|checkered) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT}(?:, with {_OBJECT} ({'|'.join(THIRD_PLACES)}))?)?"
    rf"(?: ({'|'.join(BACKGROUNDS[1:])}))?"
)


def parse_caption(caption: str) -> Scene:
    """The scene that a caption describes; `Scene.caption` is its inverse. Other texts raise a `ValueError`.

    Example:
        >>> scene = parse_caption("a big red circle above a blue square at night")
        >>> scene.objects[0], scene.places[0]
        (SceneObject(colour='red', shape='circle', size='big', texture='plain'), (0.5, 0.26))
    """
    match = _CAPTION.fullmatch(caption)
    if match is not None:
        found = match.groups()
        objects = [
            SceneObject(colour, shape, size or "medium", texture or "plain")
            for size, texture, colour, shape in (found[0:4], found[5:9], found[9:13])
            if shape
        ]
        scene = Scene(tuple(objects), found[4] or "", found[13] or "", found[14] or "")
        # A third object stands beside the line of the first two.
        sides = THIRD_PLACES[2:] if scene.relation in ("above", "below") else THIRD_PLACES[:2]
        if scene.caption == caption and scene.third_place in ("", *sides):
            return scene
    raise ValueError(
        f"{shown(caption)} is not a prompt of the model 'shapes'; write one as 'a red circle left of a big blue "
        "square, with a striped green star above on snow' (its model card lists the words)"
    )
