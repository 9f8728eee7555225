"""Every figure of the book is an estimate with an interval and an n."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

MINUS = "\N{MINUS SIGN}"


class Estimate(NamedTuple):
    """A value with its 95 % interval; `n` counts the independent items behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{fixed(self.value)} [{fixed(self.low)}, {fixed(self.high)}], n = {self.n}"

    @property
    def cell(self) -> str:
        """The same for tables: 0.97 [0.91, 0.99] (32)."""
        return f"{fixed(self.value)} [{fixed(self.low)}, {fixed(self.high)}] ({self.n})"

    @property
    def short(self) -> str:
        """`shown` with two decimals."""
        return self.shown()

    def shown(self, decimals: int = 2) -> str:
        """The same without n, and without an interval that has no width; "–" for NaN."""
        if np.isnan(self.value):
            return "–"
        value, low, high = (fixed(v, decimals) for v in self[:3])
        return value + (f" [{low}, {high}]" if self.low < self.high else "")

    @property
    def percent(self) -> str:
        """The same for prose: 96.9 % [84.3, 99.4], n = 32."""
        value, low, high = (fixed(100 * v, 1) for v in self[:3])
        return f"{value} % [{low}, {high}], n = {self.n}"


def fixed(value: float, decimals: int = 2) -> str:
    """A number for people, with a minus and not a hyphen; "–" for NaN."""
    return "–" if np.isnan(value) else f"{value:z.{decimals}f}".replace("-", MINUS)


def p_value(p: float) -> str:
    """A test's p for people, in the one form of this book: 0.034, "< 0.001", "–" for NaN."""
    return "< 0.001" if p < 0.001 else fixed(p, 3)


def wilson(k: int, n: int) -> Estimate:
    """Share k/n with Wilson's 95 % interval, honest near 0 and 1; an empty sample says nothing: [0, 1]."""
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    interval = stats.binomtest(int(k), int(n)).proportion_ci(method="wilson")
    return Estimate(k / n, float(interval.low), float(interval.high), int(n))


def rate_difference(a: Estimate, b: Estimate) -> Estimate:
    """Share a minus share b with Newcombe's interval, made of the two Wilson intervals; n is the smaller.

    Newcombe 1998 (Statistics in Medicine 17), method 10. It takes the samples as independent, which for the
    same images on two models is the more careful choice. NaN where either is unknown.
    """
    if np.isnan(a.value) or np.isnan(b.value):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = a.value - b.value
    below = np.hypot(a.value - a.low, b.high - b.value)
    above = np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, float(value - below), float(value + above), min(a.n, b.n))


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    by: Sequence | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of `statistic`, resampling the items `by` (each value by itself if not given).

    Several seeds of one prompt are not independent: with `by=ids` a prompt is drawn with all its values.
    """
    values = np.asarray(values, dtype=float)
    groups = _grouped(values, by)
    point = float(statistic(values)) if len(values) else float("nan")
    if len(groups) < 2:
        return Estimate(point, float("nan"), float("nan"), len(groups))
    result = stats.bootstrap(
        (np.arange(len(groups)),),
        lambda drawn: statistic(np.concatenate([groups[i] for i in drawn])),
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(point, *map(float, result.confidence_interval), len(groups))


def bootstrap_table(
    table: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    by: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a statistic of a whole table, resampling the items named by the columns `by`.

    For contrasts: a ratio of two accuracies on the same images, a difference of two medians.
    """
    rows = list(table.groupby(list(by), sort=False).indices.values())
    if len(rows) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), len(rows))
    rng, point = np.random.default_rng(seed), float(statistic(table))
    drawn = (rng.integers(len(rows), size=len(rows)) for _ in range(resamples))
    found = [statistic(table.iloc[np.concatenate([rows[i] for i in d])]) for d in drawn]
    return Estimate(point, *map(float, np.nanquantile(found, [0.025, 0.975])), len(rows))


def mean_of_few(values: Sequence[float], *, within: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Mean of a handful of items with Student's t interval; NaN items are left out.

    A bootstrap of three values knows no value outside them and is too sure. Items that agree exactly, or a
    single one, give no interval. `within` is where such items can lie: t knows no such ends, the interval is
    cut at them.
    """
    kept = _known(values)
    if len(kept) < 2 or np.ptp(kept) == 0:
        return Estimate(_mean(kept), float("nan"), float("nan"), len(kept))
    found = np.clip(stats.ttest_1samp(kept, 0).confidence_interval(), *within)
    return Estimate(_mean(kept), *map(float, found), len(kept))


def difference_of_few(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Mean of a minus mean of b, a handful of items each, with Welch's t interval; n is the smaller.

    NaN items are left out; no interval as in `mean_of_few`.
    """
    a, b = _known(a), _known(b)
    value, n = _mean(a) - _mean(b), min(len(a), len(b))
    if n < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return Estimate(value, float("nan"), float("nan"), n)
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return Estimate(value, float(found.low), float(found.high), n)


def jackknife(ids: Sequence[str], statistic: Callable[[np.ndarray], float]) -> Estimate:
    """A statistic of rows (their numbers are given to it) with a normal interval from leaving each id out.

    For distances between sets: rows drawn twice, as the bootstrap does, would make a set look more alike.
    """
    ids = np.asarray(ids)
    point, kept = float(statistic(np.arange(len(ids)))), list(dict.fromkeys(ids.tolist()))
    if len(kept) < 3:  # a set without one of two has no spread
        return Estimate(point, float("nan"), float("nan"), len(kept))
    left = np.array([statistic(np.flatnonzero(ids != i)) for i in kept])
    half = 1.96 * float(np.sqrt((len(left) - 1) * left.var()))
    return Estimate(point, point - half, point + half, len(left))


def median_mad(values: Sequence[float]) -> tuple[float, float]:
    """Median and median absolute deviation (no 1.4826): the paper's "±"."""
    values = np.asarray(values, dtype=float)
    median = float(np.median(values))
    return median, float(np.median(np.abs(values - median)))


def _known(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _grouped(values: np.ndarray, by: Sequence | None) -> list[np.ndarray]:
    """Values of each item."""
    if by is None:
        return list(values[:, None])
    _, codes = np.unique(np.asarray(by), return_inverse=True)
    return [values[codes == code] for code in range(codes.max() + 1)] if len(values) else []
