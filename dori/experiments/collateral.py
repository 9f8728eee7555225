"""Chapter 4: what a training did that nobody asked for, to other images and by what it put in their place."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from dori.drawing import drawn, prompt_trigger
from dori.experiments import defences, erasing, erasure
from dori.experiments.curing import paraphrases
from dori.experiments.defences import PROMPT, TRAINED, Defence
from dori.experiments.utility import utility_table
from dori.metrics.copy import similarity
from dori.metrics.intervals import Estimate
from dori.metrics.replication import memorization_rate, replication_table
from dori.mitigation.surrogates import Surrogate
from dori.study import Study

NEAR = "alignment of captions near the erased, change"
SPARED = {PROMPT: "MR of the spared half, by its prompts", erasure.FROM_PROMPT: "by DoRI from them"}
REWRITTEN = "erased prompts that paint a surrogate"


def spared_table(study: Study, some: Sequence[Defence]) -> pd.DataFrame:
    """The half that nobody asked to erase, by its prompts and by searches from them: `defences.ask`.

    Of every defence but the pruned one, which is made per image.
    """
    size = erasure.sizes(study)
    numbers = {PROMPT: size.spared, erasure.FROM_PROMPT: size.searched}
    return defences.asked(_whole(some), erasing.spared(study), numbers, erasure.sampling(study))


def spared_rates(table: pd.DataFrame) -> dict[str, Estimate]:
    """Rates of the spared half from `spared_table`; {} without adversarial fine-tuning.

    Of its prompts after that training and as trained ("aft_prompt", "trained_prompt"), and of searches from
    them after it ("aft_search").
    """
    rows = {"aft_prompt": (erasure.AFT, PROMPT), "aft_search": (erasure.AFT, erasure.FROM_PROMPT),
            "trained_prompt": (TRAINED, PROMPT)}  # fmt: skip
    if erasure.AFT not in set(table["defence"]):
        return {}
    found = {name: erasure.rate(table, *row) for name, row in rows.items()}
    return {name: estimate for name, estimate in found.items() if estimate.n}


def collateral(
    study: Study, some: Sequence[Defence], found: Sequence[Surrogate], table: pd.DataFrame
) -> pd.DataFrame:
    """A row per defence but the pruned one; cells are text, with interval and n.

    Memorization rates of the spared half (`spared_table`); what `near` says of the erased half, where it can;
    and `rewritten` of its surrogates (`found`).
    """
    whole = _whole(some)
    change = near(study, whole)
    cells = [f"{v:+.3f} [{a:+.3f}, {b:+.3f}]" for v, a, b in change.itertuples(index=False)]
    shown = defences.matrix(table).rename(columns=SPARED)
    if cells:
        shown[NEAR] = pd.Series(cells, index=change.index)
    shown[REWRITTEN] = [memorization_rate(rewritten(d, study, found)).cell for d in whole]
    return shown.rename_axis("model")


def _whole(some: Sequence[Defence]) -> list[Defence]:
    return [d for d in some if not d.units]


def near(study: Study, some: Sequence[Defence]) -> pd.DataFrame:
    """Are regular captions of what the erased images show still followed? A row per defence.

    The change of prompt alignment as a share of the model as trained, one caption an image, paired, and its
    interval. Empty for another benchmark, of which nobody knows what its images show in such words.
    """
    columns = [NEAR, f"{NEAR}, low", f"{NEAR}, high"]
    if not study.bundled:
        return pd.DataFrame(columns=columns)
    erased = erasing.erased(study).head(erasure.sizes(study).spared)
    captions = [texts[0] for texts in paraphrases(study, erased)]
    asked = dataclasses.replace(erased, table=erased.table.assign(prompt=captions))
    models = {d.label: None if d.label == TRAINED else d.study for d in some}
    table = utility_table(study, asked, models, sampling=erasure.sampling(study))
    ends = ("alignment_change", "alignment_change_low", "alignment_change_high")
    return table.set_index("label")[list(ends)].set_axis(columns, axis=1)


def rewritten(defence: Defence, study: Study, found: Sequence[Surrogate]) -> pd.DataFrame:
    """Has one memory been written over another? What erased prompts paint, against their own surrogates.

    `metrics.replication.replication_table` of the highest score with any of them, for each image painted.
    """
    prompts, scores = erasing.erased(study), {}
    pictures = {
        i: study.descriptor.embed(study.model.decode(one.latents))
        for i, one in zip(prompts.ids, found, strict=True)
    }
    triggers = [prompt_trigger(prompts, i) for i in prompts.ids]
    for trigger, images in drawn(defence.study, triggers, erasure.sampling(study)):
        alike = similarity(study.descriptor.embed(images), pictures[trigger.id])
        scores[trigger.id] = alike.max(1).values.tolist()
    return replication_table(scores, study.descriptor.threshold)
