"""Where vectors lie: paths between two of them, maps of many, how far sets of them are apart on a map.

Source of the questions: arXiv 2507.16880, section 3 (maps of trigger embeddings); paths are ours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from dori.errors import DoriError
from dori.locality.distances import codes_of, flat

PLANES = ("PCA", "t-SNE")


def straight_path(a: Tensor, b: Tensor, fractions: Sequence[float]) -> Tensor:
    """(1 - f) a + f b at each of k fractions f, for a and b (T, D): (k, T, D)."""
    f = _fractions(fractions, a)
    return ((1 - f) * a.double() + f * b.double()).to(a.dtype)


def spherical_path(a: Tensor, b: Tensor, fractions: Sequence[float]) -> Tensor:
    """The direction turned from a's to b's along the great circle, the norm changed linearly: (k, T, D).

    Slerp of the flattened vectors (Shoemake 1985). Between random vectors the straight path passes through
    norms that no random vector has, this one does not. Where the directions are parallel or opposite, no
    great circle is singled out: the straight path.
    """
    f, norms = _fractions(fractions, a), [x.double().norm() for x in (a, b)]
    u, v = (x.double() / norm for x, norm in zip((a, b), norms, strict=True))
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # exact for small angles, unlike arccos
    if not angle.sin().abs() > 1e-6:  # NaN, for a vector of zeros, too
        return straight_path(a, b, fractions)
    direction = (((1 - f) * angle).sin() * u + (f * angle).sin() * v) / angle.sin()
    return (((1 - f) * norms[0] + f * norms[1]) * direction).to(a.dtype)


def plane(vectors: Tensor, method: str = "PCA", *, seed: int = 0) -> np.ndarray:
    """A map of n vectors (n, …), flattened: (n, 2).

    "PCA" is a projection and cannot make clusters; "t-SNE" (van der Maaten and Hinton 2008) can: after PCA to
    50 dimensions, perplexity 30 or what n allows. Raises DoriError for fewer than 4 vectors.
    """
    found, n = flat(vectors).numpy(), len(vectors)
    if method not in PLANES:
        raise DoriError(f"map '{method}': use {' or '.join(PLANES)}")
    _enough(n)
    if method == "PCA":
        return PCA(2, svd_solver="full").fit_transform(found)
    small = PCA(min(50, *found.shape), svd_solver="full").fit_transform(found)
    tsne = TSNE(2, perplexity=min(30, (n - 1) / 3), init="pca", random_state=seed)
    return tsne.fit_transform(small).astype(float)


def plane_shares(vectors: Tensor) -> np.ndarray:
    """Share of the variance of (n, …) on each axis of `plane(vectors, "PCA")`: (2,). Raises DoriError."""
    _enough(len(vectors))
    return PCA(2, svd_solver="full").fit(flat(vectors).numpy()).explained_variance_ratio_


def silhouette(vectors: Tensor, labels: Sequence) -> float:
    """Mean silhouette (Rousseeuw 1987) by L2 of (n, …): 1 separate clusters, 0 none, below 0 mixed up.

    Raises DoriError where there is a single label, or as many labels as vectors.
    """
    codes = codes_of(labels, len(vectors))
    if not 1 < len(set(codes.tolist())) < len(codes):
        raise DoriError(f"a silhouette of {len(codes)} vectors needs 2 to {len(codes) - 1} labels")
    return float(silhouette_score(flat(vectors).numpy(), codes))


def _fractions(fractions: Sequence[float], like: Tensor) -> Tensor:
    """(k, 1, …) to broadcast over a vector."""
    return torch.as_tensor(fractions, dtype=torch.float64, device=like.device).view(-1, *[1] * like.ndim)


def _enough(n: int) -> None:
    if n < 4:
        raise DoriError(f"a map of {n} vectors says nothing: use 4 or more")
