"""How far apart do vectors lie: spreads with intervals, shares of a start's spread.

Pairs of n vectors are not independent: every interval here is a 95 % percentile bootstrap over the vectors,
in which a vector drawn twice makes no pair with its own copy. Source of the questions: arXiv 2507.16880,
section 3 (locality of memorization); ratios to what was there at the start and intervals are ours.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dori.errors import DoriError
from dori.metrics.intervals import Estimate

Statistic = Callable[[np.ndarray], float]
Matrix = Tensor | np.ndarray  # (n, n), symmetric
DISTANCES = {"L2": "L2 distance", "cosine": "1 − cosine"}  # metric -> what a reader calls it
NAN = float("nan")


def pairwise(vectors: Tensor, metric: str = "L2") -> Tensor:
    """Distances between all of n vectors (n, …), flattened: (n, n) in float64.

    "L2", or "cosine": 1 - cos, undefined (NaN) for a vector of zeros. Raises DoriError for another metric.
    """
    return between(vectors, vectors, metric)


def between(a: Tensor, b: Tensor, metric: str = "L2") -> Tensor:
    """Distances from each of a (n, …) to each of b (m, …): (n, m) in float64. Raises DoriError."""
    if metric not in DISTANCES:
        raise DoriError(f"distance '{metric}': use {' or '.join(DISTANCES)}")
    a, b = flat(a), flat(b)
    # without the shortcut through a matrix product, which turns 0 into the root of a rounding error
    exact = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "L2":
        return exact(a, b)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (a, b)]
    return exact(*unit).square() / 2  # |u - v|^2 = 2 (1 - cos)


def pairs(matrix: Matrix) -> np.ndarray:
    """The n (n - 1) / 2 entries above the diagonal of (n, n)."""
    matrix = np.asarray(matrix)
    return matrix[np.triu_indices(len(matrix), k=1)]


def spread(
    matrices: Matrix | Sequence[Matrix],
    statistic: Statistic = np.median,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic of the distances of all pairs, from their matrix (n, n); n counts the vectors.

    Of several matrices, one per image, the pairs are those inside each, the bootstrap draws images anew as
    well, and n counts them.
    """
    several = _several(matrices)
    n = len(several) if len(several) > 1 else len(several[0])
    value = _of(statistic, np.concatenate([pairs(m) for m in several]))
    known = len(several) > 1 or n > 2
    return _interval(
        value,
        lambda rng: _of(statistic, _redrawn_images(several, rng)),
        n,
        resamples=resamples,
        seed=seed,
        known=known,
    )


def spread_across(
    matrix: Matrix, labels: Sequence, statistic: Statistic = np.mean, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """A statistic of the distances of pairs of different label; bootstrap over the vectors of each label.

    Raises DoriError for a wrong number of labels.
    """
    matrix, codes = np.asarray(matrix), codes_of(labels, len(matrix))
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]

    def of(drawn: np.ndarray) -> float:
        a, b = np.triu_indices(len(drawn), k=1)
        a, b = drawn[a], drawn[b]
        return _of(statistic, matrix[a, b][codes[a] != codes[b]])

    return _interval(
        of(np.arange(len(matrix))),
        lambda rng: of(np.concatenate([rng.choice(m, len(m)) for m in members])),
        len(matrix),
        resamples=resamples,
        seed=seed,
    )


def spread_ratio(
    top: Matrix | Sequence[Matrix],
    bottom: Matrix | Sequence[Matrix],
    statistic: Statistic = np.median,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The statistic of the pairs of `top` over that of the pairs of `bottom`.

    Each is a matrix (n, n), or several, one per image, with pairs only inside an image. The bootstrap draws
    images anew where there are several, and vectors in each; top and bottom independently. n counts the
    images of `top`, the vectors if it is one matrix.
    """
    top, bottom = _several(top), _several(bottom)

    def ratio(rng: np.random.Generator) -> float:
        return _over(*(_of(statistic, _redrawn_images(m, rng)) for m in (top, bottom)))

    value = _over(*(_of(statistic, np.concatenate([pairs(m) for m in one])) for one in (top, bottom)))
    n = len(top) if len(top) > 1 else len(top[0])
    known = all(len(one) > 1 or len(one[0]) > 2 for one in (top, bottom))
    return _interval(value, ratio, n, resamples=resamples, seed=seed, known=known)


def within_over_between(
    matrix: Matrix,
    labels: Sequence,
    statistic: Statistic = np.mean,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The statistic over pairs of equal label over that of pairs of different label, from (n, n).

    Below 1: vectors of one label lie nearer to each other than to others. The bootstrap draws vectors inside
    each label. NaN where there are no pairs of either sort. Raises DoriError for a wrong number of labels.
    """
    matrix, codes = np.asarray(matrix), codes_of(labels, len(matrix))
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]

    def ratio(drawn: np.ndarray) -> float:
        a, b = np.triu_indices(len(drawn), k=1)
        a, b = drawn[a], drawn[b]
        found, same = matrix[a, b], codes[a] == codes[b]
        return _over(_of(statistic, found[same & (a != b)]), _of(statistic, found[~same]))

    def redrawn(rng: np.random.Generator) -> float:
        return ratio(np.concatenate([rng.choice(m, len(m)) for m in members]))

    return _interval(ratio(np.arange(len(matrix))), redrawn, len(matrix), resamples=resamples, seed=seed)


