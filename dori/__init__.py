"""Finding Dori, executable: measure, localise, attack and erase what a text-to-image model memorized."""

from dori.errors import DoriError

__all__ = ["DoriError"]
__version__ = "0.1.0"
