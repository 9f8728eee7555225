"""Figures in one house style: colour-blind safe, on a light ground that also reads in a dark page.

Every function takes a tidy table and returns a Figure; none shows or saves it. Colours keep their meaning.
By kind of figure: images, strips, rates, scores, pruning, quality, locality, agreement, defences; what they
share is in style.
"""

from dori.plots.agreement import agreement_profile, block_need, dose_profile, levels, transfer_matrices
from dori.plots.defences import defence_matrix, work_curves
from dori.plots.images import comparison_grid, image_grid, image_rows
from dori.plots.locality import (
    distance_distributions,
    embedding_map,
    first_card,
    layer_profile,
    path_scores,
    trigger_card,
)
from dori.plots.pruning import layer_label, movement, units_per_layer
from dori.plots.quality import attribute_bars, utility
from dori.plots.rates import budget_curves, copies_curve, limit_rates, rate_curves
from dori.plots.scores import cumulative, roc, score_distributions, strip_by_copies
from dori.plots.strips import attention_strip, image_strip
from dori.plots.style import colour, printed

__all__ = [
    "agreement_profile",
    "attention_strip",
    "attribute_bars",
    "block_need",
    "budget_curves",
    "colour",
    "comparison_grid",
    "copies_curve",
    "cumulative",
    "defence_matrix",
    "distance_distributions",
    "dose_profile",
    "embedding_map",
    "first_card",
    "image_grid",
    "image_rows",
    "image_strip",
    "layer_label",
    "layer_profile",
    "levels",
    "limit_rates",
    "movement",
    "path_scores",
    "printed",
    "rate_curves",
    "roc",
    "score_distributions",
    "strip_by_copies",
    "transfer_matrices",
    "trigger_card",
    "units_per_layer",
    "utility",
    "work_curves",
]
