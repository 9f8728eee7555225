"""Grids of images: what was drawn, beside what it may be a copy of."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dori.metrics.intervals import fixed
from dori.plots.style import COLOURS, INK, WIDTH, house_style, place, printed


@house_style
def image_grid(
    gallery: Sequence[Mapping], *, threshold: float, columns: int = 4, original: str = "training image"
) -> Figure:
    """A row per prompt: its training image, then generations with their copy scores; copies are framed.

    `gallery` as from `dori.experiments.replication.gallery`.
    """
    columns = min([columns, *(len(entry["images"]) for entry in gallery)])
    side = WIDTH / (max(columns, 4) + 1)
    size = (side * (columns + 1), 1.4 * side * len(gallery))
    figure, axes = plt.subplots(len(gallery), columns + 1, figsize=size, squeeze=False)
    place(figure, wspace=0.06, hspace=0.48, top=1 - 0.17 / len(gallery), bottom=0.12 / len(gallery))
    for row, entry in zip(axes, gallery, strict=True):
        picture(row[0], entry["original"], original)
        row[0].set_title(f"“{printed(entry['prompt'])}”", loc="left", fontsize=9, pad=4)
        for axis, image, score in zip(row[1:], entry["images"], entry["scores"], strict=False):
            picture(axis, image, fixed(score), frame=COLOURS["memorized"] if score > threshold else None)
    return figure


@house_style
def image_rows(rows: Mapping[str, Tensor]) -> Figure:
    """Labelled rows of images (S, 3, H, W), for comparing models or settings on the same noise."""
    columns = max(len(images) for images in rows.values())
    side = WIDTH / (max(columns, 4) + 1)  # the space of one column is left to the labels
    size = (side * (columns + 1), side * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    place(figure, left=1 / (columns + 1), wspace=0.06, hspace=0.06)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, image in zip(row, images, strict=False):
            axis.set_axis_on()
            picture(axis, image)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


@house_style
def comparison_grid(gallery: Sequence[Mapping], *, threshold: float) -> Figure:
    """A row per prompt, a column per stage: training image, original, pruned, pruned + attack, say.

    Each entry has `prompt`, `images` (stage -> (3, H, W) in [0, 1]) and `scores` (stage -> copy score; the
    training image has none). Stages are those of the first entry; copies are framed.
    """
    stages = list(gallery[0]["images"])
    rows, side, between, below = len(gallery), WIDTH / max(len(stages), 5), 0.46, 0.24  # inches
    heads = [textwrap.fill(stage, int(11 * side), break_long_words=False) for stage in stages]
    letters = max(len(word) for head in heads for word in head.split())
    above = 0.43 + 0.17 * max(1 + head.count("\n") for head in heads)
    size = (side * len(stages), rows * (side + between) - between + above + below)
    figure, axes = plt.subplots(rows, len(stages), figsize=size, squeeze=False)
    place(figure, wspace=0.06, hspace=between / side, top=1 - above / size[1], bottom=below / size[1])
    for row, entry in zip(axes, gallery, strict=True):
        for axis, stage in zip(row, stages, strict=True):
            score = entry["scores"].get(stage)
            copied = score is not None and score > threshold
            label = "" if score is None else fixed(score, 3 if round(score - threshold, 2) == 0 else 2)
            picture(axis, entry["images"][stage], label, frame=COLOURS["memorized"] if copied else None)
        row[0].set_title(f"“{printed(entry['prompt'])}”", loc="left", fontsize=9, pad=4)
    for axis, head in zip(axes[0], heads, strict=True):
        axis.annotate(head, (0.5, 1), xycoords="axes fraction", xytext=(0, 22), textcoords="offset points",
                      ha="center", va="bottom", fontweight="bold",
                      fontsize=min(10, 110 * side / letters))  # fmt: skip
    return figure


def picture(axis: Axes, image: Tensor, label: str = "", *, frame: str | None = None) -> None:
    """One image without ticks, its label below; a copy's frame and bold score do not rest on colour alone."""
    axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axis.set_xlabel(label, fontsize=8, labelpad=3, fontweight="bold" if frame else "normal")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=frame is not None, color=frame or INK, linewidth=2.5)
