"""How good and how varied are generations, and how near do they come to any training image?"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from dori.metrics.alignment import ClipImageEncoder, ClipScorer
from dori.metrics.copy import CopyDescriptor, pairwise, similarity
from dori.metrics.intervals import Estimate, bootstrap

FID_NAME = (
    "clip-fid (bundled)"  # FID arithmetic on CLIP's image features, never to be read beside Inception's
)


def clip_fid(scorer: ClipScorer, real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of CLIP features of two sets (B, 3, H, W) in [0, 1]; biased upwards for small sets."""
    metric = FrechetInceptionDistance(feature=ClipImageEncoder(scorer), normalize=True).set_dtype(
        torch.float64
    )
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


def clip_kid(
    scorer: ClipScorer, real: Tensor, generated: Tensor, *, subsets: int = 50, seed: int = 0
) -> Estimate:
    """KID x 1000 of CLIP features (Bińkowski et al. 2018); unbiased, so it may fall below 0."""
    size = min(len(real), len(generated), 100)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter(
            "ignore", UserWarning
        )  # it warns that features are kept in memory; they are few here
        torch.manual_seed(seed)  # torchmetrics draws its subsets from the global generator
        metric = KernelInceptionDistance(
            feature=ClipImageEncoder(scorer), subsets=subsets, subset_size=size, normalize=True
        )
        metric.update(real, real=True)
        metric.update(generated, real=False)
        mean, sd = (1000 * float(v) for v in metric.compute())
    half = 1.96 * sd / np.sqrt(subsets)
    return Estimate(mean, mean - half, mean + half, min(len(real), len(generated)))


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
