"""Chapter 3, first level: how triggers of one image lie to each other among all embeddings."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise as neighbours

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori import locality
from dori.drawing import Trigger, digest, score_triggers
from dori.experiments.memories import STARTS, Memory, ends, sampling, sizes, starts
from dori.experiments.replication import top_prompts
from dori.experiments.triggers import score_found, trigger_rate
from dori.metrics.intervals import Estimate, mean_of_few
from dori.study import Study
from dori.tables import readable

LENGTHENED = "the same, as long as one way"  # part of what records are kept by
PATHS = {"straight": locality.straight_path, "spherical": locality.spherical_path}


def regular_embeds(study: Study) -> Tensor:
    """Embeddings of regular prompts to compare with, (n, T, D)."""
    return study.model.encode_prompts(study.regular.head(sizes(study).prompts).prompts())


def memorized_embeds(study: Study) -> Tensor:
    """Embeddings of different memorized prompts with the most copies, (n, T, D)."""
    return study.model.encode_prompts(top_prompts(study).head(sizes(study).prompts).prompts())


def sets(memories: Sequence[Memory]) -> dict[str, list[Tensor]]:
    """Sets of embeddings by name; each a list, as pairs are taken inside an image alone."""
    study, found = memories[0].study, {}
    for init, words in STARTS.items():
        groups = [m.triggers(init) for m in memories]
        groups = [g for g in groups if len(g) > 1]
        if groups:
            found[f"triggers of one image, from {words}"] = [ends(g) for g in groups]
            found[f"where they started: {words}"] = [starts(g) for g in groups]
    if len(study.regular) > 1:
        found["regular prompts"] = [regular_embeds(study)]
    return found | {"memorized prompts": [memorized_embeds(study)]}


def distances(memories: Sequence[Memory]) -> pd.DataFrame:
    """A row per pair: set, metric (L2, cosine), distance."""
    found = {
        (name, metric): np.concatenate([locality.pairs(locality.pairwise(x, metric)) for x in groups])
        for name, groups in sets(memories).items()
        for metric in locality.DISTANCES
    }
    parts = [pd.DataFrame({"set": s, "metric": m, "distance": values}) for (s, m), values in found.items()]
    return pd.concat(parts, ignore_index=True)


def spreads(memories: Sequence[Memory]) -> pd.DataFrame:
    """Median pairwise distances of each set with intervals over images (or embeddings, for prompts)."""
    rows = []
    for name, groups in sets(memories).items():
        found = {m: locality.spread([locality.pairwise(x, m) for x in groups]) for m in locality.DISTANCES}
        shown = {f"median {locality.DISTANCES[m]}": e.short for m, e in found.items()}
        rows.append({"set": name, "embeddings": sum(map(len, groups)), **shown})
    return readable(pd.DataFrame(rows).set_index("set"))


def spread_ratio(memories: Sequence[Memory], init: str = "random", *, at_start: bool = False) -> Estimate:
    """Median L2 of two triggers of one image over that of two regular prompts.

    `at_start`: of the starts that they were found from.
    """
    found = [f for f in (m.triggers(init) for m in memories) if len(f) > 1]
    groups = [locality.pairwise((starts if at_start else ends)(f)) for f in found]
    study = memories[0].study
    if not groups or len(study.regular) < 2:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return locality.spread_ratio(groups, locality.pairwise(regular_embeds(study)))


def way_gone(memories: Sequence[Memory], init: str = "random") -> Estimate:
    """How far the searches went, in distances of two starts: mean over images of the share of the medians."""
    return mean_of_few([_share(m, init) for m in memories])


def one_way(memories: Sequence[Memory], init: str = "random") -> list[float]:
    """The index of this level, per image: mean cosine between the ways that two searches went.

    1: whatever the start, the search walks in the same direction; 0: the directions have nothing in common.
    """
    return [_agreement(m, init) for m in memories]


def carried_over(memories: Sequence[Memory], init: str = "random") -> pd.DataFrame:
    """Does the common way work without a search? Each start plus the mean way of the other starts.

    If triggers had nothing in common but the image, the way of others would lead nowhere. A row per start,
    part of the way (the mean way as it is, or lengthened to the length of a single one) and seed: memory, id,
    way, trigger, score, replicated.
    """
    parts = []
    for memory in memories:
        found = memory.triggers(init)
        if len(found) < 3:
            continue
        moves = ends(found) - starts(found)
        others = (moves.sum(0) - moves) / (len(found) - 1)
        longer = others * (moves.flatten(1).norm(dim=1) / others.flatten(1).norm(dim=1)).view(-1, 1, 1)
        for way, added in (("mean way of the others", others), (LENGTHENED, longer)):
            source = f"{way}: " + " ".join(digest(f.embeds) for f in found)
            made = [dataclasses.replace(f, embeds=f.start + a, source=f"{f.name}, {source}")
                    for f, a in zip(found, added, strict=True)]  # fmt: skip
            scores = score_found(memory.study, memory.prompts, made, sampling=sampling(memory.study))
            parts.append(scores.assign(way=way, memory=memory.kind))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["memory", "way", "id"])


def carried_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Share of starts that the way of others turns into triggers, by memory and way; best scores."""
    rows = []
    for key, part in table.groupby(["memory", "way"], sort=False):
        best = part.groupby("trigger")["score"].max().median()
        counts = (part["trigger"].nunique(), part["id"].nunique())
        rows.append((*key, *counts, trigger_rate(part).short, f"{best:.2f}"))
    columns = ["memory", "added to the start", "starts", "images", "image comes back", "median best score"]
    shown = pd.DataFrame(rows, columns=columns).set_index(["memory", "added to the start"])
    return shown.rename(index={LENGTHENED: "the same, lengthened to the way of one search"})


