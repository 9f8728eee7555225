"""Chapter 3, second level: what triggers of one image do inside the network.

All embeddings see the same noise at the first step, so nothing differs between them but the text's part.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori import locality
from dori.experiments.locality_embeddings import memorized_embeds, regular_embeds
from dori.experiments.memories import Memory, ends
from dori.locality import Sketches
from dori.locality.activations import MEASURES, MID, OUT, OUTPUT
from dori.metrics.intervals import Estimate, mean_of_few

ONE, DIFFERENT = "one image's triggers", "different images' triggers"
MEMORIZED, REGULAR = "different memorized prompts", "regular prompts"
FFN_OUTPUT = "feed-forward output"
NOISE = 0  # seed of the noise that all embeddings see
MOST = 16  # triggers of each image that are looked at
WIDTH = 4096  # numbers of a summary: keeps the error of a distance to a few per cent


def looked_at(memories: Sequence[Memory]) -> tuple[Sketches, list[str]]:
    """Activations of the images' triggers and of the prompts, and whose each is: an image's id, or the set.

    All on the model of the first memory.
    """
    study, groups = memories[0].study, {m.id: m.triggers(n=MOST) for m in memories}
    embeds = {i: ends(found) for i, found in groups.items() if found}
    embeds[MEMORIZED] = memorized_embeds(study)
    if len(study.regular):
        embeds[REGULAR] = regular_embeds(study)
    labels = [name for name, y in embeds.items() for _ in y]
    stacked = torch.cat([y.float().cpu() for y in embeds.values()]).to(study.model.device)
    return locality.activation_sketches(study.model, stacked, seed=NOISE, width=WIDTH), labels


def profile(memories: Sequence[Memory]) -> pd.DataFrame:
    """Mean distance of two embeddings of a set at each layer, with intervals.

    A row per layer, measure (L2, cosine, CKA) and set: layer, kind, measure, set, value, low, high.
    """
    sketches, labels = looked_at(memories)
    labels, ids = np.array(labels), [m.id for m in memories]
    rows = []
    for layer in sketches.flat:
        for measure in MEASURES:
            matrix = sketches.distances(layer, measure)
            for name, found in _by_set(matrix, labels, ids).items():
                rows.append((layer, kind(layer), measure, name, *found[:3]))
    return pd.DataFrame(rows, columns=["layer", "kind", "measure", "set", "value", "low", "high"])


def kind(layer: str) -> str:
    """What a layer's activations are: value, feed-forward (what its second matrix takes), feed-forward output
    (what it gives), mid or output."""
    if layer in (MID, OUTPUT):
        return {MID: "mid", OUTPUT: "output"}[layer]
    if layer.endswith(OUT):
        return FFN_OUTPUT
    return "value" if layer.endswith("to_v") else "feed-forward"


def _by_set(matrix: Tensor, labels: np.ndarray, ids: Sequence[str]) -> dict[str, Estimate]:
    """Mean distance inside each set: of one image's triggers over images, of different ones across them."""
    inside = [_part(matrix, labels == i) for i in ids if (labels == i).sum() > 1]
    some, resamples = np.isin(labels, ids), 100
    found = {}
    if inside:
        found[ONE] = locality.spread(inside, np.mean, resamples=resamples)
    if len(inside) > 1:
        across = locality.spread_across(_part(matrix, some), labels[some], np.mean, resamples=resamples)
        found[DIFFERENT] = across
    for name in (MEMORIZED, REGULAR):
        if (labels == name).sum() > 1:
            found[name] = locality.spread(_part(matrix, labels == name), np.mean, resamples=resamples)
    return found


def _part(matrix: Tensor, chosen: np.ndarray) -> Tensor:
    where = torch.from_numpy(np.flatnonzero(chosen))
    return matrix[where][:, where]


def ratios(memories: Sequence[Memory], measures: Sequence[str] = ("L2", "cosine")) -> pd.DataFrame:
    """Distance of two triggers of an image over that of two different memorized prompts.

    A row per image, measure and layer (all but the output): image, measure, layer, kind, ratio.
    """
    sketches, labels = looked_at(memories)
    labels, rows = np.array(labels), []
    for memory in memories:
        if (labels == memory.id).sum() > 1:
            for measure, layer in product(measures, (n for n in sketches.flat if n != OUTPUT)):
                matrix = sketches.distances(layer, measure)
                ratio = _mean(matrix, labels == memory.id) / _mean(matrix, labels == MEMORIZED)
                rows.append((memory.id, measure, layer, kind(layer), ratio))
    return pd.DataFrame(rows, columns=["image", "measure", "layer", "kind", "ratio"])


def activation_ratio(table: pd.DataFrame, measure: str = "L2", only: str = "") -> Estimate:
    """Mean over images of the median over layers, of `ratios`: of the layers of a `kind` (`only`), or of all
    that the paper and the claim's rule look at, which are not the outputs of the feed-forward layers."""
    wanted = table["kind"] == only if only else table["kind"] != FFN_OUTPUT
    chosen = (table["measure"] == measure) & wanted
    by_image = table[chosen].groupby("image", sort=False)["ratio"]
    return mean_of_few([float(np.median(part)) for _, part in by_image])


def meeting(memories: Sequence[Memory], others: Sequence[Memory]) -> pd.DataFrame:
    """The index of this level: how much nearer an image's triggers are to each other than to those of others.

    1 - (mean L2 between two triggers of the image) / (mean L2 to triggers of other images), at each layer of
    each memory, on the memory's own model; `others` are the memories whose triggers are the others. 0: the
    image's triggers are as far apart as any; 1: they do the same there. A row per memory and layer: memory,
    image, layer, kind, index.
    """
    rows = []
    for memory in memories:
        own = memory.triggers(n=MOST)
        strangers = [f for m in others if m.id != memory.id for f in m.triggers(n=MOST)]
        if len(own) < 2 or not strangers:
            continue
        model = memory.study.model
        stacked = ends([*own, *strangers]).to(model.device)
        sketches = locality.activation_sketches(model, stacked, seed=NOISE, width=WIDTH)
        for layer in sketches.flat:
            index = nearer(sketches.distances(layer), len(own))
            rows.append((memory.kind, memory.id, layer, kind(layer), index))
    return pd.DataFrame(rows, columns=["memory", "image", "layer", "kind", "index"])


def nearer(matrix: Tensor, own: int) -> float:
    """1 - (mean distance between two of the first `own`) / (mean distance from these to the others), of a
    matrix of distances (n, n); NaN where the latter is 0."""
    apart = float(matrix[:own, own:].mean())
    return 1 - _mean(matrix, np.arange(len(matrix)) < own) / apart if apart else np.nan


def best_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The layer of each memory at which its triggers agree most: a row per memory and image.

    The output does not count, there they have to agree; nor do the outputs of the feed-forward layers, which
    were added when the index had been seen.
    """
    inside = table[~table["kind"].isin(["output", FFN_OUTPUT])]
    best = inside.loc[inside.groupby(["memory", "image"], sort=False)["index"].idxmax()]
    return best.set_index(["memory", "image"])


def _mean(matrix: Tensor, chosen: np.ndarray) -> float:
    return float(np.mean(locality.pairs(_part(matrix, chosen))))
