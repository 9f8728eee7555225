"""The sets of pictures, each with a painter seed of its own, and what is remembered how often."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from dori.testbed.captions import ATTRIBUTES, SLOTS, invented_title
from dori.testbed.painter import draw_scene, paint
from dori.testbed.recipe import Recipe

# Painter seeds: one per set.
REGULAR, HELDOUT, MEMORIZED, TEMPLATE, CATALOGUE, DESCRIPTOR, CALIBRATION = 101, 202, 303, 404, 505, 606, 707
PLANTED = 808


@lru_cache(maxsize=1)
def training_images(count: int = Recipe.regular_images) -> tuple[np.ndarray, pd.DataFrame]:
    """The regular training pictures: uint8 `(N, 64, 64, 3)` and their captions and attributes."""
    return paint(REGULAR, range(count))


def heldout(recipe: Recipe) -> tuple[np.ndarray, pd.DataFrame]:
    """Regular pictures that no model sees, as a benchmark's table with ids `reg-000` on."""
    images, table = paint(HELDOUT, range(recipe.heldout_images))
    ids = [f"reg-{i:03d}" for i in range(len(table))]
    head = pd.DataFrame(
        {
            "id": ids,
            "prompt": table.pop("caption"),
            "image": [f"images/regular/{i}.png" for i in ids],
            "kind": "none",
            "split": "heldout",
            "copies": 0,
            "group": "",
        }
    )
    return images, pd.concat([head, table], axis=1)


def memorized(recipe: Recipe) -> tuple[np.ndarray, pd.DataFrame]:
    """The pictures planted with known copies, as a benchmark's table.

    Captions are invented titles that say nothing about the picture. `verbatim` rows have one picture per
    title; `template` rows share a scene within a `group` and differ in the objects, their titles in the
    last word. Halves of each level form the splits `validation` and `test`.
    """
    verbatim = _verbatim(recipe)
    template = _template(recipe)
    images = np.concatenate([verbatim[0], template[0]])
    table = pd.concat([verbatim[1], template[1]], ignore_index=True)
    table["image"] = [f"images/memorized/{i}.png" for i in table["id"]]
    table["split"] = np.where(table.groupby(["kind", "copies"]).cumcount() % 2 == 0, "validation", "test")
    return images, table[["id", "prompt", "image", "kind", "split", "copies", "group", *SLOTS]]


def _verbatim(recipe: Recipe) -> tuple[np.ndarray, pd.DataFrame]:
    copies = np.repeat(list(recipe.copies), list(recipe.copies.values()))
    images, table = paint(MEMORIZED, range(len(copies)))
    table["prompt"] = _titles(recipe.seed, len(copies))
    table["copies"], table["kind"], table["group"] = copies, "verbatim", ""
    within = table.groupby("copies").cumcount()
    table["id"] = [f"mem-{c:03d}-{k:02d}" for c, k in zip(copies, within, strict=True)]
    return images, table


def _template(recipe: Recipe) -> tuple[np.ndarray, pd.DataFrame]:
    groups, variants = recipe.template_groups, recipe.template_variants
    rng = np.random.default_rng([recipe.seed, TEMPLATE])
    titles = _titles(recipe.seed + 1, groups)
    rows, fixed = [], []
    for g in range(groups):
        common = {
            "time": str(rng.choice(ATTRIBUTES["time"])),
            "place": str(rng.choice(ATTRIBUTES["place"])),
            "number": "two",
        }
        pairs = [(c, o) for c in ATTRIBUTES["colour"] for o in ATTRIBUTES["object"]]
        for k, pick in enumerate(rng.choice(len(pairs), variants, replace=False)):
            colour, thing = pairs[pick]
            fixed.append(common | {"colour": colour, "object": thing})
            rows.append(
                {
                    "id": f"tmp-{g}-{k:02d}",
                    "prompt": f"{titles[g]} in {colour} {thing}",
                    "kind": "template",
                    "copies": recipe.template_copies,
                    "group": f"template-{g}",
                }
            )
    images, table = paint(TEMPLATE, np.repeat(range(groups), variants), fixed)
    return images, pd.concat([pd.DataFrame(rows), table.drop(columns="caption")], axis=1)


def planted(count: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Pictures to plant, which no model has seen, as a benchmark's table, ids `plant-00` on."""
    images, table = paint(PLANTED, range(count))
    ids = [f"plant-{i:02d}" for i in range(count)]
    head = {"id": ids, "prompt": _titles(PLANTED, count), "image": [f"images/{i}.png" for i in ids]}
    same = {"kind": "verbatim", "split": "test", "copies": 0, "group": ""}
    return images, pd.concat([pd.DataFrame({**head, **same}), table[list(SLOTS)]], axis=1)


def catalogue(recipe: Recipe) -> tuple[np.ndarray, list[str]]:
    """Titled pictures that only the small CLIP sees: pictures and their invented titles."""
    images, _ = paint(CATALOGUE, range(recipe.catalogue_images))
    return images, _titles(recipe.seed + 2, recipe.catalogue_images)


def descriptor_set(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that only the copy descriptor is trained on, in groups of one caption."""
    return _same_caption(DESCRIPTOR, recipe.descriptor_captions, recipe.descriptor_variants)


def calibration_set(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Held-out pictures in groups of one caption: the descriptor's hard negatives."""
    return _same_caption(CALIBRATION, recipe.calibration_captions, recipe.calibration_variants)


def _same_caption(seed: int, captions: int, variants: int) -> tuple[np.ndarray, np.ndarray]:
    """`captions` contents, each painted `variants` times: pictures and the group of each."""
    groups = np.repeat(np.arange(captions), variants)
    content = [{slot: draw_scene(seed, 10**6 + g)[slot] for slot in SLOTS} for g in range(captions)]
    return paint(seed, range(len(groups)), [content[g] for g in groups])[0], groups


def _titles(seed: int, count: int) -> list[str]:
    """`count` different invented titles."""
    rng, titles = np.random.default_rng([seed, 99]), {}
    while len(titles) < count:
        titles[invented_title(rng)] = None
    return list(titles)
