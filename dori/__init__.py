"""Finding Dori, executable: measure, localise, attack and erase what a text-to-image model memorized."""

import os

# Before transformers is imported: it then advises installing torchvision, which this package does without,
# and a line on stderr stops the build of the book.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from dori.errors import DoriError

__all__ = ["DoriError"]
__version__ = "0.1.0"