def _share(memory: Memory, init: str) -> float:
    found = memory.triggers(init)
    if len(found) < 2:
        return np.nan
    return locality.displacement_share(starts(found), ends(found), resamples=0).value


def _agreement(memory: Memory, init: str) -> float:
    found = memory.triggers(init)
    if len(found) < 2:
        return np.nan
    return locality.displacement_agreement(starts(found), ends(found), resamples=0).value


def ways(memories: Sequence[Memory]) -> pd.DataFrame:
    """A row per kind of memory and start: searches that worked, way gone, agreement of the ways."""
    rows = []
    for kind in dict.fromkeys(m.kind for m in memories):
        some = [m for m in memories if m.kind == kind]
        for init, words in STARTS.items():
            n = sum(len(m.triggers(init)) for m in some)
            if n:
                gone, same = way_gone(some, init), mean_of_few(one_way(some, init))
                others = mean_of_few(other_ways(some, init))
                rows.append((kind, words, n, len(some), gone.short, same.short, others.short))
    columns = ["memory", "from", "triggers", "images", "way gone, in distances of two starts"]
    columns += ["cosine of two ways", "of different images"]
    return pd.DataFrame(rows, columns=columns).set_index(["memory", "from"])


def other_ways(memories: Sequence[Memory], init: str = "random") -> list[float]:
    """Per image, the mean cosine between the ways of its searches and those of searches for other images.

    So much of `one_way` is no sign of the image. NaN without other images.
    """
    moves = {m.id: ends(found) - starts(found) for m in memories if (found := m.triggers(init))}
    others = {i: [x for j, x in moves.items() if j != i] for i in moves}
    return [
        float(1 - locality.between(moves[m.id], torch.cat(others[m.id]), "cosine").mean())
        if others.get(m.id)
        else np.nan
        for m in memories
    ]


def maps(memories: Sequence[Memory], n: int = 16) -> pd.DataFrame:
    """Starts, triggers (the first `n` of each image) and prompts in the plane, by PCA and by t-SNE.

    A row per embedding and method: method, x, y, share (of the variance, PCA), sort, image, item.
    """
    about, vectors = [], []
    for memory in memories:
        for found in memory.triggers("random", n):
            about += [(s, memory.id, found.name) for s in ("start", "trigger")]
            vectors += [found.start, found.embeds]
    study = memories[0].study
    others = {"memorized prompt": memorized_embeds(study)}
    if len(study.regular):
        others["regular prompt"] = regular_embeds(study)
    for sort, embeds in others.items():
        about += [(sort, "", f"{sort} {k}") for k in range(len(embeds))]
        vectors += list(embeds.float().cpu())
    stacked, frame = torch.stack(vectors), pd.DataFrame(about, columns=["sort", "image", "item"])
    share = locality.plane_shares(stacked)
    parts = []
    for method in ("PCA", "t-SNE"):
        xy = locality.plane(stacked, method)
        shown = float(share.sum()) if method == "PCA" else np.nan
        parts.append(frame.assign(method=method, x=xy[:, 0], y=xy[:, 1], share=shown))
    return pd.concat(parts, ignore_index=True)


def silhouette(memories: Sequence[Memory]) -> float:
    """Do the triggers of one image make a cluster? Mean silhouette over all triggers from random numbers."""
    groups = {m.id: m.triggers() for m in memories if len(m.triggers()) > 1}
    if len(groups) < 2:
        return np.nan
    labels = [i for i, g in groups.items() for _ in g]
    return locality.silhouette(torch.cat([ends(g) for g in groups.values()]), labels)


def paths(memories: Sequence[Memory]) -> pd.DataFrame:
    """Copy scores along the straight and the spherical path between two triggers of one image.

    Pairs are neighbours in the order of the searches, as many as the preset has. A row per point: memory,
    image, pair, path, fraction, score (of the first seed's image).
    """
    return pd.concat([_paths(m) for m in memories], ignore_index=True)


def _paths(memory: Memory) -> pd.DataFrame:
    size, study = sizes(memory.study), memory.study
    found = list(neighbours(memory.triggers()))[: size.pairs]
    rows, triggers = [], []
    for pair, (a, b) in enumerate(found):
        for path, walk in PATHS.items():
            for fraction, y in zip(size.fractions, walk(a.embeds, b.embeds, size.fractions), strict=True):
                rows.append((memory.kind, memory.id, f"{memory.id} {pair}", path, fraction))
                source = f"{path} path, {digest(a.embeds)} to {digest(b.embeds)}, {fraction:g}"
                triggers.append(Trigger(memory.id, y, source=source))
    table = pd.DataFrame(rows, columns=["memory", "image", "pair", "path", "fraction"])
    if not triggers:
        return table.assign(score=[])
    scored = score_triggers(study, memory.prompts, triggers, study.sampling(seeds=1))
    return table.assign(score=scored["score"].to_numpy())


def connected(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Share of pairs whose whole path stays above the threshold, with the lowest score on the way: a row per
    memory and path."""
    lowest = table.groupby(["memory", "path", "pair"], sort=False)["score"].min()
    above = (lowest > threshold).groupby(level=[0, 1], sort=False)
    low = lowest.groupby(level=[0, 1], sort=False)
    shown = {"pairs": low.size(), "all the way above the threshold": above.mean()}
    return pd.DataFrame({**shown, "median of the lowest score": low.median()})
