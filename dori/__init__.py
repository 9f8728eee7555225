"""Finding Dori, executable: measure, localise, attack and erase memorized images in text-to-image diffusion models."""

from dori.errors import DoriError

__all__ = ["DoriError"]
__version__ = "0.1.0"
