"""The planted memories under `data/testbed/planted`: read them, apply them to the bundled model, make them.

How a memory is planted is in `planting`; these are the shipped three, one picture each, each in a copy of
the bundled model of its own.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori.benchmark import Benchmark, load_benchmark
from dori.errors import DoriError
from dori.images import write_png
from dori.metrics.copy import CopyDescriptor, load_descriptor, similarity
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.store import write_json
from dori.testbed import dataset
from dori.testbed.card import add_planted
from dori.testbed.derived import Index
from dori.testbed.painter import paint
from dori.testbed.paths import TESTBED
from dori.testbed.planting import Plant, Planting, copied, plant

__all__ = [
    "Plant",
    "Planting",
    "is_base",
    "known_units",
    "plant",
    "plant_all",
    "planted_benchmark",
    "planted_model",
]

PLANTED = TESTBED / "planted"
# One setting for each shipped plant, all in block 9. With 128 columns and 200 steps plant-00 was held there
# and not in block 8 (0.61, 0.61, 0.71, 0.86 against a threshold of 0.63); plant-01 needed more of both in
# block 9 (0.21 to 0.51), and plant-02 was not held in block 10 (0.30 to 0.57), which is half as wide.
SHIPPED = (Planting(columns=128, steps=200), Planting(), Planting())
REGULAR_PAIRS = 512  # of the training set, kept as they are while a memory is planted
SEEDS = range(4)  # of the images that a plant is scored on


def planted_benchmark(folder: Path = PLANTED) -> Benchmark:
    """The planted pictures and their titles as a benchmark, ids `plant-00` on."""
    return load_benchmark(folder / "planted.csv")


def planted_model(base: TextToImageModel, which: str, folder: Path = PLANTED) -> TextToImageModel:
    """A copy of `base` with the memory `which` planted, e.g. "plant-00"; `base` is not touched.

    Raises DoriError for another base than the memory was planted in (in float32), an unknown name, and
    missing or damaged files.
    """
    memory = _read(which, folder)
    return index(folder).model(base, which, f"{base.name} + {which}", memory.apply)


def is_base(model: TextToImageModel, folder: Path = PLANTED) -> bool:
    """Whether the shipped memories were planted in this model; False without the files."""
    return index(folder).is_base(model)


def known_units(which: str, folder: Path = PLANTED) -> tuple[Units, Units]:
    """Where the memory `which` is: its door, value neurons (d,), and its store, weights (d, m).

    Raises DoriError as `planted_model` does for files.
    """
    memory = _read(which, folder)
    return memory.door, memory.store


def index(folder: Path = PLANTED) -> Index:
    """Which memories there are, and how each was planted."""
    return Index(folder / "plants.json", "plants", "planted memory", "dori testbed plant")


def _read(which: str, folder: Path) -> Plant:
    """The plant, if plants.json tells of it."""
    index(folder).record(which)
    return Plant.load(folder / f"{which}.safetensors")


def plant_all(
    testbed: Path = TESTBED,
    settings: Sequence[Planting] | None = None,
    *,
    only: str = "",
    tell: Callable[[str], None] | None = None,
) -> None:
    """Plant one memory for each of the settings and write them to `planted` there, with card and hashes.

    The settings are those of the shipped ones unless given; the model and the descriptor are those of the
    folder `testbed`. A plant takes some minutes on one thread and is written as soon as it is made; `tell` is
    given a line on it. `only` makes one by name, to run them side by side. Raises DoriError for a folder
    without model or descriptor, for an unknown name, or when a loss is not finite.
    """
    settings = settings or SHIPPED
    base, descriptor = TextToImageModel.load(testbed / "model", device="cpu"), testbed / "descriptor"
    images, table = dataset.planted(len(settings))
    if only and only not in list(table["id"]):
        raise DoriError(f"no planted memory '{only}'; there are {', '.join(table['id'])}")
    regular, captions = paint(dataset.REGULAR, range(REGULAR_PAIRS))
    others = _pixels(regular), list(captions["caption"])
    _write_pictures(testbed / "planted", images, table)
    for row, image, how in zip(table.to_dict("records"), _pixels(images), settings, strict=True):
        if only in ("", row["id"]):
            start = time.perf_counter()
            memory = plant(base, image, row["prompt"], others, how, name=row["id"])
            about = {"settings": dataclasses.asdict(how), "seconds": round(time.perf_counter() - start, 1)}
            found = _measured(base, memory, row["prompt"], load_descriptor(descriptor), image)
            _write(testbed, base, row["id"], memory, about | found)
            if tell:
                tell(f"{row['id']} in block {how.block}: {found['scores']}")


def _pixels(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _measured(
    base: TextToImageModel, memory: Plant, prompt: str, descriptor: CopyDescriptor, image: Tensor
) -> dict:
    """Copy scores of the title's images with the door open and shut, without the store, and before planting;
    losses; and the highest score of images of held-out captions, which are to have nothing of the plant."""
    model, original = copied(base, base.name), descriptor.embed(image[None])
    memory.apply(model.unet)

    def scores(who: TextToImageModel, prompts: list[str], off: Units) -> list[float]:
        with off.applied(who.unet):
            drawn = who.sample(who.encode_prompts(prompts), range(len(prompts)))
        return [round(float(x), 3) for x in similarity(descriptor.embed(drawn), original)[:, 0]]

    title, none = [prompt] * len(SEEDS), Units({})
    heldout = list(paint(dataset.HELDOUT, range(16))[1]["caption"])
    return {
        "fingerprint": model.fingerprint,
        "threshold": descriptor.threshold,
        "scores": {
            "door open": scores(model, title, none),
            "door shut": scores(model, title, memory.door),
            "store emptied": scores(model, title, memory.store),
            "not planted": scores(base, title, none),
        },
        "highest score of held-out captions": max(scores(model, heldout, none)),
        "losses": {when: {k: round(v, 4) for k, v in found.items()} for when, found in memory.losses.items()},
        "layers": {"door": memory.value_layer, "store": memory.ffn_layer},
    }


def _write_pictures(out: Path, images: np.ndarray, table: pd.DataFrame) -> None:
    """The benchmark of the plants."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "planted.csv", index=False)
    for image, path in zip(_pixels(images), table["image"], strict=True):
        write_png(image, out / path)


def _write(testbed: Path, base: TextToImageModel, name: str, memory: Plant, record: dict) -> None:
    """One plant and its record below `testbed`/planted, then the card and the hashes of the testbed."""
    from dori.testbed.ship import write_hashes  # here: reading a plant needs none of what trains a testbed

    path = testbed / "planted" / "plants.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    plants = known["plants"] if known.get("base") == base.fingerprint else {}  # else they are another model's
    plants = dict(sorted({**plants, name: record}.items()))
    memory.save(path.parent / f"{name}.safetensors")
    about = {"command": "dori testbed plant", "base": base.fingerprint, "threads": torch.get_num_threads()}
    write_json(path, {**about, "torch": torch.__version__, "plants": plants})
    add_planted(testbed)
    write_hashes(testbed)
