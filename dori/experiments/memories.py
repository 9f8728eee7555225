"""Chapter 3's memories: images with the triggers that searches found, ordinary ones and planted ones.

Planted memories are the positive control: they were put into one block on purpose (`testbed.planted`), so a
diagnostic of locality has to tell them from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from dori.attack import Attack
from dori.benchmark import Benchmark
from dori.drawing import Sampling
from dori.experiments.foundations import halved
from dori.experiments.locality_sizes import SIZES, Sizes
from dori.experiments.replication import top_prompts
from dori.experiments.triggers import Found, find_triggers, score_found, successful, trigger_rate
from dori.hooks import layer_label
from dori.metrics.intervals import Estimate, mean_of_few
from dori.mitigation.units import Units
from dori.study import Study

ORDINARY, PLANTED = "ordinary", "planted"
STARTS = {"random": "random numbers", "regular": "regular prompts"}  # how an initialisation is called


@dataclass(frozen=True, eq=False)
class Memory:
    """One image, the study of the model that holds it, and the searches for it."""

    kind: str  # ordinary or planted
    study: Study
    prompts: Benchmark  # its row alone
    found: list[Found]
    scores: pd.DataFrame  # of what was found: `triggers.score_found`

    @property
    def id(self) -> str:
        """The row's id."""
        return self.prompts.ids[0]

    def triggers(self, init: str = "random", n: int | None = None) -> list[Found]:
        """The first `n` searches from `init` that bring the image back."""
        worked = successful(self.found, self.scores)
        return [f for f in worked if f.init == init and not f.draw][:n]


def sizes(study: Study) -> Sizes:
    """What the study's preset asks of this chapter."""
    return SIZES[study.preset.name]


def sampling(study: Study) -> Sampling:
    """The chapter's draws: few images of each trigger, as there are many triggers."""
    return study.sampling(seeds=sizes(study).seeds)


def images(study: Study) -> Benchmark:
    """The memorized images of the chapter: most copies, test half, as no setting was chosen on them."""
    return halved(top_prompts(study)).select(split="test").head(sizes(study).images)


def ordinary(study: Study) -> list[Memory]:
    """Each image with its searches from random numbers and from regular prompts."""
    starts = {"random": sizes(study).random}
    if len(study.regular):
        starts["regular"] = sizes(study).regular
    return searched(study, images(study), starts, kind=ORDINARY)


def planted(study: Study) -> list[Memory]:
    """The planted images, each in its own copy of the bundled model; none for another model."""
    from dori.testbed.planted import is_base, planted_benchmark, planted_model

    if not study.bundled or not is_base(study.model):
        return []
    shipped, found = planted_benchmark(), []
    for which in shipped.ids[: sizes(study).images]:
        one = study.on(planted_model(study.model, which))
        found += searched(one, shipped.only([which]), {"random": sizes(study).planted}, kind=PLANTED)
    return found


def searched(study: Study, prompts: Benchmark, starts: dict[str, int], *, kind: str) -> list[Memory]:
    """A memory for each row: `starts` says how many searches from each initialisation. All in few batches."""
    found = [f for init, n in starts.items() for f in find_triggers(study, prompts, plan(study, init), n)]
    scores = score_found(study, prompts, found, sampling=sampling(study))
    return [
        Memory(kind, study, prompts.only([i]), [f for f in found if f.image == i], part)
        for i, part in scores.groupby("id", sort=False)
    ]


def on_twin(study: Study) -> pd.DataFrame:
    """The same searches from random numbers on the twin, which has no memory of the images: their scores."""
    if study.twin is None:
        return pd.DataFrame(columns=["trigger", "id", "replicated"])
    found = find_triggers(study.twin, images(study), plan(study, "random"), sizes(study).twin)
    return score_found(study.twin, images(study), found, sampling=sampling(study))


def plan(study: Study, init: str) -> Attack:
    """The paper's search, as many steps as the preset has."""
    return Attack(init, sizes(study).steps)


def redrawn(memory: Memory) -> list[Found]:
    """The first random start searched from once more with other draws: [as before, anew]; the ceiling of how
    far two searches can agree."""
    how = plan(memory.study, "random")
    return [f for f in find_triggers(memory.study, memory.prompts, how, 1, draws=1) if f.image == memory.id]


def success(memories: Sequence[Memory], twin: pd.DataFrame | None = None) -> pd.DataFrame:
    """Searches that found a trigger, by memory and start: how many, of how many images, share, best score.

    `twin`: scores of `on_twin`, a row of their own.
    """
    sets = {}
    for memory in memories:
        for init, part in memory.scores[memory.scores["draw"] == 0].groupby("init", sort=False):
            sets.setdefault((memory.kind, STARTS[init]), []).append(part)
    if twin is not None and len(twin):
        sets["the twin", STARTS["random"]] = [twin]
    rows = []
    for (kind, start), parts in sets.items():
        scores = pd.concat(parts, ignore_index=True)
        rate, best = trigger_rate(scores), scores.groupby("trigger")["score"].max().median()
        rows.append(
            (kind, start, scores["trigger"].nunique(), scores["id"].nunique(), rate.short, f"{best:.2f}")
        )
    columns = ["memory", "from", "searches", "images", "found", "median of the best score"]
    return pd.DataFrame(rows, columns=columns).set_index(["memory", "from"])


def success_rates(memories: Sequence[Memory], twin: pd.DataFrame) -> dict[str, Estimate]:
    """Headlines: share of searches from random numbers that find a trigger, on the model and on the twin.

    A mean over images, n counts these: the searches of one image say nothing of another.
    """
    scores = pd.concat([m.scores for m in memories], ignore_index=True)
    sets = {"mr_triggers_random": scores[scores["init"] == "random"], "mr_triggers_twin": twin}
    found = {name: part.groupby(["id", "trigger"])["replicated"].any() for name, part in sets.items()}
    return {name: mean_of_few(hit.groupby("id").mean(), within=(0, 1)) for name, hit in found.items()}


def ground_truth(memories: Sequence[Memory]) -> pd.DataFrame:
    """What the triggers of planted memories still return with the door shut or the store emptied.

    A row per image: block, triggers, and the share that returns it as planted (1, as these are the triggers),
    with the door shut, with the store emptied; units of each.
    """
    from dori.testbed.planted import known_units

    rows = []
    for memory in memories:
        found, row = memory.triggers(), {"image": memory.id, "triggers": len(memory.triggers())}
        for words, units in zip(("door shut", "store emptied"), known_units(memory.id), strict=True):
            row["block"] = layer_label(next(iter(units)))
            row[f"units, {words}"] = units.count
            row[words] = _left(memory, found, units)
        rows.append(row)
    columns = ["block", "triggers", "units, door shut", "door shut", "units, store emptied", "store emptied"]
    return pd.DataFrame(rows).set_index("image")[columns] if rows else pd.DataFrame(columns=columns)


def _left(memory: Memory, found: Sequence[Found], units: Units) -> float:
    """Share of triggers that still return the image with units off."""
    if not found:
        return float("nan")
    off = {f.name: units for f in found}
    scores = score_found(memory.study, memory.prompts, found, units=off, sampling=sampling(memory.study))
    return trigger_rate(scores).value


def ends(found: Sequence[Found]) -> Tensor:
    """Embeddings found, (n, T, D)."""
    return torch.stack([f.embeds for f in found])


def starts(found: Sequence[Found]) -> Tensor:
    """Where the searches began, (n, T, D)."""
    return torch.stack([f.start for f in found])
