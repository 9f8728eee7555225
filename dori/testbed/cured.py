"""The mended models under `data/testbed/cured`: the bundled model after each of chapter 4's defences."""

from __future__ import annotations

from pathlib import Path

from dori.mitigation import delta
from dori.model import TextToImageModel
from dori.testbed.derived import Index
from dori.testbed.paths import TESTBED

CURED = TESTBED / "cured"


def index(folder: Path = CURED) -> Index:
    """Which defences there are, with what each was trained."""
    return Index(folder / "cured.json", "defences", "mended model", "dori testbed cure")


def cured_model(base: TextToImageModel, which: str, folder: Path = CURED) -> TextToImageModel:
    """A copy of `base` after the defence `which`, e.g. "adversarial"; `base` is not touched.

    Raises DoriError for another base than was trained, an unknown name, and missing or damaged files.
    """
    found = index(folder)
    name = f"{base.name}, {found.record(which)['label']}"
    return found.model(
        base, which, name, lambda unet: delta.apply(unet, delta.load(folder / f"{which}.safetensors"))
    )
