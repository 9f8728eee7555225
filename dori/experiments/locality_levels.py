"""Chapter 3's verdict: one index of locality per level and image, ordinary memories beside planted ones.

An index is 0 where a diagnostic finds nothing in common between the triggers of one image beyond chance, and
1 where it finds as much as could be:

- embeddings: mean cosine between the ways that two searches went (`locality_embeddings.one_way`);
- activations: at the layer where they agree most, how much nearer triggers of the image lie to each other
  than to those of other images (`locality_activations.meeting`);
- weights: at the layer where they agree most, where the IoU of what is taken for two triggers lies between
  chance and ceiling (`locality_weights.indices`);
- transfer: the share of triggers that stop working when what was taken for another one is switched off;
- one block at a time: how much more needed the most needed block is than the others
  (`locality_blocks.indices`);
- one block's directions: the same of what a block reads of a search's way (`locality_directions.table`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dori.experiments.locality_activations import best_layers
from dori.experiments.locality_blocks import indices as block_indices
from dori.experiments.locality_blocks import stopped
from dori.experiments.locality_embeddings import one_way
from dori.experiments.locality_sizes import PUBLISHED, WANDA
from dori.experiments.locality_transfer import SAME
from dori.experiments.locality_transfer import rates as transfer_rates
from dori.experiments.locality_weights import indices, label
from dori.experiments.memories import ORDINARY, PLANTED, Memory
from dori.experiments.takeaways import TITLE
from dori.hooks import layer_label
from dori.locality.weights import ALL
from dori.metrics.intervals import Estimate, difference_of_few, mean_of_few

LEVELS = (
    "embeddings",
    "activations",
    "weights (NeMo)",
    "weights (Wanda)",
    "transfer (Wanda)",
    "one block at a time",
    "one block's directions",
)
FIGURE = list(Estimate._fields)
LEAST = 0.2  # of the rules: by how much planted memories have to be more local than ordinary ones
NAMES = (
    "embeddings",
    "activations",
    "nemo",
    "wanda",
    "transfer",
    "blocks",
    "directions",
)  # of the levels in headlines


def per_image(
    memories: Sequence[Memory],
    *,
    met: pd.DataFrame,
    agreed: pd.DataFrame,
    moved: pd.DataFrame,
    cut: pd.DataFrame,
    less: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Every index of every image: level, memory, image, index.

    From `locality_activations.meeting` (met), `locality_weights.all_agreements` (agreed),
    `locality_transfer.transfers` (moved), `locality_blocks.table` (cut) and, unless that level is left out,
    `locality_directions.table` (less).
    """
    rows = [("embeddings", m.kind, m.id, v) for m in memories for v in one_way([m])]
    rows += [("activations", *key, v) for key, v in best_layers(met)["index"].items()]
    placed = indices(agreed)
    placed = placed[placed["setting"] != label(PUBLISHED)]
    for method, part in placed.groupby("method", sort=False):
        kept = part[["memory", "image", "index"]].itertuples(index=False)
        rows += [(f"weights ({method})", *row) for row in kept]
    for row in transfer_rates(moved).to_dict("records"):
        rows.append(("transfer (Wanda)", row["memory"], row["image"], 1 - row[SAME]))
    for level, part in (("one block at a time", cut), ("one block's directions", less)):
        if part is not None:
            kept = block_indices(part)[["memory", "image", "index"]].itertuples(index=False)
            rows += [(level, *row) for row in kept]
    return pd.DataFrame(rows, columns=["level", "memory", "image", "index"])


