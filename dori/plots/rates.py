"""Memorization rates against a setting, each with its interval."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dori.metrics.replication import first_above, rates
from dori.plots.style import INK, WIDTH, colour, error_bars, house_style, legend, mark, nth_mark

CONTROLS = ("twin", "held-out")  # targets an attack should not be able to paint


@house_style
def copies_curve(table: pd.DataFrame) -> Figure:
    """Memorization rate by copies in the training set, with Wilson's 95 % intervals and n."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    x = np.arange(len(table))
    with_bars(axis, x, table, colour("memorized"))
    for position, n in zip(x, table["n"], strict=True):
        axis.annotate(f"n = {n}", (position, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                      textcoords="offset points", fontsize=8, ha="center")  # fmt: skip
    axis.set(
        xticks=x, xticklabels=table["copies"], xlabel="copies in the training set", xlim=(-0.4, len(x) - 0.4)
    )
    rate_axis(axis)
    figure.tight_layout()
    return figure


@house_style
def rate_curves(table: pd.DataFrame, *, x: str, label: str, by: str = "sort", log: bool = False) -> Figure:
    """Memorization rate against a setting, a line per sort, with Wilson's 95 % intervals."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    groups = list(table.groupby(by, sort=False))
    for k, (name, part) in enumerate(groups):
        place, aside = part[x].to_numpy(dtype=float), 0.03 * (k - (len(groups) - 1) / 2)
        place = place * (1 + aside) if log else place + aside * np.ptp(table[x].to_numpy(dtype=float))
        few, many = part["n"].min(), part["n"].max()
        with_n = f"{name} (n = {few})" if few == many else f"{name} (n = {few} to {many})"
        with_bars(axis, place, part, colour(name), label=with_n, **nth_mark(k))
    if log:
        axis.set_xscale("log", base=2)
    ticks = sorted(table[x].unique())
    axis.set(xlabel=label, xticks=ticks, xticklabels=[f"{v:g}" for v in ticks])
    axis.minorticks_off()
    legend(axis)
    rate_axis(axis)
    figure.tight_layout()
    return figure


@house_style
def budget_curves(attacks: pd.DataFrame, *, ceiling: float = 0.01) -> Figure:
    """Memorization rate against attack steps, a line per target, with bars of Wilson's 95 % intervals.

    `attacks` has a row per image: id, target, steps, replicated (`experiments.fragility.attack_controls`).
    Numbers of steps stand at equal distances, and targets beside each other, as intervals of several would
    lie on one another. A vertical line stands before the first step at which a control (the twin, a held-out
    image) exceeds the `ceiling`: up to there, what the search brings back is memory.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
    table, names = rates(attacks, ["target", "steps"]), list(dict.fromkeys(attacks["target"]))
    ticks = sorted(table["steps"].unique())
    for k, name in enumerate(names):
        part = table[table["target"] == name]
        x = np.searchsorted(ticks, part["steps"]) + 0.14 * (k - (len(names) - 1) / 2)
        with_bars(axis, x, part, colour(name), label=f"{name} (n = {part['n'].max()})", **mark(name))
    _mark_controls(axis, table, ceiling)
    axis.set(xlabel="steps of the search", xticks=range(len(ticks)), xlim=(-0.5, len(ticks) - 0.5))
    axis.set_xticklabels([f"{t:g}" for t in ticks])
    handles, labels = axis.get_legend_handles_labels()
    order = np.argsort(["control " in label for label in labels], kind="stable")
    legend(axis, columns=2, handles=[handles[k] for k in order])
    rate_axis(axis)
    figure.tight_layout()
    return figure


@house_style
def limit_rates(attacks: pd.DataFrame) -> Figure:
    """Memorization rate by what the search may move, a dot with Wilson's 95 % interval for each target.

    `attacks` has a row per image: id, target, limit, replicated (`experiments.fragility.limits_table`).
    """
    limits, targets = (list(dict.fromkeys(attacks[c])) for c in ("limit", "target"))
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    table = rates(attacks, ["target", "limit"]).set_index(["target", "limit"])
    for k, name in enumerate(targets):
        part = table.loc[name].reindex(limits)
        x = np.arange(len(limits)) + 0.16 * (k - (len(targets) - 1) / 2)
        label = f"{name} (n = {part['n'].max():g})"
        with_bars(axis, x, part, colour(name), label=label, linestyle="none", marker=mark(name)["marker"])
    axis.set(xticks=range(len(limits)), xlim=(-0.5, len(limits) - 0.5), xlabel="what the search may move")
    axis.set_xticklabels(limits, rotation=20 if len(limits) > 5 else 0)
    legend(axis)
    rate_axis(axis)
    figure.tight_layout()
    return figure


def _mark_controls(axis: Axes, table: pd.DataFrame, ceiling: float) -> None:
    """A line before the number of steps at which the first of the controls exceeds the ceiling; the legend,
    which hides no data, has that number, or says that none does."""
    controls = table[table["target"].isin(CONTROLS)]
    if controls.empty:
        return
    step, text = first_above(controls, share=ceiling), f"{100 * ceiling:g} %"
    if step is None:
        axis.plot([], [], linestyle="none", label=f"no control above {text}")
        return
    place = sorted(table["steps"].unique()).index(step) - 0.5
    axis.axvline(place, color=INK, linestyle="-.", linewidth=1.2,
                 label=f"a control above {text}, from {step:g} steps on")  # fmt: skip


def with_bars(
    axis: Axes, x: Sequence[float], table: pd.DataFrame, tone: str, label: str | None = None, **line: str
) -> None:
    """A line through the rates with their intervals as bars."""
    bars = error_bars(table["mr"], table["low"], table["high"])
    style = {"marker": "o", "capsize": 3, "markersize": 5, "clip_on": False, **line}
    axis.errorbar(x, table["mr"], yerr=bars, color=tone, label=label, **style)


def rate_axis(axis: Axes) -> None:
    axis.set(ylim=(0, 1.02), ylabel="memorization rate")
