"""Replication: scores of generations against their training image, and the memorization rate made of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dori.metrics.intervals import Estimate, bootstrap, median_mad, wilson
from dori.tables import readable


def replication_table(scores: Mapping[str, Sequence[float]], threshold: float) -> pd.DataFrame:
    """Scores by id -> a row per id and seed: id, seed (number within the id), score, replicated."""
    rows = [(i, seed, float(score)) for i, found in scores.items() for seed, score in enumerate(found)]
    table = pd.DataFrame(rows, columns=["id", "seed", "score"])
    return table.assign(replicated=table["score"] > threshold)


def best_scores(table: pd.DataFrame) -> pd.Series:
    """Best score over the seeds of each id, the paper's SSCD_Orig."""
    return table.groupby("id", sort=False)["score"].max()


def memorization_rate(table: pd.DataFrame) -> Estimate:
    """MR: the share of ids of which at least one seed replicates, with Wilson's interval."""
    hit = table.groupby("id", sort=False)["replicated"].any()
    return wilson(int(hit.sum()), len(hit))


def pair_rate(table: pd.DataFrame) -> Estimate:
    """MR_mean: the share of (id, seed) pairs that replicate; bootstrap over ids."""
    return bootstrap(table["replicated"], np.mean, by=table["id"])


def median_score(table: pd.DataFrame) -> Estimate:
    """Median over ids of the best score; bootstrap over ids."""
    return bootstrap(best_scores(table), np.median)


def spread(table: pd.DataFrame, by: str, *, x: str = "score") -> pd.DataFrame:
    """n, median and extremes of `x` for each value of `by`, rounded for reading."""
    figures = {"n": "size", "median": "median", "lowest": "min", "highest": "max"}
    return readable(table.astype({x: float}).groupby(by, sort=False)[x].agg(**figures).round(2))


def rates(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Memorization rate, best score (median, MAD) and n for each value of the columns `by`."""
    rows = []
    for key, part in table.groupby(list(by), sort=True, dropna=False):
        rate, (median, mad) = memorization_rate(part), median_mad(best_scores(part))
        rows.append((*key, rate.value, rate.low, rate.high, rate.n, median, mad))
    return pd.DataFrame(rows, columns=[*by, "mr", "low", "high", "n", "best_score", "mad"])


MR, BEST = "MR [95 % interval]", "best copy score (median ± MAD)"


def rates_shown(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`rates` for reading, as text, in the order of the table: MR with its interval, n, and the best score.

    MAD is the median absolute deviation.
    """
    found = table[list(by)].drop_duplicates().merge(rates(table, by), on=list(by))
    shown = found[list(by)].copy()
    shown[MR] = [Estimate(*row).short for row in found[["mr", "low", "high", "n"]].itertuples(index=False)]
    shown["n"] = found["n"]
    scores = found[["best_score", "mad", "n"]].itertuples(index=False)
    shown[BEST] = [f"{best:.2f}" + (f" ± {mad:.2f}" if n > 1 else "") for best, mad, n in scores]
    return readable(shown.set_index(list(by)))


def first_above(table: pd.DataFrame, *, share: float = 0.01, x: str = "steps") -> float | None:
    """The least `x` at which a memorization rate exceeds `share` (`table` from `rates`); None if none does.

    Of a control's rates this is the paper's budget b*: beyond it, an attack paints what was never learned.
    """
    above = table.loc[table["mr"] > share, x]
    return None if above.empty else float(above.min())
