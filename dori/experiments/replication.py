"""Chapter 1: does a model return training images from their prompts, and can one tell from outside?"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.stats import rankdata
from torch import Tensor

from dori.benchmark import Benchmark
from dori.detection import magnitudes
from dori.drawing import decided_by
from dori.metrics.alignment import ClipScorer, attribute_accuracy
from dori.metrics.copy import similarity
from dori.metrics.fidelity import nearest_neighbours
from dori.metrics.intervals import Estimate, bootstrap_table
from dori.metrics.replication import rates
from dori.store import Record
from dori.study import Sampling, Study, generate_and_score, noise_seed, progress, stored_images


def memorized_prompts(study: Study) -> Benchmark:
    """As many prompts of each kind and number of copies as the preset asks for."""
    return study.preset.pick(study.memorized)


def regular_prompts(study: Study) -> Benchmark:
    """Held-out prompts, which no model was trained on."""
    return study.preset.pick(study.regular)


def top_prompts(study: Study, n: int | None = None) -> Benchmark:
    """Verbatim prompts at the highest number of copies."""
    verbatim = memorized_prompts(study).select(kind="verbatim")
    if "copies" in verbatim.table and len(verbatim):
        verbatim = verbatim.select(copies=verbatim.table["copies"].max())
    return verbatim.head(n)


def replicate(study: Study) -> pd.DataFrame:
    """Memorized and regular prompts against their own images: a row per image, `sort` names the sort."""
    parts = [
        generate_and_score(study, b) for b in (memorized_prompts(study), regular_prompts(study)) if len(b)
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(sort=table["kind"].replace({"none": "regular"}))


def twin_rows(study: Study, n: int = 6) -> dict[str, Tensor]:
    """For the first `n` top prompts: training image, first image of the model and of its twin."""
    prompts, sampling = top_prompts(study, n), study.sampling()
    rows = {"training\nimage": prompts.images(size=study.model.defaults.image_size)} if len(prompts) else {}
    for name, s in (("the model", study), ("its twin", study.twin)):
        if s is not None:
            rows[name] = torch.stack([images[0] for _, images in stored_images(s, prompts, sampling)])
    return rows


def twin_table(study: Study) -> pd.DataFrame:
    """The top prompts on the model and on its twin (where it has one), same noise; column `model`."""
    studies = {study.model.name: study} | ({"twin": study.twin} if study.twin else {})
    parts = [generate_and_score(s, top_prompts(study)).assign(model=name) for name, s in studies.items()]
    return pd.concat(parts, ignore_index=True)


def dose_response(table: pd.DataFrame) -> pd.DataFrame:
    """Memorization rate of verbatim prompts by copies in training; one row where copies are unknown."""
    return rates(verbatim_runs(table), ["copies"])


def verbatim_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of verbatim prompts, fewest copies first; 1 where copies are unknown."""
    verbatim = table[table["kind"] == "verbatim"]
    return verbatim.assign(copies=verbatim.get("copies", 1)).sort_values("copies", kind="stable")


def dose_correlation(table: pd.DataFrame) -> Estimate:
    """Spearman's rank correlation of copies and best score over verbatim prompts; bootstrap over prompts."""
    verbatim = table.assign(copies=table.get("copies", 1))[table["kind"] == "verbatim"]
    prompts = verbatim.groupby("id", sort=False).agg({"score": "max", "copies": "first"}).reset_index()
    return bootstrap_table(prompts, _rank_correlation, ["id"])


def _rank_correlation(prompts: pd.DataFrame) -> float:
    """Spearman's coefficient; 0 where all have the same number of copies or the same score."""
    ranks = rankdata(prompts[["copies", "score"]], axis=0)
    return float(np.corrcoef(ranks.T)[0, 1]) if ranks.std(axis=0).all() else 0.0


