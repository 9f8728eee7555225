"""Paint postcards: procedural 64x64 pictures whose captions fix only the coarse content.

A caption names time of day, place, number, colour and kind of object. Everything else (ridges, clouds,
strokes, positions, sizes, tints) is drawn afresh for each picture, so two pictures of one caption are
clearly different images. That freedom is what makes "replicated" mean something on the testbed.

Every picture is a function of `(seed, index)` alone: one `numpy` generator per picture, so any picture can
be painted again without the others. Random numbers are drawn per picture, pixels are computed for the whole
batch at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from dori.testbed import objects
from dori.testbed.canvas import IMAGE_SIZE, SUPERSAMPLING, Canvas, soft
from dori.testbed.captions import ATTRIBUTES, SLOTS, caption

BATCH = 64
MAX_RIDGES, STROKES, STARS, MAX_OBJECTS = 3, 22, 24, 3

# By time of day: sky at the top, sky at the horizon, sun or moon.
_SKY_TOP = {
    "dawn": (0.45, 0.42, 0.68),
    "day": (0.24, 0.52, 0.86),
    "dusk": (0.28, 0.16, 0.42),
    "night": (0.03, 0.05, 0.16),
}
_SKY_LOW = {
    "dawn": (0.98, 0.76, 0.66),
    "day": (0.78, 0.90, 0.97),
    "dusk": (0.98, 0.50, 0.26),
    "night": (0.14, 0.20, 0.40),
}
_SUN = {
    "dawn": (1.0, 0.90, 0.72),
    "day": (1.0, 0.97, 0.80),
    "dusk": (1.0, 0.72, 0.36),
    "night": (0.92, 0.94, 0.98),
}
_GROUND = {
    "sea": (0.16, 0.42, 0.56),
    "mountains": (0.40, 0.44, 0.40),
    "desert": (0.86, 0.68, 0.42),
    "meadow": (0.38, 0.60, 0.26),
}
_RIDGE = {
    "sea": (0.40, 0.50, 0.56),
    "mountains": (0.42, 0.40, 0.50),
    "desert": (0.74, 0.48, 0.32),
    "meadow": (0.30, 0.48, 0.34),
}
# Ridge height and roughness (share of the picture; weight of the finer octaves).
_RELIEF = {"sea": (0.07, 0.55), "mountains": (0.30, 0.75), "desert": (0.12, 0.25), "meadow": (0.13, 0.40)}


def draw_scene(seed: int, index: int, fixed: dict[str, str] | None = None) -> dict:
    """Draw the random numbers of one picture (no pixels yet).

    `fixed` overrides attributes by name. The free numbers do not depend on the attributes, so a template
    group can share one scene and change a single attribute.
    """
    rng = np.random.default_rng([seed, index])
    scene = {slot: str(rng.choice(ATTRIBUTES[slot])) for slot in SLOTS}
    scene["phrase"] = int(rng.integers(1 << 16))
    scene |= {
        "u": rng.random(48, dtype=np.float32),
        "ridges": rng.random((MAX_RIDGES, 33), dtype=np.float32),
        "clouds": rng.random((3, 12, 12), dtype=np.float32),
        "texture": rng.random((16, 16), dtype=np.float32),
        "strokes": rng.random((STROKES, 5), dtype=np.float32),
        "stars": rng.random((STARS, 3), dtype=np.float32),
        "objects": rng.random((MAX_OBJECTS, 6), dtype=np.float32),
    }
    return scene | (fixed or {})


def paint(
    seed: int,
    indices: Iterable[int],
    fixed: Sequence[dict[str, str] | None] | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Paint the pictures `indices` of `seed`.

    Returns `(images, table)`: uint8 `(B, 64, 64, 3)` and one row per picture with its attributes and
    caption.
    """
    indices = list(indices)
    fixed = fixed or [None] * len(indices)
    scenes = [draw_scene(seed, i, f) for i, f in zip(indices, fixed, strict=True)]
    chunks = [render(scenes[i : i + BATCH]) for i in range(0, len(scenes), BATCH)]
    images = np.concatenate(chunks) if chunks else np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    table = pd.DataFrame([{slot: s[slot] for slot in SLOTS} for s in scenes], columns=list(SLOTS))
    table["caption"] = [caption(s, s["phrase"]) for s in scenes]
    return images, table


