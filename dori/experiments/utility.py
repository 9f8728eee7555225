"""What a pruned model is still good for: regular prompts drawn, and measured beside the model as trained."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dori.benchmark import Benchmark
from dori.drawing import Trigger, descriptor_key, drawn, image_keys, prompt_trigger, report
from dori.errors import DoriError
from dori.methods import code_of
from dori.metrics.alignment import ClipScorer
from dori.metrics.copy import pairwise
from dori.metrics.fidelity import frechet_distance, kernel_distance
from dori.metrics.intervals import Estimate, bootstrap, bootstrap_table, jackknife
from dori.mitigation.units import Units
from dori.store import Record
from dori.study import Sampling, Study

# Nothing; sets by id, applied to regular prompts in turn; one joint set; or another model, such as the twin.
Pruning = Mapping[str, Units] | Units | Study | None
EMBEDDED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The images of one model, measured one by one: a row per image, those of a prompt together."""

    ids: np.ndarray  # (B,)
    alignment: np.ndarray | None  # (B,) cosine to the prompt; None without a CLIP
    features: Tensor | None  # (B, d) of CLIP
    alike: np.ndarray  # (prompts,) median copy score between the images of a prompt; NaN for single images


def utility_table(
    study: Study,
    regular: Benchmark,
    prunings: Mapping[str, Pruning],
    *,
    sampling: Sampling | None = None,
    clip: ClipScorer | None = None,
) -> pd.DataFrame:
    """Held-out prompts under each pruning, from the same noise: one row per label.

    Columns, with `_low` and `_high` of their 95 % intervals over prompts: alignment (mean cosine of image and
    prompt), alignment_change (paired, as a share of the model as trained; 0 is no loss), fid and kid (on CLIP
    features, KID x 1000) against all held-out images, fid_change (paired), diversity (the paper's D_SSCD,
    LOWER is more varied); n counts prompts. FID is biased upwards at small n: read changes, not values.
    `sampling` is two images a prompt unless given. `clip` is the testbed's own on its own prompts; without
    one its columns are NaN. Sources: arXiv 2406.02366, section 4 (D_SSCD, A_CLIP); Heusel et al. 2017 (FID);
    Bińkowski et al. 2018 (KID). Raises DoriError.
    """
    sampling = sampling or study.sampling(seeds=2)
    if clip is None and study.bundled:
        clip = ClipScorer.load(device=study.model.device)
    real = _held_out(study, clip) if clip else None
    before = _draw(study, regular, None, sampling=sampling, clip=clip)
    rows = []
    for label, pruning in prunings.items():
        if isinstance(pruning, Mapping) and not len(pruning):
            raise DoriError(f"'{label}' has no set of units; give None for the model as trained")
        after = before if pruning is None else _draw(study, regular, pruning, sampling=sampling, clip=clip)
        row = {"label": label, "n": len(regular)}
        for name, found in _measures(before, after, real).items():
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def estimate(table: pd.DataFrame, label: str, measure: str) -> Estimate:
    """One figure of a utility table, for a headline or for prose. Raises DoriError for an unknown label."""
    row = table[table["label"] == label]
    if row.empty:
        raise DoriError(f"no utility of '{label}'; there are {', '.join(table['label'])}")
    value, low, high = (float(row.iloc[0][f"{measure}{end}"]) for end in ("", "_low", "_high"))
    return Estimate(value, low, high, int(row.iloc[0]["n"]))


def alignment_loss(table: pd.DataFrame, label: str) -> Estimate:
    """Share of the prompt alignment that is lost; negative where pruned images follow prompts better."""
    change = estimate(table, label, "alignment_change")
    return Estimate(-change.value, -change.high, -change.low, change.n)


