"""The batch of pictures being painted, and what the painter and its objects share."""

from __future__ import annotations

import numpy as np
import torch

IMAGE_SIZE = 64
SUPERSAMPLING = 2
# Light that multiplies the land, by time of day.
_LIGHT = {
    "dawn": (0.98, 0.86, 0.86),
    "day": (1.0, 1.0, 0.98),
    "dusk": (0.92, 0.66, 0.58),
    "night": (0.34, 0.40, 0.62),
}


class Canvas:
    """The batch being painted: `image (B, 3, H, W)`, pixel grids `x, y (1, H, W)` in [0, 1], and the
    scenes' numbers."""

    def __init__(self, scenes: list[dict]):
        size = IMAGE_SIZE * SUPERSAMPLING
        axis = (torch.arange(size) + 0.5) / size
        self.scenes = scenes
        self.y, self.x = axis[None, :, None].expand(1, size, size), axis[None, None, :].expand(1, size, size)
        self.image = torch.zeros(len(scenes), 3, size, size)
        self.u = self.stack("u")
        self.horizon = 0.52 + 0.20 * self.scalar(0)
        self.light = self.colours(_LIGHT, "time")

    def stack(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([s[name] for s in self.scenes]))

    def scalar(self, k: int) -> torch.Tensor:
        """Free number `k` of each picture, shaped `(B, 1, 1)` to broadcast over pixels."""
        return self.u[:, k, None, None]

    def colours(
        self, palette: dict[str, tuple], slot: str, jitter: tuple[int, float] | None = None
    ) -> torch.Tensor:
        """Palette colour of each picture `(B, 3, 1, 1)`, shifted by three free numbers from `jitter[0]`
        on."""
        colour = torch.tensor([palette[s[slot]] for s in self.scenes])
        if jitter:
            first, amount = jitter
            colour = colour + amount * (self.u[:, first : first + 3] - 0.5)
        return colour.clamp(0, 1)[:, :, None, None]

    def is_(self, slot: str, value: str) -> torch.Tensor:
        return torch.tensor([float(s[slot] == value) for s in self.scenes])[:, None, None]

    def over(self, colour: torch.Tensor, alpha: torch.Tensor) -> None:
        """Composite `colour (B, 3, 1|H, 1|W)` over the picture with coverage `alpha (B, H, W)`."""
        self.image += (colour - self.image) * alpha[:, None].clamp(0, 1)


def soft(distance: torch.Tensor, width: float = 0.008) -> torch.Tensor:
    """Coverage from a signed distance (negative inside), antialiased over `width`."""
    return (0.5 - distance / width).clamp(0, 1)