@torch.no_grad()
def render(scenes: list[dict]) -> np.ndarray:
    """Turn drawn scenes into pixels: uint8 `(B, 64, 64, 3)`."""
    canvas = Canvas(scenes)
    _sky(canvas)
    _ridges(canvas)
    _ground(canvas)
    objects.draw(canvas)
    _finish(canvas)
    small = F.avg_pool2d(canvas.image, SUPERSAMPLING).clamp(0, 1)
    return (small * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _upsample(grid: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(grid[:, None], size=(size, size), mode="bicubic", align_corners=True)[:, 0]


def _fractal(grids: torch.Tensor, size: int) -> torch.Tensor:
    """Sum of three octaves of value noise from random grids `(B, 3, n, n)`: `(B, H, W)` about 0.5."""
    octaves = [
        _upsample(grids[:, k, :n, :n], size) * w for k, (n, w) in enumerate([(4, 0.5), (7, 0.32), (12, 0.18)])
    ]
    return torch.stack(octaves).sum(0)


def _sky(c: Canvas) -> None:
    top, low = c.colours(_SKY_TOP, "time", (1, 0.16)), c.colours(_SKY_LOW, "time", (4, 0.16))
    depth = (c.y / c.horizon).clamp(0, 1) ** (0.6 + 0.9 * c.scalar(7))
    c.image = top + (low - top) * depth[:, None]
    night = c.is_("time", "night")
    _stars(c, night.flatten() > 0)
    sun = c.colours(_SUN, "time", (8, 0.10))
    sun_x, sun_y = 0.08 + 0.84 * c.scalar(11), 0.06 + (c.horizon - 0.12) * c.scalar(12)
    radius = 0.035 + 0.055 * c.scalar(13)
    r = ((c.x - sun_x) ** 2 + (c.y - sun_y) ** 2).sqrt()
    c.over(sun, 0.45 * torch.exp(-((r / (3.2 * radius)) ** 2)))
    c.over(sun, soft(r - radius))
    noise = _fractal(c.stack("clouds"), c.image.shape[-1])
    cover = 0.40 + 0.22 * c.scalar(14)
    alpha = ((noise - cover) / 0.16).clamp(0, 1) * (0.35 + 0.6 * c.scalar(15)) * (1 - 0.55 * night)
    c.over((0.35 * low + 0.65 * c.light + 0.12 * (noise[:, None] - 0.5)).clamp(0, 1), alpha * (1 - c.y / 1.4))


def _stars(c: Canvas, chosen: torch.Tensor) -> None:
    stars, bright = c.stack("stars")[chosen], torch.zeros(int(chosen.sum()), *c.image.shape[2:])
    for x, y, size in (star[..., None, None].unbind(1) for star in stars.unbind(1)):
        bright += (0.3 + 0.7 * size) * torch.exp(-((c.x - x) ** 2 + (c.y - 0.6 * y) ** 2) / 4e-5)
    c.image[chosen] += (1 - c.image[chosen]) * bright.clamp(0, 1)[:, None]


def _ridges(c: Canvas) -> None:
    relief = torch.tensor([_RELIEF[s["place"]] for s in c.scenes])
    height, rough = relief[:, 0, None], relief[:, 1, None]
    colour, air = c.colours(_RIDGE, "place", (16, 0.22)) * c.light, c.colours(_SKY_LOW, "time", (4, 0.16))
    grids, count, size = c.stack("ridges"), 1 + (c.scalar(19) * MAX_RIDGES).floor(), c.image.shape[-1]
    for k in range(MAX_RIDGES):
        line = sum(
            F.interpolate(grids[:, None, k, :n], size=size, mode="linear", align_corners=True)[:, 0] * w
            for n, w in [(4, torch.ones_like(rough)), (9, 0.5 * rough), (17, 0.3 * rough), (33, 0.16 * rough)]
        ) / (1 + 0.96 * rough)
        line = (2.1 * (line - 0.5) + 0.5).clamp(0, 1.2)
        near = (k + 1) / MAX_RIDGES
        crest = c.horizon - (height * (1.35 - 0.75 * near) * (0.25 + 1.1 * line))[:, None]
        present = (count > k).float()
        shade = (air + (colour - air) * (0.35 + 0.6 * near)) * (
            0.92 + 0.16 * c.u[:, 20 + k, None, None, None]
        )
        c.over(shade, soft(crest - c.y, 0.012) * present)
        snow = c.is_("place", "mountains") * (0.05 + 0.10 * c.scalar(23)) * (line[:, None] - 0.42).clamp(0)
        c.over(
            0.93 * c.light,
            soft(c.y - crest - 1.6 * snow, 0.02) * soft(crest - c.y) * present * (snow > 0.004),
        )


def _ground(c: Canvas) -> None:
    colour = c.colours(_GROUND, "place", (24, 0.20)) * c.light
    texture = _upsample(c.stack("texture"), c.image.shape[-1])
    down = ((c.y - c.horizon) / (1 - c.horizon)).clamp(0, 1)
    land = colour[:, :, :] * (0.80 + 0.34 * down + 0.26 * (texture - 0.5))[:, None]
    sea = c.is_("place", "sea")
    wave = torch.sin(170 * (c.y - c.horizon) / (0.35 + down) + 6.3 * c.scalar(27) + 5 * texture)
    c.over(land + 0.06 * (sea * wave)[:, None], soft(c.horizon - c.y))
    _strokes(c, sea, c.is_("place", "meadow") + c.is_("place", "mountains"))


def _strokes(c: Canvas, sea: torch.Tensor, steep: torch.Tensor) -> None:
    """Short light and dark strokes on the ground: one brightness field, multiplied in at the end."""
    half = c.image.shape[-1] // 2  # the horizon is always below the middle
    x, y = c.x[:, half:], c.y[:, half:]
    shade = torch.ones(len(c.scenes), *y.shape[1:])
    for px, depth, length, tint, lean in (s[..., None, None].unbind(1) for s in c.stack("strokes").unbind(1)):
        py = c.horizon + (1 - c.horizon) * (0.06 + 0.92 * depth)
        along = (x - px) / ((0.03 + 0.11 * length) * (0.4 + depth))
        across = (y - py - (lean - 0.5) * (0.3 + 1.2 * steep) * (x - px)) / (0.004 + 0.010 * depth)
        tone = torch.where(tint > 0.5, 1.45 + 0.3 * sea, 0.62 + 0.2 * sea)
        shade += (tone - shade) * 0.8 * torch.exp(-along.square().square() - across.square())
    below = soft(c.horizon - y)
    c.image[:, :, half:] *= (1 + (shade - 1) * below)[:, None]


def _finish(c: Canvas) -> None:
    """A little vignette and an overall tint, as old prints have."""
    r = (c.x - 0.5) ** 2 + (c.y - 0.5) ** 2
    tint = 1 + 0.10 * (c.u[:, 28:31] - 0.5)
    c.image = c.image * tint[:, :, None, None] * (1 - 0.28 * c.scalar(31) * r)[:, None]
