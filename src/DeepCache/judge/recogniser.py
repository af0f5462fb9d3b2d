"""A small convolutional network that finds objects in images of the model `shapes`: centre, colour and shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from DeepCache.judge.captions import COLOURS, SHAPES

__all__ = ["GRID", "SIDE", "Detection", "Recogniser"]

SIDE = 64
"""Width and height in pixels of the images that the network reads."""
GRID = 16
"""Cells a side of the maps that it returns."""
_THRESHOLD = 0.3  # the least height of a peak that counts as an object


@dataclass(frozen=True)
class Detection:
    """An object found in an image.

    Args:
        colour: one of `COLOURS`.
        shape: one of `SHAPES`.
        x: its centre as a share of the width, from the left.
        y: its centre as a share of the height, from the top.
        score: the height of the peak, 0.3 to 1.
    """

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
        self.body = nn.Sequential(
            _layer(3, 16, 2),
            _layer(16, 32),
            _layer(32, 64, 2),
            *(_layer(64, 64) for _ in range(5)),
        )
        self.head = nn.Conv2d(64, 1 + len(COLOURS) + len(SHAPES), 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of presence, colour and shape, each (N, classes, 16, 16), of images (N, 3, 64, 64) in -1..1."""
        maps = self.head(self.body(image))
        presence, colour, shape = maps.split([1, len(COLOURS), len(SHAPES)], dim=1)
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
            found[n].append(
                Detection(
                    COLOURS[int(colours[n, row, column])],
                    SHAPES[int(shapes[n, row, column])],
                    (column + 0.5) / GRID,
                    (row + 0.5) / GRID,
                    float(heat[n, 0, row, column]),
                )
            )
        return [sorted(items, key=lambda item: -item.score) for items in found]
