"""Do two searches point at the same units? Overlap of sets, beside what chance and a ceiling would give.

Source of the question: arXiv 2507.16880, section 3 (intersection over union of what NeMo and Wanda select
from different triggers of one image). An empty union is undefined here, never full agreement; chance level,
ceiling and intervals are ours.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import signal, stats

from dori.errors import DoriError
from dori.metrics.intervals import Estimate
from dori.mitigation.units import Units

ALL = "all"  # the name of all layers together
COLUMNS = ["layer", "a", "b", "iou", "chance", "units_a", "units_b", "eligible"]
NAN = float("nan")


def layer_iou(a: Units, b: Units) -> dict[str, float]:
    """Intersection over union in each layer that either has; NaN where neither has a unit off."""
    none = Units({})
    parts = {name: [Units({name: s[name]}) if name in s else none for s in (a, b)] for name in [*a, *b]}
    return {name: one.iou(other) for name, (one, other) in parts.items()}


def chance_iou(a: int | Sequence[int], b: int | Sequence[int], size: int | Sequence[int]) -> float:
    r"""Expected IoU of two random sets of a and b units among `size`.

    Exact, as the overlap is hypergeometric: :math:`\sum_k P(k)\, k / (a + b - k)`; about :math:`p / (2 - p)`
    at density :math:`p` each. Sequences are layers: the sets are random inside each layer, with as many units
    there as given, and the IoU is over all layers together. NaN where both sets are empty. Raises DoriError
    for more units than there are.
    """
    a, b, size = ([int(v) for v in np.atleast_1d(x)] for x in (a, b, size))
    if any(not 0 <= k <= n for one in (a, b) for k, n in zip(one, size, strict=True)):
        raise DoriError(f"random sets of {a} and {b} units among {size}: there are not so many")
    units = sum(a) + sum(b)
    if not units:
        return NAN
    first, chances = 0, np.ones(1)
    for layer in zip(a, b, size, strict=True):
        start, more = _overlap(*layer)
        first, chances = first + start, signal.convolve(chances, more)
    shared = first + np.arange(len(chances))
    return float(np.sum(chances * shared / (units - shared)))


@lru_cache(maxsize=4096)
def _overlap(a: int, b: int, size: int) -> tuple[int, np.ndarray]:
    """Chances of sharing first, first + 1, … units, without the tails that no sum would feel."""
    if not a or not b:
        return 0, np.ones(1)
    mean = a * b / size
    around = 12 * math.sqrt(mean * (1 - a / size) * (1 - b / size)) + 30
    first, last = max(0, a + b - size, math.floor(mean - around)), min(a, b, math.ceil(mean + around))
    chances = stats.hypergeom.pmf(np.arange(first, last + 1), size, a, b)
    return first, chances / chances.sum()


def agreement(sets: Mapping[str, Units] | Sequence[Units]) -> pd.DataFrame:
    """A row per pair of sets and layer: layer, a, b, iou, chance, units_a, units_b, eligible.

    a and b are the names, or the numbers in a sequence. The layer "all" is all layers together; its chance is
    that of sets with the same number of units in each layer. iou and chance are NaN where neither has a unit.
    """
    named = dict(sets) if isinstance(sets, Mapping) else dict(enumerate(sets))
    rows = [row for pair in combinations(named, 2) for row in _rows(*pair, named)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(a: str | int, b: str | int, named: Mapping[str | int, Units]) -> list[tuple]:
    """One pair: its layers, then all of them."""
    one, other, rows = named[a], named[b], []
    for name, value in layer_iou(one, other).items():
        size = (one if name in one else other)[name].numel()
        counts = [int(s[name].sum()) if name in s else 0 for s in (one, other)]
        rows.append((name, a, b, value, chance_iou(*counts, size), *counts, size))
    counts = [[row[column] for row in rows] for column in (5, 6, 7)]
    whole = (ALL, a, b, one.iou(other), chance_iou(*counts), *map(sum, counts))
    return [*rows, whole]


def placed(value: float, chance: float, ceiling: float) -> float:
    r"""Where an agreement lies from chance (0) to the ceiling (1):
    :math:`(v - \text{chance}) / (\text{ceiling} - \text{chance})`, NaN unless the ceiling is above chance."""
    return (value - chance) / (ceiling - chance) if ceiling > chance else NAN


def agreement_estimate(
    table: pd.DataFrame,
    column: str = "iou",
    *,
    by: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean of a column over the pairs of a table like `agreement`'s, of one layer; NaN rows are left out.

    The bootstrap draws the items that a and b name, as a pair is not independent of another with the same
    item; an item makes no pair with its own copy. Items belong to the group that the column `by` names (an
    image); several groups are drawn anew as well. n counts the groups, the items if there is one.
    """
    known = table[table[column].notna()]
    groups = [_Pairs(part, column) for _, part in (known.groupby(by) if by else [("", known)])]
    groups = [g for g in groups if g.n]
    if not groups:
        return Estimate(NAN, NAN, NAN, 0)
    value, n = float(known[column].mean()), len(groups) if len(groups) > 1 else groups[0].n
    if len(groups) == 1 and n < 3:  # two items are one pair, however often drawn
        return Estimate(value, NAN, NAN, n)
    rng, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = rng.integers(len(groups), size=len(groups))
        total, weight = np.sum([groups[i].redrawn(rng) for i in drawn], axis=0)
        if weight:
            found.append(total / weight)
    return Estimate(value, *map(float, np.quantile(found, [0.025, 0.975])), n)


class _Pairs:
    """The pairs of one group of items."""

    def __init__(self, table: pd.DataFrame, column: str) -> None:
        self.values = table[column].to_numpy(dtype=float)
        codes, names = pd.factorize(pd.concat([table["a"], table["b"]]))
        self.n, (self.a, self.b) = len(names), codes.reshape(2, -1)

    def redrawn(self, rng: np.random.Generator) -> tuple[float, int]:
        """Sum of the values and number of pairs after drawing the items anew."""
        times = np.bincount(rng.integers(self.n, size=self.n), minlength=self.n)
        weight = times[self.a] * times[self.b]
        return float(weight @ self.values), int(weight.sum())
