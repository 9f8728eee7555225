"""Train the bundled copy descriptor as SSCD is trained, on pictures that are in no other set.

SSCD: Pizzi et al. 2022.
"""

from __future__ import annotations

from pathlib import Path

import kornia.augmentation as K
import numpy as np
import torch
from torch import nn

from dori.metrics.descriptor_net import build_descriptor_net
from dori.testbed.canvas import IMAGE_SIZE
from dori.testbed.recipe import Recipe
from dori.training import Fit, Schedule

TEMPERATURE, ENTROPY_WEIGHT = 0.07, 1.0
SAME_CAPTION = 8  # pictures of one caption in a batch


def augmentations() -> nn.Module:
    """What a copy may have undergone: crop, flip-free shift, colour, grey, blur, noise, an overlaid
    patch."""
    return K.AugmentationSequential(
        K.RandomResizedCrop((IMAGE_SIZE, IMAGE_SIZE), scale=(0.7, 1.0), ratio=(0.85, 1.18), p=0.7),
        K.ColorJitter(0.25, 0.25, 0.25, 0.03, p=0.7),
        K.RandomGrayscale(p=0.1),
        K.RandomGaussianBlur((5, 5), (0.4, 1.6), p=0.4),
        K.RandomGaussianNoise(std=0.05, p=0.4),
        K.RandomErasing(scale=(0.02, 0.10), p=0.3),
        data_keys=["input"],
        same_on_batch=False,
    )


def info_nce(similarity: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """SSCD's contrastive loss: each positive pair against the negatives of its row (other positives left
    out).

    `similarity (N, N)` of N descriptors, `labels (N,)` the picture each is a copy of.
    """
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    e = (similarity / temperature).exp()
    negatives = (e * ~same).sum(1, keepdim=True)
    return -(e / (e + negatives + 1e-6)).log()[positive].sum() / len(labels)


def entropy(similarity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """SSCD's Kozachenko-Leonenko term: minus the mean log distance to the nearest other picture."""
    same = labels[:, None] == labels[None]
    nearest = similarity.masked_fill(same, -2).amax(1)
    return -(2 - 2 * nearest).clamp(min=1e-6).sqrt().log().mean()


def batch_rows(groups: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures of one batch, in eights of one caption: the negatives that matter here."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    picked = rng.choice(len(starts), count // SAME_CAPTION, replace=False)
    sizes = np.diff(starts, append=len(groups))[picked]
    rows = [
        s + rng.choice(n, SAME_CAPTION, replace=False) for s, n in zip(starts[picked], sizes, strict=True)
    ]
    return np.concatenate(rows)


def train(
    images: np.ndarray, groups: np.ndarray, recipe: Recipe, run_dir: Path, device: str = "cpu"
) -> nn.Module:
    """Train on uint8 `(N, 64, 64, 3)` in groups of one caption: two copies of a picture are positives.

    Pictures are augmented on the CPU, and what is returned is there.
    """
    torch.manual_seed(recipe.seed)
    net, augment = build_descriptor_net(recipe.descriptor_dim, recipe.descriptor_width), augmentations()
    net = net.to(device, memory_format=torch.channels_last)

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = batch_rows(groups, recipe.descriptor_batch, rng)
        pixels = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float() / 255
        with torch.random.fork_rng(devices=[]):  # kornia draws from the global generator
            torch.manual_seed(int(rng.integers(2**62)))
            copies = augment(torch.cat([pixels, pixels])).clamp(0, 1)
        embedded = net(copies.to(device, memory_format=torch.channels_last))
        similarity, labels = embedded @ embedded.T, torch.arange(len(rows), device=device).repeat(2)
        contrast, spread = info_nce(similarity, labels, TEMPERATURE), entropy(similarity, labels)
        return contrast + ENTROPY_WEIGHT * spread, {"contrast": contrast.item(), "entropy": spread.item()}

    fit = Fit(
        "descriptor",
        net,
        loss,
        Schedule(recipe.descriptor_steps, 1e-3, decay=0.6),
        run_dir,
        recipe.seed,
        ema_decay=0.99,
        weight_decay=1e-4,
    )
    return fit.run().cpu()


@torch.no_grad()
def embed(net: nn.Module, images: np.ndarray, batch: int = 256) -> torch.Tensor:
    """Descriptors `(N, dim)` of uint8 `(N, 64, 64, 3)`."""
    return torch.cat([net(_pixels(images[i : i + batch])) for i in range(0, len(images), batch)])


def _pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def same_group_scores(descriptors: torch.Tensor, groups: np.ndarray) -> np.ndarray:
    """Scores of all pairs of different pictures within one group."""
    size = int((groups == groups[0]).sum())
    members = descriptors.reshape(-1, size, descriptors.shape[1])
    above = torch.triu_indices(size, size, 1)
    return (members @ members.transpose(1, 2))[:, above[0], above[1]].flatten().numpy()


@torch.no_grad()
def calibrate(
    net: nn.Module, images: np.ndarray, groups: np.ndarray, recipe: Recipe, false_match_rate: float = 1e-3
) -> dict:
    """Choose the threshold that a share `false_match_rate` of the same-caption pairs exceeds, and measure how
    many augmented copies are detected by it.

    `images, groups` are held out: in no training set, grouped by caption (`dataset.calibration_set`).
    """
    descriptors = embed(net, images)
    negatives = same_group_scores(descriptors, groups)
    threshold = float(np.quantile(negatives, 1 - false_match_rate))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        copies = net(augmentations()(_pixels(images)).clamp(0, 1))
    positives = (copies * descriptors).sum(1).numpy()
    anyone = descriptors[np.random.default_rng(recipe.seed).permutation(len(images))]
    return {
        "false_match_rate": false_match_rate,
        "negative_pairs": len(negatives),
        "threshold": round(threshold, 4),
        "negative_quantiles": {q: float(np.quantile(negatives, q)) for q in (0.5, 0.9, 0.99, 0.999)},
        "random_pairs_median": float(np.median((anyone * descriptors).sum(1).numpy())),
        "copies": len(positives),
        "detected": int((positives > threshold).sum()),
        "copy_quantiles": {q: float(np.quantile(positives, q)) for q in (0.01, 0.05, 0.5)},
    }
