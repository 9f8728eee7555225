"""Strips of single images: a process step by step, and maps laid over an image."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from dori.plots.images import picture
from dori.plots.style import WIDTH, house_style, place


@house_style
def image_strip(rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Labelled rows of labelled images, row -> label -> (3, H, W); labels stand above each image."""
    columns = max(len(row) for row in rows.values())
    side, labelled = WIDTH / (columns + 1), any(rows)
    size = (WIDTH, 1.28 * side * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    place(figure, left=1 / (columns + 1) if labelled else 0.01, wspace=0.06, hspace=0.28,
          top=1 - 0.18 / len(rows), bottom=0.02)  # fmt: skip
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line[len(images) :]:
            axis.set_axis_off()
        for axis, (label, image) in zip(line, images.items(), strict=False):
            picture(axis, image)
            axis.set_title(label, fontsize=8, pad=3)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


@house_style
def attention_strip(maps: Mapping[str, Tensor]) -> Figure:
    """An image, "image" -> (3, H, W), then one picture for each word, (H, W) in [0, 1]: bright where read."""
    columns = min(6, len(maps))
    rows = -(-len(maps) // columns)
    side = WIDTH / columns
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.18 * side * rows), squeeze=False)
    place(figure, wspace=0.06, hspace=0.2, top=1 - 0.16 / rows, bottom=0.02)
    base = maps["image"]
    for axis in axes.flat[len(maps) :]:
        axis.set_axis_off()
    for axis, (word, shown) in zip(axes.flat, maps.items(), strict=False):
        lit = base if word == "image" else base * (0.12 + 0.88 * shown)
        picture(axis, lit)
        axis.set_title("painted" if word == "image" else f"“{word}”", fontsize=9, pad=3)
    return figure