def seed_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Memorization rate against the number of images drawn per prompt: the maximum can only rise with it."""
    parts = [table[table["seed"] < k].assign(seeds=k) for k in range(1, int(table["seed"].max()) + 2)]
    return rates(pd.concat(parts), ["sort", "seeds"])


def sweep(study: Study, setting: str) -> pd.DataFrame:
    """Top and regular prompts over one setting, `guidance_scale` or `steps`, all else as in the study."""
    preset, parts = study.preset, []
    values = {"guidance_scale": preset.guidance, "steps": preset.step_counts}[setting]
    sets = (top_prompts(study, preset.sweep_prompts), study.regular.head(preset.sweep_prompts))
    for value in values:
        sampling = study.sampling(seeds=min(2, preset.seeds), **{setting: value})
        parts += [generate_and_score(study, b, sampling).assign(**{setting: value}) for b in sets if len(b)]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(sort=table["kind"].replace({"none": "regular", "verbatim": "memorized"}))


def template_table(study: Study, sampling: Sampling | None = None) -> pd.DataFrame:
    """Template prompts against their own image and their whole group (same scene, one region differs).

    A row per image: id, seed, score, group_score (best over the group), own_is_nearest.
    """
    columns = ["id", "seed", "score", "group_score", "own_is_nearest"]
    sampling = sampling or study.sampling()
    prompts = memorized_prompts(study).select(kind="template")
    members = study.memorized.select(kind="template")
    if not len(prompts):
        return pd.DataFrame(columns=columns)
    vectors, rows = study.descriptor.embed(members.images(size=study.model.defaults.image_size)), []
    for i, images in stored_images(study, prompts, sampling):
        group = members.table["group"] == members.table.loc[i, "group"]
        scores = similarity(study.descriptor.embed(images), vectors[group.tolist()])
        own = list(members.table.index[group]).index(i)
        for seed, found in enumerate(scores):
            rows.append((i, seed, float(found[own]), float(found.max()), int(found.argmax()) == own))
    return pd.DataFrame(rows, columns=columns)


def train_index(study: Study) -> Tensor:
    """Copy descriptors of every image the bundled model was trained on, regular and memorized: (N, d)."""
    from dori.testbed.paths import TESTBED

    stored = load_file(TESTBED / "descriptor" / "train_index.safetensors")
    planted = study.descriptor.embed(study.memorized.images())
    return torch.cat([*(v.float() for v in stored.values()), planted])


def neighbour_table(study: Study) -> pd.DataFrame:
    """Best copy score over the whole training set, for regular generations and for held-out images.

    Held-out images were never trained on, so their scores show how near chance comes to some training image.
    """
    if not study.bundled:
        return pd.DataFrame(columns=["source", "id", "score", "neighbour"])
    index, sampling, prompts = train_index(study), study.sampling(), regular_prompts(study)
    sets = [("generated", i, images) for i, images in stored_images(study, prompts, sampling)]
    sets += [("held-out", i, study.regular.images([i])) for i in study.regular.ids]
    nearest = nearest_neighbours(study.descriptor, torch.cat([images for *_, images in sets]), index)
    about = [(source, i) for source, i, images in sets for _ in images]
    return pd.concat([pd.DataFrame(about, columns=["source", "id"]), nearest], axis=1)


def neighbour_gap(table: pd.DataFrame) -> Estimate:
    """Median nearest-neighbour score of generations minus that of held-out images; bootstrap over prompts."""

    def gap(rows: pd.DataFrame) -> float:
        medians = rows.groupby("source")["score"].median()
        return medians.get("generated", np.nan) - medians.get("held-out", np.nan)

    return bootstrap_table(table, gap, ["source", "id"])


def attribute_table(study: Study) -> pd.DataFrame:
    """Are regular prompts followed? Attributes read by the bundled CLIP off generations and held-out images.

    The held-out images are right by construction: their accuracy is the reader's own ceiling.
    """
    if not study.bundled:
        return pd.DataFrame(columns=["source", "image", "slot", "said", "seen", "correct", "chance"])
    prompts, clip = regular_prompts(study), ClipScorer.load(device=study.model.device)
    said = prompts.table.to_dict("records")
    tables = []
    for source, images in (("generated", regular_images(study, seeds=1)), ("held-out", prompts.images())):
        tables.append(attribute_accuracy(clip, images, said, prompts.prompts()).assign(source=source))
    return pd.concat(tables, ignore_index=True)


def share_of_ceiling(table: pd.DataFrame) -> Estimate:
    """Attribute accuracy on generations over that on held-out images of the same captions; over captions."""

    def ratio(rows: pd.DataFrame) -> float:
        accuracy = rows.groupby("source")["correct"].mean()
        return accuracy.get("generated", np.nan) / accuracy.get("held-out", np.nan)

    return bootstrap_table(table, ratio, ["image"])


def regular_images(study: Study, *, seeds: int | None = None) -> Tensor:
    """Generations of the regular prompts, (B, 3, H, W), the first `seeds` of each."""
    return torch.cat([x[:seeds] for _, x in stored_images(study, regular_prompts(study), study.sampling())])


def detection_table(study: Study) -> pd.DataFrame:
    """Wen's magnitude of memorized and regular prompts, no training image used: a row per prompt and noise.

    Columns: id, kind, copies, memorized, noise (its number), score (magnitude at the first step).
    The noise is not that of the images: a detector does not know which images will be drawn.
    """
    sets = (memorized_prompts(study), study.regular.head(study.preset.detection_regular))
    prompts = pd.concat([b.table for b in sets])
    rows = [(i, k, m) for i, found in _magnitudes(study, prompts["prompt"]) for k, m in enumerate(found)]
    about = prompts[[c for c in ("kind", "copies") if c in prompts]].assign(
        memorized=prompts["kind"] != "none"
    )
    table = pd.DataFrame(rows, columns=["id", "noise", "score"])
    return table.merge(about, left_on="id", right_index=True, how="left")


def detector_scores(table: pd.DataFrame, noises: int) -> pd.DataFrame:
    """The detector's score of each prompt: the mean magnitude over its first `noises` noises."""
    kept = table[table["noise"] < noises].drop(columns="noise")
    about = {c: "first" for c in kept.columns if c not in ("id", "score")}
    return kept.groupby("id", sort=False).agg({**about, "score": "mean"}).reset_index()


