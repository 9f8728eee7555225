"""Is a memory in one place? Distances of embeddings, what they activate, the units they point at."""

from dori.locality.activations import Sketch, Sketches, activation_sketches
from dori.locality.distances import (
    DISTANCES,
    between,
    displacement,
    displacement_agreement,
    displacement_share,
    pairs,
    pairwise,
    spread,
    spread_across,
    spread_ratio,
    within_over_between,
)
from dori.locality.maps import plane, plane_shares, silhouette, spherical_path, straight_path
from dori.locality.weights import agreement, agreement_estimate, chance_iou, layer_iou, placed

__all__ = [
    "DISTANCES",
    "Sketch",
    "Sketches",
    "activation_sketches",
    "agreement",
    "agreement_estimate",
    "between",
    "chance_iou",
    "displacement",
    "displacement_agreement",
    "displacement_share",
    "layer_iou",
    "pairs",
    "pairwise",
    "placed",
    "plane",
    "plane_shares",
    "silhouette",
    "spherical_path",
    "spread",
    "spread_across",
    "spread_ratio",
    "straight_path",
    "within_over_between",
]
