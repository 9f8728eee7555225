"""Scores of single images or prompts: how they are spread, and what a detector makes of them."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dori.plots.style import INK, WIDTH, colour, house_style, legend, mark

GOLDEN = 0.618034  # its multiples fill an interval evenly
LINES = ("-", (0, (5, 1, 1, 1)), (0, (1, 1)))  # without the dashes, which are the threshold's


@house_style
def score_distributions(
    table: pd.DataFrame, *, threshold: float, by: str = "sort", x: str = "score"
) -> Figure:
    """Copy scores of each sort in its own row on one axis, with the calibrated threshold."""
    sorts = list(dict.fromkeys(table[by]))
    figure, axes = plt.subplots(
        len(sorts), 1, figsize=(WIDTH, 1.25 * len(sorts) + 0.7), sharex=True, squeeze=False
    )
    edges = _edges(min(0.0, float(table[x].min())), threshold)
    for axis, name in zip(axes[:, 0], sorts, strict=True):
        values = table.loc[table[by] == name, x]
        axis.hist(values, bins=edges, color=colour(name), alpha=0.85)
        axis.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
        axis.set_ylabel("images")
        axis.set_title(f"{name} (n = {len(values)})", loc="left")
    axes[0, 0].annotate(f"threshold {threshold:.2f}", (threshold, 1), xycoords=("data", "axes fraction"),
                        xytext=(4, 2), textcoords="offset points", fontsize=9)  # fmt: skip
    axes[-1, 0].set_xlabel("copy score")
    figure.tight_layout()
    return figure


def _edges(low: float, threshold: float) -> np.ndarray:
    """Of about forty bins from `low` to 1; no bin holds scores from both sides of the threshold."""
    share = (threshold - low) / (1 - low)
    ends = ((low, threshold, share), (threshold, 1, 1 - share))
    return np.unique(np.concatenate([np.linspace(a, b, max(2, round(40 * s))) for a, b, s in ends]))


@house_style
def strip_by_copies(table: pd.DataFrame, *, y: str = "score", label: str = "score") -> Figure:
    """One dot per prompt, by copies in the training set; 0 copies are regular prompts."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    table = table.assign(group=table["copies"] if "copies" in table else table["memorized"].astype(int))
    table = table.assign(sort=table["kind"].replace({"none": "regular"}))
    groups = sorted(table["group"].unique())
    for name, part in table.groupby("sort", sort=False):
        aside = 0.5 * (np.arange(len(part)) * GOLDEN % 1 - 0.5)  # as if drawn at random, and always the same
        style = {"color": colour(name), "marker": mark(name)["marker"], "edgecolors": INK, "linewidths": 0.3}
        x = np.searchsorted(groups, part["group"]) + aside
        axis.scatter(x, part[y], s=18, alpha=0.85, label=name, **style)
    axis.set(xlabel="copies in the training set (0: never seen)", ylabel=label, xticks=range(len(groups)))
    axis.set_xticklabels([f"{g:g}" for g in groups])
    legend(axis)
    figure.tight_layout()
    return figure


@house_style
def cumulative(table: pd.DataFrame, *, x: str, by: str, label: str, threshold: float | None = None) -> Figure:
    """Share of images at or below each score: where two sets are alike, so are their lines.

    The legend counts images, and prompts where `table` has their `id`.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    for k, (name, part) in enumerate(table.groupby(by, sort=False)):
        line = LINES[k % len(LINES)]
        axis.ecdf(part[x], label=f"{name} ({_counted(part)})", color=colour(name), linestyle=line)
    if threshold is not None:
        axis.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    axis.set(xlabel=label, ylabel="share of images at or below")
    legend(axis, columns=2)
    figure.tight_layout()
    return figure


def _counted(part: pd.DataFrame) -> str:
    """How many images a line has, and of how many prompts if each has several."""
    prompts = part["id"].nunique() if "id" in part else len(part)
    return f"{len(part)} images" + (f" of {prompts} prompts" if prompts < len(part) else "")


@house_style
def roc(curves: Mapping[str, pd.DataFrame], *, fpr: float = 0.01) -> Figure:
    """ROC curves over a logarithmic share of false alarms, where a detector has to work."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.72, 3.6))
    floor = 1e-3
    for k, (name, table) in enumerate(curves.items()):
        axis.step(
            table["fpr"].clip(lower=floor),
            table["tpr"],
            where="post",
            label=name,
            color=sns.color_palette("colorblind")[k],
        )
    diagonal = np.geomspace(floor, 1, 100)
    axis.plot(diagonal, diagonal, color="#7F7F7F", linestyle=":", label="chance")
    axis.axvline(fpr, color=INK, linestyle="--", linewidth=1.2)
    axis.set(
        xscale="log",
        xlim=(floor, 1),
        ylim=(0, 1.02),
        xlabel="regular prompts flagged (share)",
        ylabel="memorized prompts found (share)",
    )
    legend(axis)
    figure.tight_layout()
    return figure
