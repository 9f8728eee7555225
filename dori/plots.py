"""Figures in one house style: colour-blind safe, on a light ground that also reads in a dark page.

Every function takes a tidy table and returns a Figure; none shows or saves it. Colours keep their meaning.
"""

import functools
from collections.abc import Callable, Mapping, Sequence, Sized

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito's palette: told apart with any colour vision, and in grey by their lightness.
COLOURS = {
    "memorized": "#D55E00",
    "verbatim": "#D55E00",
    "template": "#E69F00",
    "regular": "#0072B2",
    "generated": "#0072B2",
    "held-out": "#7F7F7F",
    "twin": "#009E73",
    "testbed": "#D55E00",
    "own image": "#D55E00",
    "nearest of the group": "#E69F00",
    "as trained": "#D55E00",
    "pruned": "#0072B2",
}
OTHERS = ("#CC79A7", "#56B4E9", "#000000", "#F0E442")
GROUND, INK = "#FBFAF7", "#333333"
STYLE = {
    "figure.dpi": 120,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E0D8",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
WIDTH = 7.2  # inches, the width of a page's text


def house_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the house style and close the figure, so that a notebook shows the returned value once.

    Without data (an empty table) the figure says so.
    """

    @functools.wraps(draw)
    def styled(data: Sized, **kwargs: object) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(data, **kwargs) if len(data) else _nothing()
            plt.close(figure)
        return figure

    return styled


def colour(name: str) -> str:
    """The colour of a sort, model or set; other names get one of the remaining colours, always the same."""
    return COLOURS.get(name) or OTHERS[sum(map(ord, name)) % len(OTHERS)]


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
    _place(figure, wspace=0.06, hspace=0.48, top=1 - 0.17 / len(gallery), bottom=0.12 / len(gallery))
    for row, entry in zip(axes, gallery, strict=True):
        _picture(row[0], entry["original"], original)
        row[0].set_title(f"“{entry['prompt']}”", loc="left", fontsize=9, pad=4)
        for axis, image, score in zip(row[1:], entry["images"], entry["scores"], strict=False):
            _picture(axis, image, f"{score:.2f}", frame=COLOURS["memorized"] if score > threshold else None)
    return figure


@house_style
def image_rows(rows: Mapping[str, Tensor]) -> Figure:
    """Labelled rows of images (S, 3, H, W), for comparing models or settings on the same noise."""
    columns = max(len(images) for images in rows.values())
    side = WIDTH / (max(columns, 4) + 1)  # the space of one column is left to the labels
    size = (side * (columns + 1), side * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    _place(figure, left=1 / (columns + 1), wspace=0.06, hspace=0.06)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, image in zip(row, images, strict=False):
            axis.set_axis_on()
            _picture(axis, image)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


@house_style
def score_distributions(
    table: pd.DataFrame, *, threshold: float, by: str = "sort", x: str = "score"
) -> Figure:
    """Copy scores of each sort in its own row on one axis, with the calibrated threshold."""
    sorts = list(dict.fromkeys(table[by]))
    figure, axes = plt.subplots(
        len(sorts), 1, figsize=(WIDTH, 1.25 * len(sorts) + 0.7), sharex=True, squeeze=False
    )
    low = min(0.0, float(table[x].min()))
    for axis, name in zip(axes[:, 0], sorts, strict=True):
        values = table.loc[table[by] == name, x]
        axis.hist(values, bins=np.linspace(low, 1, 41), color=colour(name), alpha=0.85)
        axis.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
        axis.set_ylabel("images")
        axis.set_title(f"{name} (n = {len(values)})", loc="left")
    axes[0, 0].annotate(f"threshold {threshold:.2f}", (threshold, 1), xycoords=("data", "axes fraction"),
                        xytext=(4, 2), textcoords="offset points", fontsize=9)  # fmt: skip
    axes[-1, 0].set_xlabel("copy score")
    figure.tight_layout()
    return figure


@house_style
def copies_curve(rates: pd.DataFrame) -> Figure:
    """Memorization rate by copies in the training set, with Wilson's 95 % intervals and n."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    x = np.arange(len(rates))
    _with_bars(axis, x, rates, colour("memorized"))
    for position, n in zip(x, rates["n"], strict=True):
        axis.annotate(f"n = {n}", (position, 0), xycoords=("data", "axes fraction"), xytext=(6, 4),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axis.set(
        xticks=x, xticklabels=rates["copies"], xlabel="copies in the training set", xlim=(-0.4, len(x) - 0.4)
    )
    _rate_axis(axis)
    figure.tight_layout()
    return figure


@house_style
def rate_curves(rates: pd.DataFrame, *, x: str, label: str, by: str = "sort", log: bool = False) -> Figure:
    """Memorization rate against a setting, a line per sort, with Wilson's 95 % intervals."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    for name, part in rates.groupby(by, sort=False):
        _with_bars(
            axis, part[x].to_numpy(dtype=float), part, colour(name), label=f"{name} (n = {part['n'].max()})"
        )
    if log:
        axis.set_xscale("log", base=2)
    ticks = sorted(rates[x].unique())
    axis.set(xlabel=label, xticks=ticks, xticklabels=[f"{v:g}" for v in ticks])
    axis.minorticks_off()
    _legend(axis)
    _rate_axis(axis)
    figure.tight_layout()
    return figure


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
    _legend(axis)
    figure.tight_layout()
    return figure


@house_style
def strip_by_copies(table: pd.DataFrame, *, y: str = "score", label: str = "score") -> Figure:
    """One dot per prompt, by copies in the training set; 0 copies are regular prompts."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    table = table.assign(group=table["copies"] if "copies" in table else table["memorized"].astype(int))
    table = table.assign(sort=table["kind"].replace({"none": "regular"}))
    palette = {name: colour(name) for name in table["sort"].unique()}
    sns.stripplot(
        table, x="group", y=y, hue="sort", palette=palette, size=3.5, alpha=0.7, jitter=0.25, ax=axis
    )
    axis.set(xlabel="copies in the training set (0: never seen)", ylabel=label)
    _legend(axis)
    figure.tight_layout()
    return figure


@house_style
def cumulative(table: pd.DataFrame, *, x: str, by: str, label: str, threshold: float | None = None) -> Figure:
    """Share of images at or below each score: where two sets are alike, so are their lines."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    for name, values in table.groupby(by, sort=False)[x]:
        axis.ecdf(values, label=f"{name} (n = {len(values)})", color=colour(name))
    if threshold is not None:
        axis.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    axis.set(xlabel=label, ylabel="share of images")
    _legend(axis)
    figure.tight_layout()
    return figure


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
    _legend(axis)
    figure.tight_layout()
    return figure


def _nothing() -> Figure:
    """What stands in a figure's place where a model lacks the data for it (a foreign one has no twin)."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.8))
    axis.set_axis_off()
    axis.text(0.5, 0.5, "not available for this model and benchmark", ha="center", va="center")
    return figure


def _place(figure: Figure, **margins: float) -> None:
    """Fixed margins for grids of images: a long prompt above a row must not squeeze the images."""
    figure.subplots_adjust(**{"left": 0.01, "right": 0.99, "top": 0.99, "bottom": 0.01, **margins})


def _legend(axis: Axes, columns: int = 3) -> None:
    """Above the axes, where it covers no data."""
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.3, title=None)


def _picture(axis: Axes, image: Tensor, label: str = "", *, frame: str | None = None) -> None:
    """One image without ticks, its label below; a copy's frame and bold score do not rest on colour alone."""
    axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axis.set_xlabel(label, fontsize=8, labelpad=3, fontweight="bold" if frame else "normal")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=frame is not None, color=frame or INK, linewidth=2.5)


def _with_bars(axis: Axes, x: np.ndarray, rates: pd.DataFrame, tone: str, label: str | None = None) -> None:
    """A line through the rates with their intervals as bars."""
    below, above = rates["mr"] - rates["low"], rates["high"] - rates["mr"]
    bars = np.clip([below, above], 0, None)  # a rate of exactly 1 meets its bound up to rounding
    axis.errorbar(
        x, rates["mr"], yerr=bars, color=tone, marker="o", capsize=3, markersize=5, label=label, clip_on=False
    )


def _rate_axis(axis: Axes) -> None:
    axis.set(ylim=(0, 1.02), ylabel="memorization rate")
