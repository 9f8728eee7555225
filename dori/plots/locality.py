"""Where the triggers of an image lie, and what they do inside the network (chapter 3)."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

from dori import locality
from dori.errors import DoriError
from dori.metrics.intervals import fixed
from dori.plots.images import picture
from dori.plots.pruning import layer_axis
from dori.plots.style import (
    COLOURS,
    GROUND,
    INK,
    WIDTH,
    colour,
    error_bars,
    house_style,
    mark,
    nth_mark,
    palette,
)

# What lies in the plane of embeddings -> marker, area, filled. Prompts belong to no image and are grey.
SORTS = {
    "start": ("o", 14, False),
    "trigger": ("o", 26, True),
    "regular prompt": ("s", 13, True),
    "memorized prompt": ("^", 24, True),
}
PROMPTS = "#8C8C8C"
DISTANCES = {**locality.DISTANCES, "CKA": "1 − linear CKA"}
FEW = 2  # layers; a kind with no more of them gets a narrow panel


@house_style
def embedding_map(table: pd.DataFrame) -> Figure:
    """Triggers, their starts and prompts in a plane, a panel per method; an image's triggers share a colour.

    `table` has a row per point: method (`"PCA"`, `"t-SNE"`), x, y, sort (those of `SORTS`), image (id, empty
    for prompts), item (joins a start to its trigger by a faint line) and, if known, share (0..1, of the
    variance that the plane shows).
    """
    methods = list(dict.fromkeys(table["method"]))
    tones = palette(name for name in table["image"] if name)
    figure, axes = plt.subplots(1, len(methods), figsize=(WIDTH, 4.6 if len(methods) > 1 else 5.6))
    for axis, method in zip(np.atleast_1d(axes), methods, strict=True):
        part = table[table["method"] == method]
        _points(axis, part, tones)
        share = part["share"].dropna() if "share" in part else []
        shown = f", {100 * share.iloc[0]:.0f} % of the variance" if len(share) else ""
        axis.set_title(f"{method}{shown}", loc="left")
        axis.set(xlabel=f"{method} axis 1", ylabel=f"{method} axis 2")
        axis.set_aspect("equal", adjustable="datalim")
    sorts = [_handle(name) for name in SORTS if name in set(table["sort"])]
    images = [Line2D([], [], color=t, marker="o", linestyle="none", label=n) for n, t in tones.items()]
    figure.legend(handles=sorts, loc="upper left", ncols=4, fontsize=9)
    lines = -(-len(images) // 5)
    figure.legend(handles=images, loc="upper left", bbox_to_anchor=(0, 0.945), ncols=5, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.94 - 0.05 * lines))
    return figure


@house_style
def distance_distributions(table: pd.DataFrame) -> Figure:
    """How far apart the members of each set are: a violin of all pairs, a dot and a number at its median.

    `table` has a row per pair: set, metric ("L2", "cosine"), distance. A panel per metric.
    """
    metrics, sets = (list(dict.fromkeys(table[c])) for c in ("metric", "set"))
    size = (WIDTH, 0.6 * len(sets) + 1.1)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = table[table["metric"] == metric]
        sns.violinplot(part, x="distance", y="set", hue="set", order=sets, hue_order=sets, inner=None, cut=0,
                       palette=palette(sets), density_norm="width", linewidth=0.8, width=0.5, alpha=0.75,
                       legend=False, ax=axis)  # fmt: skip
        medians = part.groupby("set")["distance"].median().reindex(sets)
        axis.plot(medians, range(len(sets)), "o", color=GROUND, markeredgecolor=INK, markersize=5)
        for y, median in enumerate(medians):
            if np.isfinite(median):
                axis.annotate(fixed(median), (median, y), xytext=(0, 15), textcoords="offset points",
                              ha="center", fontsize=8)  # fmt: skip
        left = min(0, part["distance"].min())
        axis.set(xlabel=f"{DISTANCES.get(metric, metric)} of a pair", xlim=(left, None))
        axis.set(ylabel="", ylim=(len(sets) - 0.5, -0.75))
    figure.tight_layout()
    return figure


@house_style
def path_scores(table: pd.DataFrame, *, threshold: float) -> Figure:
    """Copy score on the way between two triggers of an image: a thin line per pair, a thick one the median.

    `table` has a row per point: memory, path ("straight", "spherical"), pair, image, fraction (0..1), score.
    """
    paths, memories = (list(dict.fromkeys(table[c])) for c in ("path", "memory"))
    figure, axes = plt.subplots(1, len(paths), figsize=(WIDTH, 3.4), sharey=True, squeeze=False)
    for axis, path in zip(axes[0], paths, strict=True):
        axis.axhline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
        for memory in memories:
            part = table[(table["path"] == path) & (table["memory"] == memory)]
            ways = part.groupby(["image", "pair"], sort=False)
            for _, way in ways:
                way = way.sort_values("fraction")
                axis.plot(way["fraction"], way["score"], color=colour(memory), linewidth=0.7, alpha=0.35)
            median = part.groupby("fraction")["score"].median()
            label = f"{memory} (median of {ways.ngroups} pairs)"
            axis.plot(median.index, median, color=colour(memory), linewidth=2.8, markersize=5, label=label,
                      clip_on=False, zorder=3, **mark(memory))  # fmt: skip
        axis.set(xlabel="share of the way to the other trigger", xlim=(0, 1))
        axis.set_title(f"{path} path", loc="left")
    axes[0, 0].set(ylabel="copy score", ylim=(min(0, table["score"].min()), 1.02))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper left", ncols=3, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    return figure


@house_style
def layer_profile(table: pd.DataFrame, *, measure: str) -> Figure:
    """How far apart the activations of each set are, layer by layer: dots with 95 % intervals.

    `table` has a row per layer and set: layer (full name, in network order), kind ("value", "feed-forward",
    "mid", "output"), measure ("L2", "cosine", "CKA": all distances), set, value, low, high. A panel per kind,
    narrow for kinds of one or two layers. Raises DoriError where the table lacks the `measure`.
    """
    part = table[table["measure"] == measure]
    if part.empty:
        raise DoriError(f"no measure '{measure}' in this table; it has {sorted(set(table['measure']))}")
    sets = list(dict.fromkeys(part["set"]))
    figure, panels = _kind_panels(part)
    for kind, axis in panels.items():
        _profile(axis, part[part["kind"] == kind], sets)
        axis.set_title(kind, loc="left")
        axis.set_xlabel("layer" if len(axis.get_xticks()) > FEW else "")
        axis.set_ylabel(DISTANCES.get(measure, measure))
        if measure == "L2":
            _log_axis(axis)
            axis.set_ylabel(f"{axis.get_ylabel()}\n(logarithmic axis)")
        else:
            axis.set_ylim(0, None)
    handles = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(*handles, loc="upper left", ncols=2 if len(sets) > 3 else 3, fontsize=9)
    lines = -(-len(sets) // (2 if len(sets) > 3 else 3))
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.2 * lines) / figure.get_figheight()))
    return figure


@house_style
def trigger_card(
    card: Mapping, *, title: str, threshold: float, limits: tuple[float | None, float | None] = (None, None)
) -> Figure:
    """One trigger at a glance: what it paints, how far it lies, what it does inside. A frame for a slider.

    `card` has image (3, H, W), the training image; generated (S, 3, H, W) in [0, 1] and scores (S,); note, a
    line on its distances; activations, a table of layer and value, and units, one of layer and units
    (`Units.table`). `limits` are the upper ends of the two axes, for all frames to share.
    """
    pictures = [card["image"], *card["generated"]][:4]
    figure = plt.figure(figsize=(WIDTH, 4.3))
    above = figure.add_gridspec(1, 4, left=0.09, right=0.99, top=0.91, bottom=0.52, wspace=0.06)
    below = figure.add_gridspec(1, 2, left=0.09, right=0.99, top=0.4, bottom=0.13, wspace=0.22)
    axes = [figure.add_subplot(above[k]) for k in range(len(pictures))]
    picture(axes[0], pictures[0], "training image")
    for axis, image, score in zip(axes[1:], pictures[1:], card["scores"], strict=False):
        score = float(score)
        picture(axis, image, f"score {score:.2f}", frame=COLOURS["memorized"] if score > threshold else None)
    strips = (("activations", "value", "activation (L2)"), ("units", "units", "units selected"))
    for k, (key, column, label) in enumerate(strips):
        _strip(figure.add_subplot(below[k]), card[key], column, label, limits[k])
    figure.text(0.01, 0.955, title, fontweight="bold", va="center")
    figure.text(0.99, 0.955, card["note"], fontsize=9, va="center", ha="right")
    return figure


def first_card(
    cards: Mapping[str, Mapping[str, Mapping]], *, threshold: float, limits: tuple[float, float]
) -> Figure:
    """The first of the cards of `widgets.trigger_picker`, for a page without scripts; empty without any."""
    for image, some in cards.items():
        for name, card in some.items():
            return trigger_card(card, title=f"{image}, from {name}", threshold=threshold, limits=limits)
    return trigger_card({}, title="", threshold=threshold)


def _points(axis: Axes, part: pd.DataFrame, tones: Mapping[str, str]) -> None:
    """One plane: prompts below, then lines from start to trigger, then the two."""
    moved = part[part["sort"].isin(["start", "trigger"])]
    for (image, _), ends in moved.groupby(["image", "item"], sort=False):
        if len(ends) > 1:
            axis.plot(ends["x"], ends["y"], color=tones[image], linewidth=0.7, alpha=0.4, zorder=1.5)
    for sort in ("regular prompt", "memorized prompt", "start", "trigger"):
        points = part[part["sort"] == sort]
        marker, area, filled = SORTS[sort]
        edge = [tones.get(image, PROMPTS) for image in points["image"]]
        axis.scatter(points["x"], points["y"], s=area, marker=marker, edgecolors=edge, linewidths=0.9,
                     facecolors=edge if filled else GROUND, zorder=2)  # fmt: skip


def _handle(sort: str) -> Line2D:
    """The legend's mark of a sort, in grey, as its colour is the image's."""
    marker, area, filled = SORTS[sort]
    face = PROMPTS if filled else GROUND
    return Line2D([], [], linestyle="none", marker=marker, markersize=area**0.5, label=sort,
                  markeredgecolor=PROMPTS, markerfacecolor=face)  # fmt: skip


def _kind_panels(part: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    """A figure with an axis per kind: kinds of many layers below each other, those of few beside them."""
    counts = part.groupby("kind", sort=False)["layer"].nunique()
    wide, narrow = ([kind for kind, n in counts.items() if (n > FEW) == many] for many in (True, False))
    rows = len(wide) or 1
    beside = -(-len(narrow) // rows)
    figure = plt.figure(figsize=(WIDTH, 2.6 * rows + 0.5))
    ratios = [5] * bool(wide) + [1] * beside
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
    panels = {kind: figure.add_subplot(grid[row, 0]) for row, kind in enumerate(wide)}
    for k, kind in enumerate(narrow):
        panels[kind] = figure.add_subplot(grid[k % rows, bool(wide) + k // rows])
    return figure, panels


def _profile(axis: Axes, part: pd.DataFrame, sets: list[str]) -> None:
    """One kind of layer: a mark per layer and set, side by side."""
    layers, tones = list(dict.fromkeys(part["layer"])), palette(sets)
    for k, name in enumerate(sets):
        rows = part[part["set"] == name].set_index("layer").reindex(layers)
        x = np.arange(len(layers)) + 0.17 * (k - (len(sets) - 1) / 2)
        bars = error_bars(rows["value"], rows["low"], rows["high"])
        axis.errorbar(x, rows["value"], yerr=bars, color=tones[name], label=name, linestyle="none", capsize=0,
                      marker=nth_mark(k)["marker"], markersize=4, linewidth=1.2)  # fmt: skip
    layer_axis(axis, layers)


def _log_axis(axis: Axes) -> None:
    """Logarithmic y with plain numbers, also where the values span less than a decade."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else AutoLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _strip(axis: Axes, table: pd.DataFrame, column: str, label: str, limit: float | None) -> None:
    """Small bars of one quantity along the layers."""
    axis.bar(range(len(table)), table[column], color=colour("memorized" if column == "value" else "pruned"))
    layer_axis(axis, table["layer"].tolist())
    axis.tick_params(labelsize=7)
    axis.set_ylabel(label, fontsize=8)
    axis.set_ylim(0, limit or max(1e-9, 1.05 * table[column].max()))
