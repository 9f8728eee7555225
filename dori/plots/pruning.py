"""What happens inside in chapter 2: how far a search moves an embedding, which units a pruning takes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dori.hooks import layer_label
from dori.plots.style import GROUND, INK, WIDTH, colour, house_style, mark


@house_style
def movement(attacks: pd.DataFrame, *, reference: float | None = None) -> Figure:
    """How far the search went from where it started, in L2 and in cosine, against its steps.

    `attacks` has a row per image: id, target, steps, moved, cosine, replicated. A dot per embedding, filled
    where it brings the image back; lines join the medians. `reference` is the L2 distance between the
    embeddings of two prompts.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4))
    values = {"moved": "first", "cosine": "first", "replicated": "any"}
    found = attacks.groupby(["target", "steps", "id"], sort=False).agg(values).reset_index()
    steps, targets = sorted(found["steps"].unique()), list(dict.fromkeys(found["target"]))
    for axis, column in zip(axes, ("moved", "cosine"), strict=True):
        for k, name in enumerate(targets):
            offset = 0.2 * (k - (len(targets) - 1) / 2)
            _cloud(axis, found[found["target"] == name], column, steps=steps, offset=offset)
        axis.set(
            xticks=range(len(steps)),
            xticklabels=[f"{s:g}" for s in steps],
            xlabel="steps of the search (filled: image back)",
        )
    if reference is not None:
        axes[0].axhline(reference, color=INK, linestyle="--", linewidth=1.2, label="between two prompts")
    axes[0].set(ylabel="L2 distance from the start", ylim=(0, None))
    axes[1].set(ylabel="cosine to the start")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    return figure


@house_style
def units_per_layer(table: pd.DataFrame, *, by: str = "setting") -> Figure:
    """Share of each layer's eligible units that is off: a dot per set, the bar is the mean.

    `table` has a row per set and layer: layer, units, eligible, density (`Units.table`) and the column `by`,
    which gives the panels: the methods have different layers.
    """
    names = list(dict.fromkeys(table[by]))
    figure, axes = plt.subplots(len(names), 1, figsize=(WIDTH, 2.5 * len(names)), squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        part = table[table[by] == name]
        layers = list(dict.fromkeys(part["layer"]))
        shares = [100 * part.loc[part["layer"] == layer, "density"].to_numpy() for layer in layers]
        axis.bar(range(len(layers)), [s.mean() for s in shares], color=colour("pruned"), alpha=0.35)
        x = np.concatenate([_spread(k, len(s)) for k, s in enumerate(shares)])
        axis.scatter(x, np.concatenate(shares), s=9, color=colour("pruned"), alpha=0.8, clip_on=False)
        per_set = part["units"].sum() / max(1, len(part) // len(layers))
        axis.set_title(
            f"{name}: {per_set:,.{0 if per_set > 99 else 1}f} of {_eligible(part):,} units off on average",
            loc="left",
        )
        axis.set(ylabel="units off (%)", ylim=(0, None))
        layer_axis(axis, layers)
    axes[-1, 0].set_xlabel("layer (block.number), in the order of a forward pass")
    figure.tight_layout()
    return figure


def layer_axis(axis: Axes, layers: Sequence[str]) -> None:
    """Layers along x by their short names; many are slanted, each ending at its tick."""
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(layers) > 8 else {}
    axis.set(xticks=range(len(layers)), xlim=(-0.6, len(layers) - 0.4))
    axis.set_xticklabels([layer_label(name) for name in layers], **slanted)


def _cloud(axis: Axes, found: pd.DataFrame, column: str, *, steps: list, offset: float) -> None:
    """One target: its embeddings at each number of steps, and their medians."""
    name, positions = found["target"].iloc[0], {step: k + offset for k, step in enumerate(steps)}
    tone, shape = colour(name), mark(name)
    for back, fill in ((True, tone), (False, GROUND)):
        part = found[found["replicated"] == back]
        x = part["steps"].map(positions)
        axis.scatter(
            x, part[column], s=16, marker=shape["marker"], facecolor=fill, edgecolor=tone, alpha=0.75
        )
    medians = found.groupby("steps")[column].median()
    label = f"{name} (n = {found['id'].nunique()})"
    axis.plot(
        [positions[s] for s in medians.index], medians, color=tone, label=label, linestyle=shape["linestyle"]
    )


def _spread(position: float, count: int, width: float = 0.5) -> np.ndarray:
    """x of a layer's dots, side by side: jitter would need a generator and mean nothing."""
    return position + (np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(count))


def _eligible(part: pd.DataFrame) -> int:
    """Units a set could have taken, over its layers."""
    return int(part.groupby("layer")["eligible"].first().sum())
