"""How far the triggers of an image agree: in the units they use, in what a pruning silences (chapter 3)."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dori.plots.pruning import layer_axis
from dori.plots.style import COLOURS, GROUND, INK, WIDTH, colour, error_bars, house_style, mark, nothing

RATES = LinearSegmentedColormap.from_list("rates", [GROUND, COLOURS["memorized"], "#8A3C00"])
UNDEFINED = -0.07  # height of the mark for an agreement that is not defined: below 0, so not taken for one
MATRICES = 3  # side by side
WIDEST = (-1.0, 2.6)  # of the axis of an index: an interval that leaves it is cut
PANELS = 3  # side by side, of a diagnostic each


@house_style
def agreement_profile(table: pd.DataFrame) -> Figure:
    """Agreement (IoU) between the units of two triggers, layer by layer, with what chance and ceiling give.

    `table` has a row per method ("NeMo", "Wanda"), memory and layer: layer (full name, in network order; one
    named "all" stands apart), iou, low, high (NaN where no trigger selects a unit), chance, ceiling, units
    (number selected, mean; written above). A panel per method.
    """
    methods, memories = (list(dict.fromkeys(table[c])) for c in ("method", "memory"))
    figure, axes = plt.subplots(len(methods), 1, figsize=(WIDTH, 3.2 * len(methods) + 0.5), squeeze=False)
    for axis, method in zip(axes[:, 0], methods, strict=True):
        part = table[table["method"] == method]
        named = [name for name in dict.fromkeys(part["layer"]) if name != "all"]
        layers = named + ["all"] * bool((part["layer"] == "all").any())
        for k, memory in enumerate(memories):
            rows = part[part["memory"] == memory].set_index("layer").reindex(layers)
            x = np.arange(len(layers)) + 0.34 * (k - (len(memories) - 1) / 2)
            _agreement(axis, x, rows, memory)
            _unit_counts(axis, rows["units"], memory, line=len(memories) - 1 - k)
        layer_axis(axis, layers)
        if len(layers) > len(named) > 0:
            axis.axvline(len(named) - 0.5, color=INK, linewidth=0.8)
        axis.set(ylim=(-0.12, 1.05), yticks=np.linspace(0, 1, 6), ylabel="agreement (IoU)")
        axis.set_title(method, loc="left", pad=8 + 11 * len(memories))
    axes[-1, 0].set_xlabel("layer (block.number), in the order of a forward pass")
    figure.legend(handles=_keys(memories), loc="upper left", ncols=5, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


@house_style
def transfer_matrices(table: pd.DataFrame) -> Figure:
    """Whether a pruning made for one trigger (row) also silences another (column): copies that remain.

    `table` has a row per pair: memory, method, image, a (pruned for), b (drawn from), rate (0..1). A panel
    per image, method and memory; names lose the image they start with; own triggers are outlined.
    """
    panels = list(table.groupby(["memory", "method", "image"], sort=False))
    names = max(part["a"].nunique() for _, part in panels)
    columns = min(MATRICES, len(panels))
    lines = -(-len(panels) // columns)
    size = (WIDTH, lines * (0.29 * names + 1.3) + 0.1)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((memory, method, image), part) in zip(axes.flat, panels, strict=False):
        _matrix(axis, part, image)
        axis.set_title(f"{image}\n{memory}, {method}", loc="left", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("pruned for")
    scale = plt.cm.ScalarMappable(norm=plt.Normalize(0, 1), cmap=RATES)
    figure.colorbar(scale, ax=axes, label="images brought back (share)", shrink=0.8, aspect=25, pad=0.02)
    return figure


@house_style
def block_need(table: pd.DataFrame, what: str = "that reads the empty prompt") -> Figure:
    """Share of triggers that stop when one block does not read them: a mark per image, bars are means.

    `what` ends the label of the axis of blocks.

    `table` has a row per memory, image and layer: memory, image, layer (in network order), stopped (0..1). A
    panel per memory.
    """
    memories = list(dict.fromkeys(table["memory"]))
    figure, axes = plt.subplots(len(memories), 1, figsize=(WIDTH, 2.5 * len(memories)), squeeze=False)
    for axis, memory in zip(axes[:, 0], memories, strict=True):
        part = table[table["memory"] == memory]
        layers, images = (list(dict.fromkeys(part[column])) for column in ("layer", "image"))
        means = part.groupby("layer", sort=False)["stopped"].mean().reindex(layers)
        axis.bar(range(len(layers)), means, color=colour(memory), alpha=0.35)
        for k, image in enumerate(images):
            rows = part[part["image"] == image].set_index("layer")["stopped"].reindex(layers)
            x = np.arange(len(layers)) + 0.18 * (k - (len(images) - 1) / 2)
            axis.plot(x, rows, linestyle="none", marker="osD^vP"[k % 6], markersize=4.5, color=colour(memory),
                      label=image, clip_on=False)  # fmt: skip
        axis.set_title(memory, loc="left")
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8, borderaxespad=0.1)
        axis.set(ylabel="triggers stopped (share)", ylim=(0, 1.02))
        layer_axis(axis, layers)
    axes[-1, 0].set_xlabel(f"block (block.attention) {what}")
    figure.tight_layout()
    return figure


@house_style
def dose_profile(table: pd.DataFrame) -> Figure:
    """Each diagnostic against the copies of an image in the training set, with 95 % intervals and n.

    `table` has a row per diagnostic and number of copies: copies, diagnostic, value, low, high, n. A panel
    per diagnostic.
    """
    names, copies = list(dict.fromkeys(table["diagnostic"])), sorted(table["copies"].unique())
    columns = min(PANELS, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, 2.5 * lines), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        rows = table[table["diagnostic"] == name].set_index("copies").reindex(copies)
        bars = error_bars(rows["value"], rows["low"], rows["high"])
        axis.errorbar(range(len(copies)), rows["value"], yerr=bars, color=colour("memorized"), marker="o",
                      markersize=5, capsize=3)  # fmt: skip
        known = [(x, n) for x, n in enumerate(rows["n"]) if n > 0]
        for x, n in known:
            words = f"n = {n:g}" if x == known[0][0] else f"{n:g}"
            axis.annotate(words, (x, 1), xycoords=("data", "axes fraction"), fontsize=7.5, ha="center",
                          va="bottom")  # fmt: skip
        axis.set(
            xticks=range(len(copies)), xlim=(-0.5, len(copies) - 0.5), xlabel="copies in the training set"
        )
        axis.set_xticklabels([f"{c:g}" for c in copies])
        axis.set_ylabel(textwrap.fill(name, 26))
        axis.margins(y=0.15)
    figure.tight_layout()
    return figure


@house_style
def levels(table: pd.DataFrame) -> Figure:
    """Each level's index of locality: 0 nothing in common beyond chance, 1 as much as could be.

    `table` has a row per level and memory: level ("embeddings", "weights (NeMo)", …, from the top down),
    memory, value, low, high (95 % interval), n (written at the right). NaN values are said to be undefined.
    """
    if table["value"].isna().all():
        return nothing()
    names, memories = (list(dict.fromkeys(table[c])) for c in ("level", "memory"))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.55 * len(names) + 1.5))
    for end in (0, 1):
        axis.axvline(end, color=INK, linestyle=":", linewidth=1.2)
    for k, memory in enumerate(memories):
        rows = table[table["memory"] == memory].set_index("level").reindex(names)
        y = np.arange(len(names)) + 0.3 * (k - (len(memories) - 1) / 2)
        bars = error_bars(rows["value"], rows["low"], rows["high"])
        axis.errorbar(rows["value"], y, xerr=bars, color=colour(memory), label=memory, linestyle="none",
                      marker=mark(memory)["marker"], markersize=6, capsize=3)  # fmt: skip
        for place, value, n in zip(y, rows["value"], rows["n"], strict=True):
            off = "" if WIDEST[0] <= value <= WIDEST[1] else f"{value:.1f}, "  # its dot is off the axis
            text = "" if np.isnan(n) else f"{off}n = {n:g}" if np.isfinite(value) else f"undefined, n = {n:g}"
            axis.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                          color=INK)  # fmt: skip
    ends = table[["value", "low", "high"]]
    low, high = ends.min(axis=None), ends.max(axis=None)
    limits = max(WIDEST[0], min(-0.08, low - 0.05)), min(WIDEST[1], max(1.08, high + 0.05))
    axis.set(xlim=limits, ylim=(len(names) - 0.5, -0.5))
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="index (0: not local, 1: local)")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    figure.tight_layout()
    return figure


def _agreement(axis: Axes, x: np.ndarray, rows: pd.DataFrame, memory: str) -> None:
    """One memory's dots, its ticks for chance and ceiling, its crosses where no unit is selected."""
    tone, shape = colour(memory), mark(memory)["marker"]
    for column, line in (("chance", (0, (1, 1))), ("ceiling", "-")):
        axis.hlines(rows[column], x - 0.15, x + 0.15, color=tone, linestyle=line, linewidth=1.6)
    bars = error_bars(rows["iou"], rows["low"], rows["high"])
    axis.errorbar(x, rows["iou"], yerr=bars, color=tone, marker=shape, linestyle="none", markersize=4.5,
                  linewidth=1.3)  # fmt: skip
    none = rows["iou"].isna() & rows["units"].notna()
    axis.plot(x[none], np.full(none.sum(), UNDEFINED), "x", color=tone, markersize=5, markeredgewidth=1.4)


