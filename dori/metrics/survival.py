"""How much work it takes to get an image back: steps of a search as times, censored where it failed."""

import warnings

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05  # of the tests
CONFIDENCE = 1 - LEVEL  # of the curves


def first_success(table: pd.DataFrame) -> pd.DataFrame:
    """The least number of steps after which any seed of an image replicates, a row per image.

    `table` has a row per id, seed and look (`steps`) with `replicated`. Columns: id, steps (of the last look
    where none replicates), returned (False: censored there).
    """
    hit = table.groupby(["id", "steps"], sort=True)["replicated"].any().reset_index()
    rows = []
    for item, part in hit.groupby("id", sort=False):
        good = part.loc[part["replicated"], "steps"]
        rows.append((item, int(good.min() if len(good) else part["steps"].max()), bool(len(good))))
    return pd.DataFrame(rows, columns=["id", "steps", "returned"])


def returned_curve(times: pd.DataFrame) -> pd.DataFrame:
    """Share of images that have returned by each number of steps, by Kaplan and Meier (1958).

    `times` as `first_success`. Columns: steps, share, low, high (95 %, log-log; NaN where it is undefined).
    """
    found = stats.ecdf(_censored(times))
    steps = found.cdf.quantiles
    with warnings.catch_warnings():  # where a bound is undefined it is NaN, as the docstring says
        warnings.simplefilter("ignore", RuntimeWarning)
        bounds = found.cdf.confidence_interval(CONFIDENCE, method="log-log")
    low, high = (np.asarray(b.probabilities) for b in (bounds.low, bounds.high))
    return pd.DataFrame({"steps": steps, "share": found.cdf.probabilities, "low": low, "high": high})


def half_returned(times: pd.DataFrame) -> float:
    """Steps by which half of the images have returned; infinite if fewer have within the search."""
    curve = returned_curve(times)
    above = curve.loc[curve["share"] >= 0.5, "steps"]
    return float(above.min()) if len(above) else np.inf


def same_work(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """p of the log-rank test that images of `a` and `b` return after the same work.

    1 where nothing varies, as the two are alike then: nothing returned in either, or all at one step. Two
    tables as `first_success`.
    """
    if not (a["returned"].any() or b["returned"].any()):
        return 1.0
    with np.errstate(invalid="ignore"):
        p = float(stats.logrank(_censored(a), _censored(b)).pvalue)
    return 1.0 if np.isnan(p) else p


def power(n: int, share: float, m: int | None = None) -> float:
    """How likely Fisher's exact test at 5 % tells n images of which `share` return from m of which none do.

    It is what a p above 0.05 has to be read with: with few images nothing is told from anything.
    """
    m = n if m is None else m
    rejected = [stats.fisher_exact([[k, n - k], [0, m]]).pvalue < LEVEL for k in range(n + 1)]
    return float(stats.binom.pmf(np.arange(n + 1), n, share)[rejected].sum())


def _censored(times: pd.DataFrame) -> stats.CensoredData:
    returned = times["returned"].to_numpy(bool)
    steps = times["steps"].to_numpy(float)
    return stats.CensoredData(uncensored=steps[returned], right=steps[~returned])
