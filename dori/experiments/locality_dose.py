"""Chapter 3: the diagnostics by the number of copies in the training set, which only a testbed knows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from dori.experiments import locality_blocks
from dori.experiments.locality_activations import meeting
from dori.experiments.locality_embeddings import spread_ratio
from dori.experiments.locality_levels import FIGURE, index, per_image
from dori.experiments.locality_sizes import WANDA
from dori.experiments.locality_transfer import transfers
from dori.experiments.locality_weights import agreements
from dori.experiments.memories import ORDINARY, Memory, searched, sizes
from dori.experiments.triggers import trigger_rate
from dori.metrics.intervals import Estimate, fixed, p_value
from dori.study import Study

DOSED = ("embeddings", "activations", "weights (Wanda)", "transfer (Wanda)", "one block at a time")


def by_copies(study: Study, memories: Sequence[Memory]) -> dict[int, list[Memory]]:
    """Memories by their number of copies in the training set: those with the most (`memories`), and of the
    numbers below some verbatim images of the test half, searched for from a few random starts."""
    return {**_levels(study), _most(memories): list(memories)}


def dose(
    groups: Mapping[int, Sequence[Memory]], memories: Sequence[Memory], table: pd.DataFrame
) -> pd.DataFrame:
    """The diagnostics by the number of copies in the training set: copies, diagnostic, value, low, high, n.

    `groups` are those of `by_copies`, `memories` those with the most copies and `table` their indices
    (`per_image`). Where no trigger was found, only the share of searches that worked is known. NeMo's search
    is too long to be asked of so many images, and a block's directions tell nothing.
    """
    rows = []
    for copies, some in groups.items():
        found = {"searches that work": _rate(some)}
        worked = _worked(some)
        if worked:
            found["spread, in spreads of prompts"] = spread_ratio(worked)._replace(n=len(worked))
            known = table if some[0].id in {m.id for m in memories} else _few_indices(worked, memories)
            found |= {f"index: {level}": index(known, level) for level in DOSED}
        rows += [(copies, name, *_if_three(estimate)) for name, estimate in found.items()]
    return pd.DataFrame(rows, columns=["copies", "diagnostic", *FIGURE])


def _few_indices(memories: Sequence[Memory], most: Sequence[Memory]) -> pd.DataFrame:
    """`per_image` of memories with fewer copies; those with the most (`most`) are the other images."""
    return per_image(
        memories,
        met=meeting(memories, [*memories, *most]),
        agreed=pd.concat([agreements(m, WANDA) for m in memories], ignore_index=True),
        moved=transfers(memories, others=most),
        cut=locality_blocks.table(memories),
    )


def needed(groups: Mapping[int, Sequence[Memory]]) -> pd.DataFrame:
    """`locality_blocks.needed` by copies (`by_copies`): a row per number of copies and image."""
    parts = {
        copies: locality_blocks.needed(locality_blocks.table(worked)).droplevel("memory")
        for copies, some in groups.items()
        if (worked := _worked(some))
    }
    return pd.concat(parts, names=["copies"]) if parts else pd.DataFrame()


def trend(found: pd.DataFrame) -> str:
    """Rank correlation (Spearman) between copies and the index of blocks over the images of `needed`, as a
    sentence; p by permutations. Nothing where there are fewer than four images or one number of copies."""
    copies = found.index.get_level_values("copies") if len(found) else pd.Index([])
    if len(found) < 4 or copies.nunique() < 2 or found["index"].nunique() < 2:
        return ""
    ranks = [stats.rankdata(values) for values in (copies, found["index"])]
    how = stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    made = stats.pearsonr(*ranks, method=how)
    return (
        f"Over {len(found)} images with two triggers or more, the rank correlation (Spearman) between copies "
        f"and this index is {fixed(made.statistic)} (p {p_value(made.pvalue)}, permutations)."
    )


def dose_said(found: pd.DataFrame) -> str:
    """How the diagnostics change from the fewest copies to the most, as a sentence, from the table of `dose`.

    A change is certain where both have an interval and these do not touch.
    """
    parts = []
    for name, part in found.dropna(subset=["value"]).groupby("diagnostic", sort=False):
        few, most = (Estimate(*part.loc[part["copies"].agg(end), FIGURE]) for end in ("idxmin", "idxmax"))
        apart = most.high < few.low or few.high < most.low  # False where one has no interval
        span = f"{part['copies'].min()} to {part['copies'].max()} copies"
        if part["copies"].nunique() > 1:
            parts.append(f"*{name}* {few.short} to {most.short} ({span}{'' if apart else '; not certain'})")
    return "From the fewest copies to the most: " + "; ".join(parts) + "." if parts else ""


def _worked(memories: Sequence[Memory]) -> list[Memory]:
    """Those with triggers to compare."""
    return [m for m in memories if len(m.triggers()) > 1]


def _if_three(figure: Estimate) -> Estimate:
    """Without its interval where there are fewer than three images: that of two fills any axis."""
    return figure if figure.n > 2 else figure._replace(low=np.nan, high=np.nan)


def _rate(memories: Sequence[Memory]) -> Estimate:
    scores = pd.concat([m.scores for m in memories], ignore_index=True)
    return trigger_rate(scores[(scores["init"] == "random") & (scores["draw"] == 0)])


def _most(memories: Sequence[Memory]) -> int:
    """Copies of the memories of the chapter, 0 where the benchmark does not say."""
    table = memories[0].prompts.table
    return int(table["copies"].iloc[0]) if "copies" in table else 0


def _levels(study: Study) -> dict[int, list[Memory]]:
    """Memories with fewer copies, searched for."""
    prompts, size, found = study.memorized.select(kind="verbatim"), sizes(study), {}
    for copies in size.levels:
        some = prompts.select(copies=copies) if "copies" in prompts.table else prompts.head(0)
        some = some.select(split="test") if "split" in some.table else some
        if len(some):
            found[copies] = searched(
                study, some.head(size.dose_images), {"random": size.dose_starts}, kind=ORDINARY
            )
    return found
