"""The things on a postcard, drawn as signed distances so that a whole batch is composited at once."""

from __future__ import annotations

import torch

from dori.testbed.canvas import Canvas

COLOURS = {
    "red": (0.84, 0.15, 0.13),
    "blue": (0.13, 0.30, 0.82),
    "yellow": (0.97, 0.82, 0.12),
    "green": (0.10, 0.60, 0.24),
    "white": (0.96, 0.96, 0.95),
    "violet": (0.56, 0.20, 0.72),
}
_COUNT = {"one": 1, "two": 2, "three": 3}
_AIRBORNE = ("balloon", "kite")
# Signed distance in object units (negative inside), brightness of the base colour
Layer = tuple[torch.Tensor, float]


def draw(canvas: Canvas) -> None:
    """Draw every picture's objects, far ones first.

    Positions are spread over the width so that all can be counted.
    """
    numbers = canvas.stack("objects")
    count = torch.tensor([_COUNT[s["number"]] for s in canvas.scenes])
    base = canvas.colours(COLOURS, "colour", (32, 0.12))
    light = 0.35 + 0.65 * canvas.light
    for k in range(numbers.shape[1]):
        slot = (k + 0.5 + 0.62 * (numbers[:, k, 0] - 0.5)) / count
        slot = (slot + canvas.u[:, 36] * (count == 1) * 0.5 - 0.25 * (count == 1)).clamp(0.12, 0.88)
        for name, shape in SHAPES.items():
            chosen = torch.tensor([s["object"] == name for s in canvas.scenes]) & (count > k)
            if chosen.any():
                _place(canvas, chosen, (slot, numbers[:, k]), (name, shape), base * light)


def _place(canvas: Canvas, chosen: torch.Tensor, where: tuple, what: tuple, colour: torch.Tensor) -> None:
    (slot, n), (name, shape) = where, what
    slot, n, colour = slot[chosen, None, None], n[chosen, :, None, None], colour[chosen]
    horizon, light = canvas.horizon[chosen], canvas.light[chosen]
    scale = 0.115 + 0.075 * n[:, 1]
    depth = 0.10 + 0.55 * n[:, 2]
    foot = horizon + (1 - horizon) * depth
    if name in _AIRBORNE:
        foot = 0.30 + (horizon - 0.24) * n[:, 2]
    x = (canvas.x - slot) / scale * torch.where(n[:, 3] > 0.5, 1.0, -1.0)
    y = (canvas.y - foot) / scale
    image = canvas.image[chosen]
    if name not in _AIRBORNE:
        shadow = torch.exp(-((x / 0.95) ** 4) - ((y + 0.02) / 0.16) ** 2)
        image = image * (1 - 0.45 * shadow[:, None])
    for distance, brightness in shape(x, y, n[:, 4]):
        alpha = (0.5 - distance / (0.012 / scale)).clamp(0, 1)[:, None]
        tone = (
            colour * brightness
            if brightness >= 0
            else light * torch.tensor([0.30, 0.22, 0.16])[:, None, None] * -brightness
        )
        image = image + (tone.clamp(0, 1) * (1 + 0.22 * x[:, None].clamp(-1, 1)) - image) * alpha
    canvas.image[chosen] = image


def _box(x: torch.Tensor, y: torch.Tensor, half_width, half_height) -> torch.Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _disc(x: torch.Tensor, y: torch.Tensor, radius) -> torch.Tensor:
    return (x**2 + y**2).sqrt() - radius


def _house(x, y, v) -> list[Layer]:
    height = 0.55 + 0.25 * v
    roof = torch.maximum(
        -(y + 2 * height + 0.75), torch.maximum((y + 2 * height), x.abs() - 0.95 * (y + 2 * height + 0.75))
    )
    return [
        (_box(x, y + height, 0.6, height), 1.0),
        (roof, -1.6),
        (_box(x - 0.22, y + 0.25, 0.13, 0.27), -1.2),
        (_box(x + 0.25, y + height, 0.13, 0.13), -3.2),
    ]


def _tree(x, y, v) -> list[Layer]:
    top = -1.25 - 0.35 * v
    crown = torch.minimum(
        _disc(x, y - top, 0.62),
        torch.minimum(_disc(x - 0.42, y - top - 0.36, 0.42), _disc(x + 0.44, y - top - 0.30, 0.40)),
    )
    return [(_box(x, y + 0.5, 0.10, 0.52), -1.5), (crown, 1.0), (_disc(x + 0.16, y - top + 0.16, 0.24), 1.18)]


def _balloon(x, y, v) -> list[Layer]:
    ball = _disc(x, (y + 1.0) * 0.92, 0.72 + 0.12 * v)
    stripe = torch.maximum(ball, (x.abs() - 0.16))
    return [
        (_box(x, y - 0.05, 0.16, 0.13), -1.6),
        (_box(x.abs() - 0.18, y + 0.2, 0.02, 0.2), -1.0),
        (ball, 1.0),
        (stripe, 0.66),
    ]


def _tower(x, y, v) -> list[Layer]:
    height = 1.05 + 0.35 * v
    width = 0.26 + 0.10 * (y / height + 2) * 0.5
    body = _box(x, y + height, width, height)
    band = torch.maximum(body, (torch.remainder(y + 0.2, 0.9) - 0.28))
    return [
        (body, 1.0),
        (band, 0.62),
        (_box(x, y + 2 * height + 0.16, 0.20, 0.18), -3.4),
        (_box(x, y + 2 * height + 0.38, 0.30, 0.08), -1.4),
    ]


def _tent(x, y, v) -> list[Layer]:
    height = 1.05 + 0.35 * v
    sides = torch.maximum(torch.maximum(y, -y - height), x.abs() - 0.95 * (y + height) / height)
    door = torch.maximum(sides + 0.08, x.abs() - 0.34 * (y + height * 0.75) / height)
    return [(sides, 1.0), (torch.maximum(sides, -x + 0.34), 0.74), (door, -1.0)]


def _kite(x, y, v) -> list[Layer]:
    dy = y + 0.9
    diamond = x.abs() / 0.62 + torch.where(dy < 0, -dy / 0.62, dy / (0.95 + 0.2 * v)) - 1
    tail = torch.maximum((x - 0.14 * torch.sin(6.5 * y)).abs() - 0.045, (y - 0.55).abs() - 0.6)
    return [(tail, -1.8), (diamond * 0.6, 1.0), (torch.maximum(diamond * 0.6, x), 0.70)]


SHAPES = {"house": _house, "tree": _tree, "balloon": _balloon, "tower": _tower, "tent": _tent, "kite": _kite}