def displacement(starts: Tensor, ends: Tensor) -> Tensor:
    """L2 distance of each end from its own start, (n, …) each: (n,) in float64. Raises DoriError."""
    return _moves(starts, ends).norm(dim=1)


def displacement_share(starts: Tensor, ends: Tensor, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Median displacement over the median distance between two starts; bootstrap over the vectors.

    Far below 1, the spread of the ends is that of the starts: inherited, no evidence about the search.
    """
    moved, apart = displacement(starts, ends).numpy(), pairwise(starts).numpy()

    def share(rng: np.random.Generator) -> float:
        drawn = rng.integers(len(moved), size=len(moved))
        return _over(_of(np.median, moved[drawn]), _of(np.median, _distinct(apart, drawn)))

    value = _over(_of(np.median, moved), _of(np.median, pairs(apart)))
    return _interval(value, share, len(moved), resamples=resamples, seed=seed)


def displacement_agreement(starts: Tensor, ends: Tensor, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean cosine between the moves (end - start) of two vectors: 1 if all went the same way, 0 if unrelated.

    A vector that did not move has no direction: its pairs are left out.
    """
    cosines = 1 - pairwise(_moves(starts, ends), "cosine")
    return spread(cosines, _nanmean, resamples=resamples, seed=seed)


def flat(vectors: Tensor) -> Tensor:
    """(n, …) as (n, numbers) in float64 on the CPU."""
    return vectors.detach().cpu().double().flatten(1)


def _moves(starts: Tensor, ends: Tensor) -> Tensor:
    if starts.shape != ends.shape:
        raise DoriError(f"{tuple(starts.shape)} starts for {tuple(ends.shape)} ends: give one each")
    return flat(ends) - flat(starts)


def codes_of(labels: Sequence, n: int) -> np.ndarray:
    """Labels as 0, 1, …"""
    if len(labels) != n or not n:
        raise DoriError(f"{len(labels)} labels for {n} vectors: give one each")
    return np.unique(list(labels), return_inverse=True)[1]


def _several(matrices: Matrix | Sequence[Matrix]) -> list[np.ndarray]:
    """One matrix or many as a list. Raises DoriError for none."""
    single = isinstance(matrices, Tensor | np.ndarray) and matrices.ndim == 2
    found = [np.asarray(m) for m in ([matrices] if single else matrices)]
    if not found:
        raise DoriError("no matrix of distances: give one or more")
    return found


def _distinct(matrix: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Distances of the pairs of drawn vectors without those of a vector with its own copy."""
    a, b = np.triu_indices(len(drawn), k=1)
    a, b = drawn[a], drawn[b]
    return matrix[a, b][a != b]


def _redrawn(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _distinct(matrix, rng.integers(len(matrix), size=len(matrix)))


def _redrawn_images(matrices: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Pairs of images drawn anew, each time with vectors drawn anew."""
    drawn = rng.integers(len(matrices), size=len(matrices))
    return np.concatenate([_redrawn(matrices[i], rng) for i in drawn])


def _of(statistic: Statistic, values: np.ndarray) -> float:
    return float(statistic(values)) if len(values) else NAN


def _nanmean(values: np.ndarray) -> float:
    return _of(np.mean, values[~np.isnan(values)])


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom else NAN


def _interval(
    value: float,
    draw: Callable[[np.random.Generator], float],
    n: int,
    *,
    resamples: int,
    seed: int,
    known: bool | None = None,
) -> Estimate:
    """Percentiles of what is drawn, unless not `known`: two vectors are one pair, however often drawn."""
    rng = np.random.default_rng(seed)
    known = n > 2 if known is None else known
    found = np.array([draw(rng) for _ in range(resamples)]) if known else np.empty(0)
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (NAN, NAN)
    return Estimate(value, float(low), float(high), n)
