"""Find memorized prompts without the training set: how hard does the prompt pull?

The measure is of Wen et al. 2024.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_curve
from torch import Tensor

from dori.metrics.intervals import Estimate
from dori.model import TextToImageModel
from dori.sampling import ddim, guided


@torch.no_grad()
def magnitudes(
    model: TextToImageModel,
    prompt_embeds: Tensor,
    seeds: Sequence[int],
    *,
    steps: int = 1,
    guidance_scale: float | None = None,
    num_inference_steps: int | None = None,
) -> Tensor:
    r"""Wen's magnitude :math:`\lVert \epsilon_y - \epsilon_\varnothing \rVert_2` over all latent entries at
    the first DDIM steps: (B, steps).

    One row per embedding (B, T, D) and seed. The score of a prompt is the mean over its seeds and steps;
    higher means memorized. For flow matching it is the difference of velocities. Two UNet forwards per seed
    and step.
    """
    g = model.defaults.guidance_scale if guidance_scale is None else guidance_scale
    norms = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        empty, cond = model.predict_both(x, t, prompt_embeds)
        pull = model.comparable(cond, x, t) - model.comparable(empty, x, t)
        norms.append(pull.float().flatten(1).norm(dim=1))
        return guided(empty, cond, g)

    total = num_inference_steps or model.defaults.num_inference_steps
    ddim(
        denoise,
        model.initial_latents(seeds),
        model.new_scheduler(),
        num_inference_steps=total,
        stop_after=steps,
    )
    return torch.stack(norms, dim=1).cpu()


def auroc(scores: Sequence[float], memorized: Sequence[bool]) -> Estimate:
    """Area under the ROC curve; the interval resamples memorized and regular prompts apart."""
    return _stratified(_area, scores, memorized)


def tpr_at(scores: Sequence[float], memorized: Sequence[bool], *, fpr: float = 0.01) -> Estimate:
    """Share of memorized prompts found while at most `fpr` of the regular prompts raise an alarm."""
    return _stratified(lambda y, s: _tpr(y, s, fpr), scores, memorized)


def roc_table(scores: Sequence[float], memorized: Sequence[bool]) -> pd.DataFrame:
    """The ROC curve's corners: fpr, tpr, threshold."""
    memorized = np.asarray(memorized, dtype=bool)
    if memorized.all() or not memorized.any():  # one class alone has no curve
        return pd.DataFrame({"fpr": [], "tpr": [], "threshold": []})
    fpr, tpr, threshold = roc_curve(memorized, np.asarray(scores, dtype=float))
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": threshold})


def _area(memorized: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area of each row of scores (B, N): the share of pairs in which the memorized prompt has the higher."""
    found, others = scores[:, memorized], scores[:, ~memorized]
    u = mannwhitneyu(found, others, axis=1, method="asymptotic").statistic
    return u / (found.shape[1] * others.shape[1])


def _tpr(memorized: np.ndarray, scores: np.ndarray, fpr: float) -> np.ndarray:
    """Of each row of scores (B, N): the share above the regular score that only so many alarms exceed."""
    found, others = scores[:, memorized], np.sort(scores[:, ~memorized])[:, ::-1]
    alarms = math.floor(fpr * others.shape[1] + 1e-9)  # 0.01 * 100 may fall short of 1
    bound = others[:, alarms] if alarms < others.shape[1] else np.full(len(others), -np.inf)
    return (found > bound[:, None]).mean(1)


def _stratified(
    statistic, scores: Sequence[float], memorized: Sequence[bool], *, resamples: int = 1000
) -> Estimate:
    """Percentile bootstrap within each class; n is the number of memorized prompts."""
    scores, memorized = np.asarray(scores, dtype=float), np.asarray(memorized, dtype=bool)
    rng, groups = np.random.default_rng(0), [np.flatnonzero(memorized), np.flatnonzero(~memorized)]
    if any(len(group) == 0 for group in groups):
        return Estimate(float("nan"), float("nan"), float("nan"), len(groups[0]))
    rows = np.array([[i for g in groups for i in rng.choice(g, len(g))] for _ in range(resamples)])
    classes = memorized[np.concatenate(groups)]
    low, high = np.quantile(statistic(classes, scores[rows]), [0.025, 0.975])
    point = float(statistic(memorized, scores[None])[0])
    return Estimate(point, float(low), float(high), len(groups[0]))