def _draw(
    study: Study, regular: Benchmark, pruning: Pruning, *, sampling: Sampling, clip: ClipScorer | None
) -> _Drawn:
    """Draw every prompt, prunings in turn, and keep what is measured of it: images take far more room."""
    study, pruning = (pruning, None) if isinstance(pruning, Study) else (study, pruning)
    sets = [pruning] if pruning is None or isinstance(pruning, Units) else list(pruning.values())
    triggers = [prompt_trigger(regular, i, sets[n % len(sets)]) for n, i in enumerate(regular.ids)]
    scorers = {"clip": clip.fingerprint if clip else None, "descriptor": descriptor_key(study)}
    code = code_of("utility")
    keys = {t: {"images": image_keys(study, t, sampling), **scorers, **code} for t in triggers}
    kept = {t: study.store.find("utility", keys[t]) for t in triggers}
    for trigger, images in drawn(study, [t for t in triggers if kept[t] is None], sampling):
        kept[trigger] = study.store.save("utility", keys[trigger], _measured(study, trigger, images, clip))
    found = [record.values for record in kept.values()]
    ids = np.repeat(regular.ids, sampling.seeds)
    alike = np.array([np.nan if v["alike"] is None else v["alike"] for v in found])
    if clip is None:
        return _Drawn(ids, None, None, alike)
    alignment = np.concatenate([v["alignment"] for v in found])
    return _Drawn(ids, alignment, torch.tensor([f for v in found for f in v["features"]]), alike)


def _measured(study: Study, trigger: Trigger, images: Tensor, clip: ClipScorer | None) -> Record:
    """What the measures need of the images of one prompt (S, 3, H, W)."""
    copies = pairwise(study.descriptor.embed(images))
    values = {"alike": float(copies.median()) if len(copies) else None}
    if clip:
        features = clip.embed_images(images)
        aligned = features @ clip.embed_texts([trigger.prompt])[0]
        values |= {"alignment": aligned.tolist(), "features": features.tolist()}
    return Record(values)


def _held_out(study: Study, clip: ClipScorer) -> Tensor:
    """CLIP features of all held-out images that can be read, (N, d); others cost a line of the log."""
    size, features, skipped = study.model.defaults.image_size, [], {}
    for first in range(0, len(study.regular), EMBEDDED_AT_ONCE):
        images = []
        for i in study.regular.ids[first : first + EMBEDDED_AT_ONCE]:
            try:
                images.append(study.regular.images([i], size=size))
            except DoriError as error:
                skipped[i] = str(error)
        if images:
            features.append(clip.embed_images(torch.cat(images)))
    report(skipped, of=len(study.regular))
    return torch.cat(features)


def _measures(before: _Drawn, after: _Drawn, real: Tensor | None) -> dict[str, Estimate]:
    """The figures of one row; NaN where there is nothing to measure them by."""
    unknown = Estimate(np.nan, np.nan, np.nan, len(after.alike))
    measures = dict.fromkeys(("alignment", "alignment_change", "fid", "fid_change", "kid"), unknown)
    if real is not None:
        paired = pd.DataFrame({"id": after.ids, "before": before.alignment, "after": after.alignment})
        measures = {
            "alignment": bootstrap(after.alignment, by=after.ids),
            "alignment_change": bootstrap_table(paired, _change, ["id"]),
            "fid": jackknife(after.ids, lambda rows: frechet_distance(real, after.features[rows])),
            "fid_change": jackknife(after.ids, lambda rows: _further(real, before, after, rows)),
            "kid": jackknife(after.ids, lambda rows: 1000 * kernel_distance(real, after.features[rows])),
        }
    varied = bootstrap(after.alike, np.median) if np.isfinite(after.alike).all() else unknown
    return measures | {"diversity": varied}


def _change(rows: pd.DataFrame) -> float:
    """Change of the mean alignment, as a share of what it was."""
    return rows["after"].mean() / rows["before"].mean() - 1


def _further(real: Tensor, before: _Drawn, after: _Drawn, rows: np.ndarray) -> float:
    """How much further from the held-out images, by the same prompts' images on both sides."""
    return frechet_distance(real, after.features[rows]) - frechet_distance(real, before.features[rows])