def excess_table(study: Study) -> pd.DataFrame:
    """What a prompt pulls, and how much of it the twin's does not: a row per prompt, empty without a twin.

    Columns of `detector_scores` over all noises, `twin` (the magnitude on the twin, from the same noises) and
    `excess` (model minus twin). Memory is the only difference between the two models, so the excess is due to
    it, and the rest to what the prompt says.
    """
    noises = study.sampling().seeds
    own = detector_scores(detection_table(study), noises)
    if study.twin is None:
        return own.head(0).assign(twin=0.0, excess=0.0)
    other = detector_scores(detection_table(study.twin), noises).set_index("id")["score"]
    return own.assign(twin=own["id"].map(other), excess=lambda t: t["score"] - t["twin"])


def _magnitudes(study: Study, prompts: pd.Series) -> Iterator[tuple[str, list[float]]]:
    """(id, magnitude for each noise) of each prompt, from the store where it has been computed."""
    sampling = study.sampling()
    with progress(len(prompts), "detection") as bar:
        for i, prompt in prompts.items():
            seeds = [noise_seed(study.seed, f"detection/{i}", k) for k in range(sampling.seeds)]
            decides = {**decided_by(study, "detection"), "prompt": prompt, "noise": seeds}
            decides |= {"steps": sampling.steps}
            found = study.store.get("magnitude", decides, lambda p=prompt, s=seeds: _magnitude(study, p, s))
            bar.update()
            yield i, found.values["magnitudes"]


def _magnitude(study: Study, prompt: str, seeds: list[int]) -> Record:
    embeds = study.model.encode_prompts([prompt]).expand(len(seeds), -1, -1)
    found = magnitudes(study.model, embeds, seeds, steps=1, num_inference_steps=study.sampling().steps)
    return Record({"magnitudes": found[:, 0].tolist()})


def denoising(study: Study, prompts: Benchmark, *, frames: int = 10) -> dict[int, dict[str, Tensor]]:
    """What the model takes the image to be (x_0) on its way: step -> id -> images (S, 3, H, W)."""
    sampling, seen = study.sampling(), {}
    shown = set(np.linspace(0, sampling.steps - 1, frames).round().astype(int).tolist())
    for i, prompt in zip(prompts.ids, prompts.prompts(), strict=True):

        def keep(step: int, _: int, x0: Tensor, i: str = i) -> None:
            if step in shown:
                seen.setdefault(step + 1, {})[i] = study.model.decode(x0).cpu()

        seeds = [noise_seed(study.seed, i, k) for k in range(sampling.seeds)]
        embeds = study.model.encode_prompts([prompt]).expand(len(seeds), -1, -1)
        study.model.sample(
            embeds, seeds, num_inference_steps=sampling.steps, batch_size=len(seeds), callback=keep
        )
    return seen


def gallery(study: Study, prompts: Benchmark, sampling: Sampling | None = None) -> list[dict]:
    """What a grid shows of each prompt: id, prompt, original (3, H, W), images (S, 3, H, W), scores."""
    if not len(prompts):
        return []
    sampling = sampling or study.sampling()
    scores = generate_and_score(study, prompts, sampling).groupby("id", sort=False)["score"].apply(list)
    originals = prompts.images(size=study.model.defaults.image_size)
    return [
        {
            "id": i,
            "prompt": prompts.table.loc[i, "prompt"],
            "original": original,
            "images": images,
            "scores": scores[i],
        }
        for original, (i, images) in zip(originals, stored_images(study, prompts, sampling), strict=True)
    ]
