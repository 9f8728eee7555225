"""Memorization rates against a setting, each with its interval."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dori.metrics.replication import first_above, rates
from dori.plots.style import GROUND, INK, WIDTH, colour, error_bars, house_style, legend, mark, nth_mark

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
    """Memorization rate against attack steps, a line per target, with bands of Wilson's 95 % intervals.

    `attacks` has a row per image: id, target, steps, replicated (`experiments.fragility.attack_controls`).
    The axis is logarithmic with 0 at its left. A vertical line marks where a control (the twin, a held-out
    image) first exceeds the `ceiling`: up to there, what the search brings back is memory.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
    table = rates(attacks, ["target", "steps"])
    for name in dict.fromkeys(attacks["target"]):
        part, tone = table[table["target"] == name], colour(name)
        x = part["steps"].to_numpy(dtype=float)
        axis.fill_between(x, part["low"], part["high"], color=tone, alpha=0.16, linewidth=0)
        label = f"{name} (n = {part['n'].max()})"
        axis.plot(x, part["mr"], color=tone, markersize=5.5, label=label, clip_on=False, **mark(name))
    _mark_controls(axis, table, ceiling)
    ticks = sorted(table["steps"].unique())
    _steps_axis(axis, ticks)
    axis.minorticks_off()
    legend(axis)
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


def _steps_axis(axis: Axes, ticks: Sequence[float]) -> None:
    """Logarithmic, with a short linear piece that holds 0."""
    least = min((t for t in ticks if t > 0), default=1)
    axis.set_xscale("symlog", linthresh=least, linscale=0.5)
    left = -0.1 * least if ticks[0] == 0 else 0.9 * ticks[0]
    axis.set(
        xlabel="steps of the search", xticks=ticks, xticklabels=[f"{t:g}" for t in ticks], xlim=(left, None)
    )


def _mark_controls(axis: Axes, table: pd.DataFrame, ceiling: float) -> None:
    """A line where the first of the controls exceeds the ceiling, or a note that none does."""
    controls = table[table["target"].isin(CONTROLS)]
    if controls.empty:
        return
    step, text = first_above(controls, share=ceiling), f"{100 * ceiling:g} %"
    if step is None:
        axis.annotate(
            f"no control above {text}", (0.99, 0.1), xycoords="axes fraction", ha="right", fontsize=9
        )
        return
    axis.axvline(step, color=INK, linestyle="--", linewidth=1.2)
    axis.annotate(f"first above {text}\nof a control:\n{step:g} steps", (step, 0.5), xytext=(-6, 0),
                  xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9, ha="right",
                  va="center", bbox={"color": GROUND, "alpha": 0.8, "pad": 2})  # fmt: skip


def with_bars(
    axis: Axes, x: Sequence[float], table: pd.DataFrame, tone: str, label: str | None = None, **line: str
) -> None:
    """A line through the rates with their intervals as bars."""
    bars = error_bars(table["mr"], table["low"], table["high"])
    style = {"marker": "o", "capsize": 3, "markersize": 5, "clip_on": False, **line}
    axis.errorbar(x, table["mr"], yerr=bars, color=tone, label=label, **style)


def rate_axis(axis: Axes) -> None:
    axis.set(ylim=(0, 1.02), ylabel="memorization rate")