def _unit_counts(axis: Axes, units: pd.Series, memory: str, *, line: int) -> None:
    """The mean number of units that a trigger selects, above each layer, a line per memory."""
    style = {"xytext": (0, 4 + 11 * line), "textcoords": "offset points", "fontsize": 7, "color": INK}
    for x, count in enumerate(units):
        if np.isfinite(count):
            text = f"{count:.1f}".removesuffix(".0") if count < 10 else _short(count)
            axis.annotate(text, (x, 1), xycoords=("data", "axes fraction"), ha="center", **style)
    axis.annotate(f"units, {memory}", (0, 1), xycoords="axes fraction", ha="right", **style)


def _short(count: float) -> str:
    """A number that fits above a layer: 12345 -> 12.3k."""
    return f"{count:.0f}" if count < 10_000 else f"{count / 1000:.3g}k"


def _keys(memories: list[str]) -> list[Line2D]:
    """Legend: the memories by colour and marker, and what ticks and crosses mean."""
    dots = [
        Line2D([], [], color=colour(m), marker=mark(m)["marker"], linestyle="none", label=m) for m in memories
    ]
    lines = [Line2D([], [], color=INK, linestyle=line, label=label)
             for label, line in (("ceiling", "-"), ("chance", (0, (1, 1))))]  # fmt: skip
    return [*dots, *lines, Line2D([], [], color=INK, marker="x", linestyle="none", label="none selected")]


def _matrix(axis: Axes, part: pd.DataFrame, image: str) -> None:
    """One matrix of rates, the cells annotated, those of a trigger with itself outlined."""
    rows, columns = (list(dict.fromkeys(part[c])) for c in ("a", "b"))
    rates = part.pivot_table(index="a", columns="b", values="rate").reindex(index=rows, columns=columns)
    labels = [[name.removeprefix(image).strip() for name in names] for names in (columns, rows)]
    sns.heatmap(rates, vmin=0, vmax=1, cmap=RATES, annot=True, fmt=".2g", annot_kws={"fontsize": 7.5},
                linewidths=1, linecolor=GROUND, cbar=False, square=True, xticklabels=labels[0],
                yticklabels=labels[1], ax=axis)  # fmt: skip
    for y, name in enumerate(rows):
        if name in columns:
            axis.add_patch(
                plt.Rectangle((columns.index(name), y), 1, 1, fill=False, edgecolor=INK, linewidth=1.4)
            )
    axis.set(xlabel="drawn from", ylabel="")
    axis.tick_params(labelsize=8, length=0)
    axis.tick_params(axis="x", rotation=90)
    axis.tick_params(axis="y", rotation=0)
