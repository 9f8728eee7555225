"""The network of the bundled copy descriptor: a small residual network with GeM pooling, as SSCD has it.

SSCD: Pizzi et al. 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _Block(nn.Module):
    """Residual block; the second normalisation starts at zero, so the block starts as the identity."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)
        self.skip = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Conv2d(width_in, width, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.skip(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class DescriptorNet(nn.Module):
    """Images `(B, 3, 64, 64)` in [0, 1] to descriptors `(B, dim)` of unit length."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(
                _Block(a, b, 1 if k == 0 else 2)
                for k, (a, b) in enumerate(zip([width, *widths[:-1]], widths, strict=True))
            )
        )
        self.head = nn.Linear(widths[-1], dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> descriptors (B, dim) of unit length."""
        features = self.blocks(self.stem(2 * images - 1))
        return F.normalize(self.head(gem(features)), dim=1)


def gem(features: torch.Tensor, p: float = 3.0) -> torch.Tensor:
    """Generalised-mean pooling `(B, C, H, W) -> (B, C)`: p = 1 is the mean, large p tends to the maximum."""
    return features.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)


def build_descriptor_net(dim: int, width: int) -> nn.Module:
    """An untrained descriptor network."""
    return DescriptorNet(dim, width)
