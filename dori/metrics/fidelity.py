"""How good and how varied are generations, and how near do they come to any training image?"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dori.metrics.alignment import ClipScorer
from dori.metrics.copy import CopyDescriptor, pairwise, similarity
from dori.metrics.inception import Inception
from dori.metrics.intervals import Estimate, bootstrap


class Features(Protocol):
    """What FID and KID are made of: Inception's (`metrics.inception`), or CLIP's as a stated substitute.

    Values of the two are never to be read beside each other, so a result carries the `name`.
    """

    name: str

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, d)."""
        ...


def load_features(source: str, *, device: str | torch.device = "cpu") -> Features:
    """`clip` for the bundled CLIP's features, else Inception's: `inception`, a file, `https://…#sha256=…`."""
    if source == "clip":
        return ClipScorer.load(device=device)
    return Inception.load(source, device=device)


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics expects the network: the features are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID (Heusel et al. 2017) of two sets of features, (n, d) and (m, d); biased upwards for small sets.

    NaN where a set has fewer than two images.
    """
    if min(len(real), len(generated)) < 2:
        return float("nan")
    from torchmetrics.image.fid import FrechetInceptionDistance  # here, as in signature.alike

    # Of several processes each has all features: added up over them, they would count as more images.
    metric = FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1]), sync_on_compute=False)
    metric = metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor) -> float:
    """KID (Bińkowski et al. 2018) of two sets of features, (n, d) and (m, d), not multiplied by 1000.

    The unbiased estimate over all pairs, so it may fall below 0; no subsets are drawn, as the sets are small
    and need not be of one size. NaN where a set has fewer than two images.
    """
    if min(len(real), len(generated)) < 2:
        return float("nan")
    from torchmetrics.image.kid import poly_kernel

    real, generated = real.double(), generated.double()
    within = 0.0
    for features in (real, generated):
        kernel, n = poly_kernel(features, features), len(features)
        within += float((kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1)))
    return within - 2 * float(poly_kernel(real, generated).mean())


def diversity(descriptor: CopyDescriptor, images: Tensor, ids: Sequence[str]) -> pd.Series:
    """Median pairwise copy score among each id's generations, the paper's D_SSCD: LOWER is more varied."""
    vectors, ids = descriptor.embed(images), np.asarray(ids)
    return pd.Series({i: float(pairwise(vectors[ids == i]).median()) for i in dict.fromkeys(ids.tolist())})


def nearest_neighbours(descriptor: CopyDescriptor, images: Tensor, train_index: Tensor) -> pd.DataFrame:
    """Best copy score of each image over a training set's descriptors (N, d): score, neighbour."""
    scores, neighbours = similarity(descriptor.embed(images), train_index.float()).max(dim=1)
    return pd.DataFrame({"score": scores.numpy(), "neighbour": neighbours.numpy()})


def exceedance(values: Sequence[float], reference: Sequence[float], *, quantile: float = 0.99) -> Estimate:
    """Share of `values` above the `quantile` of `reference`; two equal sets give 1 - quantile."""
    bar = float(np.quantile(np.asarray(reference, dtype=float), quantile))
    return bootstrap(np.asarray(values, dtype=float) > bar)
