"""A renderer of scenes: shapes as signed distances, with soft light, shadow and texture."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from DeepCache.judge.captions import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene

RESOLUTION = 64
PALETTE = {
    "red": (0.88, 0.13, 0.14),
    "orange": (0.98, 0.52, 0.07),
    "yellow": (0.98, 0.88, 0.16),
    "green": (0.13, 0.66, 0.22),
    "cyan": (0.12, 0.82, 0.86),
    "blue": (0.13, 0.30, 0.92),
    "purple": (0.52, 0.17, 0.74),
    "pink": (0.99, 0.52, 0.74),
}
RADII = {"small": 0.118, "medium": 0.155, "big": 0.205}  # shares of the image's width
ALONE = 1.4  # a single object is this much larger
# The light end and the dark end of each background.
GROUNDS = {
    "": ((0.93, 0.91, 0.87), (0.76, 0.73, 0.70)),
    "on a grey table": ((0.58, 0.59, 0.61), (0.36, 0.37, 0.40)),
    "on sand": ((0.87, 0.78, 0.62), (0.68, 0.56, 0.42)),
    "on grass": ((0.36, 0.46, 0.29), (0.19, 0.28, 0.17)),
    "on snow": ((0.96, 0.97, 0.99), (0.76, 0.83, 0.91)),
    "at night": ((0.17, 0.20, 0.33), (0.04, 0.05, 0.12)),
    "at dusk": ((0.72, 0.52, 0.50), (0.27, 0.23, 0.38)),
}


def _segment(x: Tensor, y: Tensor, ax: float, ay: float, bx: float, by: float) -> Tensor:
    """Distance to the segment from a to b."""
    ex, ey = bx - ax, by - ay
    t = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    return torch.hypot(x - ax - t * ex, y - ay - t * ey)


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon."""
    distance = torch.full_like(x, 10.0)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        distance = torch.minimum(distance, _segment(x, y, ax, ay, bx, by))
        if ay != by:
            crosses = ((y < ay) != (y < by)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
            inside ^= crosses
    return torch.where(inside, -distance, distance)


def _corners(count: int, radius: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star where an inner radius is given; one is on top."""
    total = count * (1 if inner is None else 2)
    found = []
    for index in range(total):
        angle = 2 * math.pi * index / total
        length = inner if inner is not None and index % 2 else radius
        found.append((length * math.sin(angle), -length * math.cos(angle)))
    return found


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a shape of radius about one; y points down."""
    if shape == "circle":
        return torch.hypot(x, y) - 0.95
    if shape == "ring":
        return (torch.hypot(x, y) - 0.72).abs() - 0.27
    if shape == "square":
        qx, qy = x.abs() - 0.80, y.abs() - 0.80
        return torch.hypot(qx.clamp(min=0), qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0)
    if shape == "triangle":
        return _polygon(x, y - 0.22, _corners(3, 1.18))
    if shape == "star":
        return _polygon(x, y - 0.06, _corners(5, 1.15, 0.50))
    if shape == "cross":
        a, b = x.abs(), y.abs()
        long, short = torch.maximum(a, b) - 0.98, torch.minimum(a, b) - 0.34
        corner = torch.hypot((a - 0.34).clamp(max=0), (b - 0.34).clamp(max=0))
        outside = torch.hypot(long.clamp(min=0), short.clamp(min=0))
        inner = torch.maximum(long, short)
        both = torch.minimum(a, b) > 0.34
        gap = torch.minimum(a, b) - 0.34
        inside = torch.where(torch.maximum(a, b) < 0.34, -corner, inner)
        return torch.where(both, torch.maximum(gap, inner), torch.where(inner > 0, outside, inside))
    if shape == "heart":
        hx, hy = x.abs() / 1.62, 0.52 - y / 1.62
        upper = torch.hypot(hx - 0.25, hy - 0.75) - math.sqrt(2) / 4
        slope = 0.5 * (hx + hy).clamp(min=0)
        tip = torch.minimum(torch.hypot(hx, hy - 1), torch.hypot(hx - slope, hy - slope))
        lower = tip * torch.where(hx > hy, 1.0, -1.0)
        return 1.62 * torch.where(hx + hy > 1, upper, lower)
    raise ValueError(f"no such shape: {shape}")


def _shape_field(kinds: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distances of many objects, each of its own kind."""
    field = torch.empty_like(x)
    for index, shape in enumerate(SHAPES):
        chosen = (kinds == index).nonzero().flatten()
        if len(chosen):
            field[chosen] = signed_distance(shape, x[chosen], y[chosen])
    return field


def _texture_field(kinds: Tensor, x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    """How much of the second tone each point shows, from 0 to 1."""

    def wave(along: Tensor) -> Tensor:
        return torch.sin(2 * math.pi * along / period)

    half = math.sqrt(0.5)
    fields = {
        "striped": torch.sigmoid(5 * wave(half * (x + y))),
        "spotted": torch.sigmoid(8 * (wave(x + period / 4) + wave(y + period / 4) - 0.5)),
        "checkered": torch.sigmoid(7 * wave(x * 0.56) * wave(y * 0.56)),
    }
    result = torch.zeros_like(x)
    for name, field in fields.items():
        result = torch.where((kinds == TEXTURES.index(name))[:, None, None], field, result)
    return result


def _background(kinds: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Smooth backgrounds: a slope of light, a vignette and, outdoors, gentle waves."""
    count = len(kinds)
    axis = (torch.arange(size) + 0.5) / size
    y, x = axis[None, :, None], axis[None, None, :]

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    ends = torch.tensor([GROUNDS[name] for name in BACKGROUNDS])[kinds]
    light, dark = ends[:, 0, :, None, None], ends[:, 1, :, None, None]
    slope = 0.12 + 0.45 * (x * pick(0.6, 1.0) + y * pick(0.7, 1.1)) * 0.8
    slope = slope + 0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    waves = torch.sin(
        2 * math.pi * (y * pick(1.6, 2.4) + 0.10 * torch.sin(2 * math.pi * (x + pick(0, 1)))) + pick(0, 2 * math.pi)
    )
    rough = torch.tensor([0.0, 0.0, 0.10, 0.08, 0.06, 0.0, 0.0])[kinds][:, None, None]
    slope = slope + rough * waves
    # Sky scenes are brighter where the sun or the moon stands: low at dusk, high at night.
    glow_x = pick(0.6, 0.9)
    moon = torch.exp(-(((x - glow_x) ** 2 + (y - 0.1) ** 2) / 0.10))
    slope = torch.where((kinds == BACKGROUNDS.index("at night"))[:, None, None], 0.95 - 0.9 * moon - 0.25 * y, slope)
    slope = torch.where(
        (kinds == BACKGROUNDS.index("at dusk"))[:, None, None],
        1.0 - 1.0 * torch.exp(-((y - pick(0.72, 0.8)) ** 2) / 0.12),
        slope,
    )
    return torch.lerp(light, dark, slope.clamp(0, 1)[:, None])


def render(scenes: Sequence[Scene], generator: torch.Generator, centres: Tensor | None = None) -> Tensor:
    """Images of the scenes, float RGB in 0 to 1, shaped (scene, 3, 64, 64).

    Objects stand where the caption says, up to a jitter, or at the given centres: one row of
    (x, y), as shares of the width, for each object of each scene in turn.
    """
    size = RESOLUTION
    night = BACKGROUNDS.index("at night")
    grounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    image = _background(grounds, generator, size)

    rows = [
        (n, SHAPES.index(o.shape), COLOURS.index(o.colour), TEXTURES.index(o.texture),
         SIZES.index(o.size), len(scene.objects) == 1, x, y)
        for n, scene in enumerate(scenes)
        for o, (x, y) in zip(scene.objects, scene.places, strict=True)
    ]  # fmt: skip
    table = torch.tensor(rows, dtype=torch.float32)
    owner, shape, colour, texture, scale = (table[:, i].long() for i in range(5))
    alone = table[:, 5]
    count = len(rows)

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    radius = torch.tensor([RADII[name] for name in SIZES])[scale] * size
    radius = radius * (1 + (ALONE - 1) * alone) * pick(0.95, 1.05)
    jitter = (0.02 + 0.03 * alone) * size
    if centres is None:
        centre_x = table[:, 6] * size + jitter * pick(-1, 1)
        centre_y = table[:, 7] * size + jitter * pick(-1, 1)
    else:
        centre_x, centre_y = (centres * size).unbind(1)
    angle = pick(-0.14, 0.14)

    axis = torch.arange(size) + 0.5
    grid_y, grid_x = axis[None, :, None], axis[None, None, :]
    dx = (grid_x - centre_x[:, None, None]).expand(-1, size, size)
    dy = (grid_y - centre_y[:, None, None]).expand(-1, size, size)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    r = radius[:, None, None]
    local_x, local_y = cos * dx + sin * dy, cos * dy - sin * dx
    distance = _shape_field(shape, local_x / r, local_y / r) * r  # in pixels
    cover = (0.5 - distance).clamp(0, 1)

    # A rounded edge: the surface turns away from the light towards the lower right.
    slope_y, slope_x = torch.gradient(distance, dim=(1, 2))
    edge = (1 + distance / (0.38 * r)).clamp(0, 1) ** 2
    facing = (-slope_x - 1.2 * slope_y).clamp(-1.5, 1.5) * edge
    sweep = -(dx + 1.3 * dy) / r
    shade = 1 + 0.15 * facing + 0.09 * sweep
    gloss = 0.30 * torch.exp(-((dx + 0.38 * r) ** 2 + (dy + 0.42 * r) ** 2) / (0.10 * r * r))

    period = (0.76 * radius).clamp(min=0.11 * size)[:, None, None]
    second = _texture_field(texture, local_x, local_y, period)
    spotted = (texture == TEXTURES.index("spotted"))[:, None, None]
    base = torch.tensor([PALETTE[name] for name in COLOURS])[colour][:, :, None, None]
    tone = torch.where(spotted[:, None], base + 0.55 * (1 - base), base * 0.68)
    paint = torch.lerp(base.expand(-1, -1, size, size), tone, second[:, None])
    paint = paint * shade[:, None]
    paint = paint + gloss[:, None] * (1 - paint)
    paint = paint * torch.where(grounds[owner] == night, 0.9, 1.0)[:, None, None, None]

    # The shadow is the same shape, moved and blurred by a wide ramp of its distance.
    move = 0.20
    offset = _shape_field(shape, local_x / r - move, local_y / r - 1.5 * move) * r
    shadow = 0.42 * torch.sigmoid(-(offset - 0.5) / (0.10 * r + 0.6))

    slots = _slots(owner, len(scenes))
    for slot in slots:  # shadows lie under all objects
        image[owner[slot]] = image[owner[slot]] * (1 - shadow[slot, None])
    for slot in slots:
        image[owner[slot]] = torch.lerp(image[owner[slot]], paint[slot].clamp(0, 1), cover[slot, None])
    return image.clamp(0, 1)


def _slots(owner: Tensor, scenes: int) -> list[Tensor]:
    """Rows grouped so that no group holds two objects of one scene."""
    starts = torch.searchsorted(owner, torch.arange(scenes))
    rank = torch.arange(len(owner)) - starts[owner]
    return [(rank == index).nonzero().flatten() for index in range(int(rank.max()) + 1)]


def scatter(scenes: Sequence[Scene], rng: random.Random) -> list[list[tuple[float, float]]]:
    """Centres anywhere in the image, apart from each other, regardless of the captions."""
    return [_scatter_one(scene, rng) for scene in scenes]


def _scatter_one(scene: Scene, rng: random.Random) -> list[tuple[float, float]]:
    grow = ALONE if len(scene.objects) == 1 else 1.0
    reach = [1.06 * grow * RADII[item.size] for item in scene.objects]
    for _ in range(100):
        spots = [(rng.uniform(r, 1 - r), rng.uniform(r, 1 - r)) for r in reach]
        if all(math.dist(spots[a], spots[b]) > reach[a] + reach[b] for a in range(len(spots)) for b in range(a)):
            return spots
    return scene.places


def render_uint8(
    scenes: Sequence[Scene],
    seed: int,
    centres: Sequence[Sequence[tuple[float, float]]] | None = None,
    chunk: int = 256,
) -> Tensor:
    """Many images as bytes, rendered in chunks."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(scenes), chunk):
        rows = None
        if centres is not None:
            rows = torch.tensor([xy for spots in centres[start : start + chunk] for xy in spots])
        image = render(scenes[start : start + chunk], generator, rows)
        parts.append((image * 255).round().to(torch.uint8))
    return torch.cat(parts)
