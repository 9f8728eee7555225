"""What a model is still good for: prompts followed, images like real ones, images unlike each other."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dori.plots.style import COLOURS, INK, WIDTH, colour, error_bars, house_style, legend

# Column of `experiments.utility.utility_table` -> what it is and which way is better.
MEASURES = {
    "alignment": "prompt alignment (CLIP)\nhigher is better",
    "fid": "CLIP FID\nlower is better",
    "kid": "CLIP KID × 1000\nlower is better",
    "diversity": "copy score within a prompt\nlower is more varied",
}
LABEL = 24  # letters of a model's name on one line


@house_style
def attribute_bars(table: pd.DataFrame) -> Figure:
    """Share of attributes read off correctly, by slot and source; the tick is what guessing gives."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    palette = {name: colour(name) for name in table["source"].unique()}
    sns.barplot(
        table,
        x="slot",
        y="correct",
        hue="source",
        palette=palette,
        errorbar=("ci", 95),
        seed=0,
        n_boot=500,
        ax=axis,
    )
    chance = table.groupby("slot", sort=False)["chance"].first()
    axis.hlines(
        chance,
        np.arange(len(chance)) - 0.4,
        np.arange(len(chance)) + 0.4,
        color=INK,
        linestyle=":",
        label="chance",
    )
    axis.set(xlabel="attribute named in the prompt", ylabel="read correctly (share)", ylim=(0, 1.02))
    legend(axis)
    figure.tight_layout()
    return figure


@house_style
def utility(table: pd.DataFrame, *, baseline: str = "as trained") -> Figure:
    """A panel per measure, a row per model: values with 95 % intervals where there are any.

    `table` as from `experiments.utility.utility_table`. Measures that are nowhere known are left out; the
    dotted line is the `baseline`'s value.
    """
    known = [m for m in MEASURES if m in table and table[m].notna().any()]
    columns = min(2, max(1, len(known)))
    lines = -(-len(known) // columns)
    names = [textwrap.fill(label, LABEL) for label in table["label"]]
    depth = max(name.count("\n") for name in names) + 1
    size = (WIDTH, lines * ((0.22 + 0.07 * depth) * len(table) + 1.1))
    figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for axis in axes.flat[len(known) :]:
        axis.set_axis_off()
    for axis, measure in zip(axes.flat, known, strict=False):
        _dots(axis, table, measure, baseline)
    axes[0, 0].set(yticks=range(len(table)), yticklabels=names)
    for axis in axes[:, 0]:
        axis.tick_params(axis="y", labelsize=8.5)
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    return figure


def _dots(axis: Axes, table: pd.DataFrame, measure: str, baseline: str) -> None:
    """One measure of every model."""
    for y, row in enumerate(table.to_dict("records")):
        value, label = row[measure], row["label"]
        low, high = (row.get(f"{measure}_{end}", np.nan) for end in ("low", "high"))
        bars = error_bars(value, low, high)
        tone = COLOURS["as trained"] if label == baseline else COLOURS.get(label, COLOURS["pruned"])
        axis.errorbar(value, y, xerr=bars, color=tone, marker="o", markersize=5, capsize=3)
        if label == baseline and np.isfinite(value):
            axis.axvline(value, color=INK, linestyle=":", linewidth=1.2)
    axis.set_xlabel(MEASURES[measure])
