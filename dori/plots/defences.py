"""Chapter 4's figures: defences against attackers, and the work it takes to get an image back."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dori.metrics.replication import rates
from dori.metrics.survival import first_success, returned_curve
from dori.plots.agreement import RATES
from dori.plots.rates import rate_axis
from dori.plots.style import GROUND, INK, WIDTH, house_style, legend, nth_mark, palette

PALE = 0.55  # rates below it stand in black letters


@house_style
def defence_matrix(table: pd.DataFrame) -> Figure:
    """Memorization rate of each defence (row) under each attacker (column), with Wilson's interval.

    `table` has a row per image, seed and look: defence, attacker, id, steps, replicated
    (`experiments.defences.asked`). Of searches with several looks the last counts; an empty cell was not
    asked.
    """
    last = table[table["steps"] == table.groupby(["defence", "attacker"])["steps"].transform("max")]
    names, attackers = (list(dict.fromkeys(table[c])) for c in ("defence", "attacker"))
    found = rates(last, ["defence", "attacker"]).set_index(["defence", "attacker"])
    cells = found["mr"].unstack().reindex(index=names, columns=attackers)
    text = found.apply(
        lambda r: f"{r['mr']:.2f}\n[{r['low']:.2f}, {r['high']:.2f}]\nn = {r['n']:.0f}", axis=1
    )
    text = text.unstack().reindex(index=names, columns=attackers).fillna("")
    figure, axis = plt.subplots(figsize=(WIDTH, 0.62 * len(names) + 1.3))
    sns.heatmap(cells, vmin=0, vmax=1, cmap=RATES, annot=text, fmt="", annot_kws={"fontsize": 7},
                linewidths=1.5, linecolor=GROUND, cbar=False, ax=axis)  # fmt: skip
    for label, value in zip(axis.texts, cells.to_numpy()[cells.notna().to_numpy()], strict=True):
        label.set_color("black" if value < PALE else "white")
    axis.set(xlabel="", ylabel="")
    heads = [textwrap.fill(a, 12, break_long_words=False) for a in attackers]
    axis.set_xticklabels(heads, rotation=0, fontsize=7)
    axis.set_yticklabels([textwrap.fill(n, 22) for n in names], rotation=0, fontsize=8)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    figure.tight_layout()
    return figure


@house_style
def work_curves(table: pd.DataFrame) -> Figure:
    """Share of images that have come back by each number of steps, a line per defence (Kaplan and Meier).

    `table` as `experiments.defences.asked` of one attacker that looked several times. A cross ends the line
    of a defence under which images had not come back when the search ended, with how many.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
    names = list(dict.fromkeys(table["defence"]))
    tones, looks = palette(names), sorted(table["steps"].unique())
    for k, name in enumerate(names):
        times = first_success(table[table["defence"] == name])
        share = returned_curve(times).set_index("steps")["share"]
        curve = share.reindex(looks).ffill().fillna(0)
        left = int((~times["returned"]).sum())
        axis.plot(range(len(looks)), curve, color=tones[name], markersize=5, clip_on=False,
                  label=f"{name} (n = {len(times)})", **nth_mark(k))  # fmt: skip
        if left:
            axis.annotate(f"✕ {left}", (len(looks) - 1, curve.iloc[-1]), xytext=(8, 0), va="bottom",
                          textcoords="offset points", fontsize=8, color=tones[name])  # fmt: skip
    axis.set(xticks=range(len(looks)), xticklabels=[f"{s:g}" for s in looks], xlabel="steps of the search")
    rate_axis(axis)
    axis.set_ylabel("images that came back (share)")
    legend(axis, columns=2)
    axis.annotate("✕: images that had not come back at the end", (1, 0.06), xycoords="axes fraction",
                  fontsize=8, ha="right", va="bottom", color=INK)  # fmt: skip
    figure.tight_layout()
    return figure
