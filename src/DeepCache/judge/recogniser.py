"""A small convolutional network that finds the objects in images of the model `shapes`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from DeepCache.judge.captions import COLOURS, SHAPES

SIDE = 64  # width and height in pixels of the images
GRID = 16  # width and height in cells of the maps
_THRESHOLD = 0.3  # the lowest peak that counts as an object


@dataclass(frozen=True)
class Detection:
    """An object found in an image, its centre in shares of the width and height from the top left."""

    colour: str
    shape: str
    x: float
    y: float
    score: float


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Recogniser(nn.Module):
    """Maps of where objects have their centres, and of the colour and the shape of the object centred there.

    Example:
        >>> presence, colour, shape = Recogniser().eval()(torch.zeros(1, 3, 64, 64))
        >>> presence.shape, colour.shape, shape.shape
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 8, 16, 16]), torch.Size([1, 7, 16, 16]))
    """

    def __init__(self) -> None:
        super().__init__()
        layers = [_layer(3, 16, 2), _layer(16, 32), _layer(32, 64, 2), *(_layer(64, 64) for _ in range(5))]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(64, 1 + len(COLOURS) + len(SHAPES), 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of presence, colour and shape, each (N, classes, 16, 16), of images (N, 3, 64, 64) in -1..1."""
        presence, colour, shape = self.head(self.body(image)).split([1, len(COLOURS), len(SHAPES)], dim=1)
        return presence, colour, shape

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[list[Detection]]:
        """The objects in each of the images (N, 3, 64, 64) in -1..1, highest score first."""
        presence, colour, shape = self(image)
        heat = presence.sigmoid()
        peak = (heat == functional.max_pool2d(heat, 5, 1, 2)) & (heat > _THRESHOLD)
        colours, shapes = colour.argmax(1), shape.argmax(1)
        found: list[list[Detection]] = [[] for _ in image]
        for n, _, row, column in peak.nonzero().tolist():
            colour_name, shape_name = COLOURS[int(colours[n, row, column])], SHAPES[int(shapes[n, row, column])]
            x, y = (column + 0.5) / GRID, (row + 0.5) / GRID
            found[n].append(Detection(colour_name, shape_name, x, y, float(heat[n, 0, row, column])))
        return [sorted(items, key=lambda item: -item.score) for items in found]