def levels(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over images with t intervals: level, memory, value, low, high, n."""
    found = table.groupby(["level", "memory"], sort=False)["index"]
    rows = [(*key, *mean_of_few(values)) for key, values in found]
    return pd.DataFrame(rows, columns=["level", "memory", "value", "low", "high", "n"])


def index(table: pd.DataFrame, level: str, memory: str = ORDINARY) -> Estimate:
    """One level's index, mean over the images of one kind of memory."""
    return mean_of_few(_values(table, level, memory))


def gap(table: pd.DataFrame, level: str) -> Estimate:
    """By how much the planted memories are more local than the ordinary ones at a level."""
    return difference_of_few(*(_values(table, level, m) for m in (PLANTED, ORDINARY)))


def gaps(table: pd.DataFrame) -> dict[str, Estimate]:
    """The gaps by the names that expected.yml has for them."""
    return {f"planted_gap_{name}": gap(table, level) for name, level in zip(NAMES, LEVELS, strict=True)}


def gap_table(found: dict[str, Estimate]) -> pd.DataFrame:
    """The gaps for reading, a row per level: planted minus ordinary, n of the smaller set."""
    rows = {level: (gap.short, gap.n) for level, gap in zip(LEVELS, found.values(), strict=True)}
    columns = ["planted minus ordinary [95 % interval]", "images"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("level")


def tells(gap: Estimate) -> bool:
    """Whether a level tells planted memories from ordinary ones.

    By the rule of expected.yml, which looks at the value alone, and an interval above 0, if there is one.
    """
    return gap.value >= LEAST and not gap.low <= 0


def misleads(gap: Estimate) -> bool:
    """Whether a level calls planted memories the less local ones, by its whole interval."""
    return gap.high < 0


def sighted(found: dict[str, Estimate]) -> str:
    """Which levels tell a planted memory from an ordinary one (`tells`), or call it the less local one."""
    known = {level: f for level, f in zip(LEVELS, found.values(), strict=True) if not np.isnan(f.value)}
    if not known:
        return "Without planted memories it cannot be said which levels are blind."
    good = [level for level, f in known.items() if tells(f)]
    wrong = [level for level, f in known.items() if misleads(f)]
    blind = [level for level in known if level not in good + wrong]
    sorts = {"Levels that tell the two apart": good, "that point the wrong way": wrong, "blind ones": blind}
    return "; ".join(f"**{words}**: {', '.join(some) or 'none'}" for words, some in sorts.items()) + "."


def indices_reported(table: pd.DataFrame) -> dict[str, Estimate]:
    """Headlines: the indices of the ordinary memories."""
    return {f"{name}_index": index(table, level) for name, level in zip(NAMES, LEVELS, strict=True)}


def conclusion(table: pd.DataFrame) -> str:
    """What to take away, in Markdown: a sentence for each level."""
    lines = [TITLE, ""]
    for level in LEVELS:
        usual, planted = index(table, level), index(table, level, PLANTED)
        apart = gap(table, level)
        if np.isnan(usual.value):
            words = "not defined for the memories of this run."
        elif np.isnan(planted.value):
            words = f"index {usual.short}. Whether it would notice a memory in one block is not known."
        elif tells(apart):
            words = (
                f"tells a memory in one block ({planted.short}) from ordinary ones ({usual.short}), so "
                "the ordinary ones are less local than that."
            )
        elif misleads(apart):
            words = (
                f"points the wrong way. By it memories in one block ({planted.short}) are less local than "
                f"ordinary ones ({usual.short})."
            )
        else:
            words = (
                f"blind. Memories in one block have {planted.short}, ordinary ones {usual.short}, so "
                "it says nothing of where the ordinary ones are."
            )
        lines.append(f"- **{level}**: {words}")
    return "\n".join(lines)


def _values(table: pd.DataFrame, level: str, memory: str) -> np.ndarray:
    return table.loc[(table["level"] == level) & (table["memory"] == memory), "index"].to_numpy(float)


def pointed(met: pd.DataFrame, agreed: pd.DataFrame, cut: pd.DataFrame) -> pd.DataFrame:
    """Does a level point at the block where a memory was planted?

    Each level has a profile over the blocks: how near triggers lie (inputs of the feed-forward layers, as in
    `meeting`), IoU, share of triggers stopped. The block pointed at is the one at which the planted memory
    exceeds the mean of the ordinary ones most. A row per level and planted image: pointed at, planted in,
    right (1, 0, or a share where several blocks are pointed at alike). Blind guessing is right once in as
    many times as there are blocks.
    """
    from dori.testbed.planted import known_units

    pairs = agreed[(agreed["between"] == "triggers") & (agreed["layer"] != ALL)]
    profiles = {
        "activations": met[met["kind"] == "feed-forward"].rename(columns={"index": "value"}),
        "weights (NeMo)": pairs[pairs["method"] == "NeMo"].rename(columns={"iou": "value"}),
        "weights (Wanda)": pairs[pairs["setting"] == label(WANDA)].rename(columns={"iou": "value"}),
        "one block at a time": stopped(cut).rename(columns={"stopped": "value"}),
    }
    rows = []
    for level, table in profiles.items():
        table = table.assign(block=table["layer"].str.split(".transformer_blocks").str[0])
        found = table.groupby(["memory", "image", "block"], sort=False)["value"].mean()
        if ORDINARY not in found.index:
            continue
        usual = found[ORDINARY].groupby(level="block").mean()
        for image, profile in found.get(PLANTED, pd.Series(dtype=float)).groupby(level="image", sort=False):
            above = profile.droplevel("image") - usual
            best = above.index[above >= above.max() - 1e-9].tolist()
            block = next(iter(known_units(image)[0])).split(".transformer_blocks")[0]
            names = " or ".join(map(layer_label, best))
            rows.append((level, image, names, layer_label(block), (block in best) / len(best)))
    return pd.DataFrame(rows, columns=["level", "image", "pointed at", "planted in", "right"])
